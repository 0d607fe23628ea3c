"""A routed model of a library: the paper's sums on every family, its gates on disk, and every refusal."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import asterism
from asterism.core.errors import MismatchError, SettingsError, StaleError, StorageError, UnknownName
from asterism.models.library import Library
from asterism.models.routed import RoutedForCausalLM
from asterism.route.build import load_router, route, save_router
from asterism.route.settings import RouterSettings
from tests import tiny
from tests.route import oracles

NAMES = ("a", "b")
IDS = torch.randint(3, 300, (2, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    """Two MLP specialists of a float64 GPT-2."""
    return tiny.tiny_library(tmp_path_factory.mktemp("library"), "gpt2", NAMES, "mlp", dtype=torch.float64)


def weights_of(model: RoutedForCausalLM, seed: int, **settings):
    """Random gates, given to the model, and what they make of one token, in NumPy."""
    shape = [len(model.gates), *next(iter(model.gate_state().values())).shape]
    gates = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model.set_gates(gates)

    def weigh(block, x):
        scores = gates[block].numpy() @ x
        if settings.get("mode") == "absolute":
            scores = np.abs(scores)
        if settings.get("mode") == "cosine":
            scores = scores / np.linalg.norm(gates[block].numpy(), axis=1) / np.linalg.norm(x)
        found = oracles.softmax(settings.get("scale", 1.0) * scores)
        return oracles.kept(found, settings.get("top_k") or len(found), settings.get("normalise", False))

    return weigh


def agree(model, library, weigh, *, tolerance=1e-10, **settings):
    experts = [library.model(None if name == "generalist" else name) for name in model.config.experts]
    with tiny.wide(), torch.no_grad():
        got = model(input_ids=IDS).logits
        want = oracles.logits(
            library.model(), experts, IDS, weigh, depth=settings.get("depth", 1), single=settings.get("scope") == "single"
        )
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)
    return want


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_routing_is_the_weighted_sum_of_the_experts(tmp_path, family):
    library = tiny.tiny_library(tmp_path, family, NAMES, "mlp", dtype=torch.float64)
    settings = dict(with_generalist=True, depth=2)
    model = route(library, **settings)
    assert model.config.experts == [*NAMES, "generalist"]
    want = agree(model, library, weights_of(model, 3), **settings)
    with tiny.wide(), torch.no_grad():
        assert (library.model("a")(input_ids=IDS).logits - want).abs().max() > 1e-2  # the comparison can fail


@pytest.mark.parametrize(
    "settings",
    [
        dict(scope="single"),
        dict(scope="single", depth=3),
        dict(depth=5),
        dict(top_k=1),
        dict(top_k=3, depth=3, normalise=True),
        dict(top_k=2, scope="single", depth=2),
        dict(mode="absolute", scale=3.0),
        dict(mode="cosine", scale=4.0, depth=2),
        dict(experts=("b",), with_generalist=True),
    ],
    ids=str,
)
def test_every_way_to_route(library, settings):
    model = route(library, RouterSettings(**settings))
    agree(model, library, weights_of(model, 4, **settings), **settings)


def test_two_layer_gates(library):
    model = route(library, gate="mlp")

    def weigh(block, x):
        gate = model.gates[block]
        hidden = gate.hidden.weight.detach().numpy() @ x
        hidden = hidden * np.array([0.5 * (1 + float(torch.erf(torch.tensor(value / np.sqrt(2))))) for value in hidden])
        return oracles.softmax(gate.output.weight.detach().numpy() @ hidden)

    agree(model, library, weigh)


def test_fixed_gates_interpolate_activations(library):
    model = route(library, gate="fixed", gates=torch.tensor([0.3, 0.7]))
    agree(model, library, lambda block, x: np.array([0.3, 0.7]), tolerance=1e-7)  # 0.3 was float32
    agree(route(library, gate="fixed"), library, lambda block, x: np.array([0.5, 0.5]))
    for share, name in ((1.0, "a"), (0.0, "b")):
        model.set_gates(torch.tensor([share, 1 - share]))
        with torch.no_grad():
            torch.testing.assert_close(model(IDS).logits, library.model(name)(IDS).logits, atol=1e-12, rtol=0)


def test_gates_are_drawn_by_the_seed_and_alone_ask_for_gradients(library):
    model = route(library)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == model.gate_state().keys() == {f"transformer.h.{block}.mlp.gate.weight" for block in range(5)}
    bound = tiny.HIDDEN**-0.5
    drawn = torch.cat(list(model.gate_state().values()))
    assert 0.8 * bound < drawn.abs().max() <= bound
    same, other = (route(library, seed=seed).gate_state() for seed in (42, 7))
    assert all(torch.equal(gate, same[name]) and not torch.equal(gate, other[name]) for name, gate in model.gate_state().items())
    first, second = list(model.gate_state().values())[:2]
    assert not torch.equal(first, second)


def test_the_model_is_independent_of_the_library(library):
    before, config = library.model()(IDS).logits.detach(), library.config.to_dict()
    model = route(library, with_generalist=True)
    assert library.config.to_dict() == config
    assert (model.config.dtype, model.config.text_config.dtype) == (torch.float64, torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(library.model()(IDS).logits, before)


def test_the_layer_is_called_by_its_name(library):
    assert isinstance(asterism.route(library, asterism.RouterSettings(depth=2)), RoutedForCausalLM)


@pytest.mark.parametrize("settings", [dict(), dict(scope="single", depth=2), dict(gate="mlp"), dict(gate="fixed")], ids=str)
def test_a_router_alone_comes_back_with_its_library(library, tmp_path, settings):
    model = route(library, with_generalist=True, seed=7, **settings)
    if settings.get("gate") == "fixed":
        model.set_gates(torch.tensor([0.2, 0.3, 0.5]))
    folder = save_router(model, tmp_path / "router")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40_000
    back = load_router(folder, library)
    assert back.config.to_dict() | {"origin": None} == model.config.to_dict() | {"origin": None}
    with torch.no_grad():
        assert torch.equal(back(IDS).logits, model(IDS).logits)
    assert save_router(back, folder) == folder  # an earlier router is replaced


def test_a_router_of_another_library_is_refused(library, tmp_path):
    folder = save_router(route(library), tmp_path / "router")
    turned = Library.create(tmp_path / "turned", library.folder(), {name: library.folder(name) for name in ("b", "a")})
    with torch.no_grad():
        assert torch.equal(load_router(folder, turned)(IDS).logits, load_router(folder, library)(IDS).logits)  # the order is no matter
    fewer = Library.create(tmp_path / "fewer", library.folder(), {"a": library.folder("a")})
    with pytest.raises(StaleError, match=r"made with another library.\n  met:  it has no specialist 'b'"):
        load_router(folder, fewer)
    swapped = Library.create(tmp_path / "swapped", library.folder(), {"a": library.folder("b"), "b": library.folder("b")})
    with pytest.raises(StaleError, match=r"met:  a is \w{12}, the router knows \w{12}"):
        load_router(folder, swapped)
    other = tiny.tiny_library(tmp_path / "other", "gpt2", NAMES, "mlp", seed=5, dtype=torch.float64)
    with pytest.raises(StaleError, match="met:  the generalist is"):
        load_router(folder, other)


def test_damaged_routers_are_told(library, tmp_path):
    with pytest.raises(StorageError, match="There is no router here"):
        load_router(tmp_path, library)
    folder = save_router(route(library), tmp_path / "router")
    record = json.loads((folder / "router.json").read_text())
    for changed, told in (({"format_version": 9}, "another version"), ({"origin": {}}, "record is damaged"), ({"origin": 3}, "damaged")):
        (folder / "router.json").write_text(json.dumps(record | changed))
        with pytest.raises(StorageError, match=told):
            load_router(folder, library)
    (folder / "router.json").write_text(json.dumps(record))
    (folder / "router.safetensors").write_bytes(b"half")
    with pytest.raises(StorageError, match="tensor file is damaged"):
        load_router(folder, library)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(StorageError, match="holds something else"):
        save_router(route(library), tmp_path / "mine")
    with pytest.raises(MismatchError, match=r"gates of a routed model.\n  met:  GPT2LMHeadModel"):
        save_router(tiny.tiny_model("gpt2"), tmp_path / "plain")  # pyright: ignore[reportArgumentType]


def test_refusals(library):
    for changes, told in (
        (dict(top_k=3), r"top_k asks for more experts than there are.\n  met:  top_k 3, 2 models x depth 1\n  mend: 1 <= top_k <= 2 here"),
        (dict(depth=6), r"depth asks for more layers than the model has.\n  met:  6\n  mend: 1 <= depth <= 5 here"),
        (dict(experts=("a",)), r"nothing to route between.\n  met:  1 experts a block"),
        (dict(gate="fixed", mode="cosine"), "mode and scale need gate: linear"),
        (dict(experts=("a", "a")), "an expert is named twice"),
        (dict(top_k=0), "top_k"),
        (dict(scale=0), "scale"),
    ):
        with pytest.raises(SettingsError, match=told):
            route(library, **changes)
    with pytest.raises(UnknownName, match=r"No such specialist.\n  met:  'c'"):
        route(library, experts=("a", "c"))
    with pytest.raises(UnknownName, match=r"No such setting of RouterSettings.\n  met:  'detph'\n  mend: did you mean 'depth'"):
        route(library, detph=2)
    for gates, changes, told in (
        (torch.zeros(3, 16), {}, r"linear gates, \[3, 16\]\n  mend: \[5, 2, 16\], or \[2, 16\] for all"),
        (torch.zeros(2), dict(gate="mlp"), "give their tensors by name"),
        ({"transformer.h.0.mlp.gate.weight": torch.zeros(2, 16)}, {}, r"h.1.mlp.gate.weight is None, the model wants \[2, 16\]"),
    ):
        with pytest.raises(MismatchError, match=told):
            route(library, gates=gates, **changes)
