"""Composed parameters are Eq. 9's, whatever the specialists hold, and a live model follows one mixture after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.compose.build import compose
from asterism.compose.composer import Composer
from asterism.compose.plan import composed_parameters
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import MismatchError, SettingsError, UnknownName
from asterism.models.changes import Dense
from asterism.models.library import Library
from tests import oracles, tiny
from tests.compose.conftest import kinds_library, random_mixture

EXACT = dict(rtol=0, atol=3e-7)
"""Weights are float32: a column that should sum to 1 does to about 1e-7, and the plan may take it to be 1."""


def state(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def expected(library: Library, mixture: Mixture, settings: CompositionSettings, parameter: str) -> np.ndarray:
    """Eq. 9, or the generalist plus mixed deltas, over whole specialists with the weights of the node map, in NumPy."""
    anatomy, axis = library.anatomy, library.anatomy.output_axes[parameter]
    tensors = [library.model(name).get_parameter(parameter).detach().numpy() for name in mixture.specialists]
    out, hidden = anatomy.output_size(parameter), mixture.weights.double().numpy()
    if settings.node_map == "per_module" and anatomy.block_of(parameter) is not None:
        weights = mixture.modules[anatomy.module_of(parameter)].numpy()
    elif settings.node_map == "tiled" and anatomy.block_of(parameter) is not None and out % hidden.shape[1] == 0:
        weights = np.concatenate([hidden] * (out // hidden.shape[1]), axis=1)
    elif settings.node_map == "hidden" and anatomy.block_of(parameter) is not None and out == hidden.shape[1]:
        weights = hidden
    else:
        weights = np.repeat(hidden.mean(axis=1, keepdims=True), out, axis=1)
    if settings.mix == "specialists":
        return oracles.compose(weights, tensors, axis)
    generalist = library.tensor(parameter).numpy()
    return generalist + settings.scale * oracles.compose(weights, [tensor - generalist for tensor in tensors], axis)


@pytest.mark.parametrize(
    ("family", "settings", "joint"),
    [
        ("gpt2", CompositionSettings(layers=(1, 4), node_map="tiled"), False),
        ("gpt2", CompositionSettings(layers=1, node_map="hidden", mix="deltas", scale=0.5), False),
        ("gpt2", CompositionSettings(layers=1, node_map="per_module"), True),
        ("qwen3", CompositionSettings(layers="all", node_map="tiled"), False),
        ("llama", CompositionSettings(layers=1, node_map="per_module", mix="deltas", scale=2.0), True),
        ("gemma2", CompositionSettings(layers=1, node_map="mean"), False),
    ],
)
def test_composed_parameters_are_equation_9(kinds, family, settings, joint):
    library = kinds(family)
    mixture = random_mixture(("full", "lora", "mlp"), library.anatomy, 11, joint=joint)
    composed = state(Composer(library, settings).materialise(mixture))
    chosen = composed_parameters(library.anatomy, settings)
    for parameter in chosen:
        np.testing.assert_allclose(composed[parameter].numpy(), expected(library, mixture, settings, parameter), **EXACT)
    untouched = [name for name in composed if name not in chosen]
    assert all(torch.equal(composed[name], library.tensor(name)) for name in untouched)
    assert any(not torch.equal(composed[name], library.tensor(name)) for name in chosen)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_specialist_alone_gives_that_specialist(kinds, family):
    """With layers=all its logits; with the last L its blocks and the generalist's rest."""
    library = kinds(family)
    ids, composer = torch.arange(3, 15)[None], Composer(library)
    for name in ("full", "lora", "mlp"):
        model = composer.materialise(Mixture.fixed({name: 1.0}, library.anatomy.hidden_size))
        with torch.no_grad():
            got, want = model(ids).logits, library.model(name)(ids).logits
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6 if name == "lora" else 0)  # a LoRA's sum may round otherwise
    composer = Composer(library, CompositionSettings(layers=2))
    last = state(composer.materialise(Mixture.fixed({"full": 1.0}, library.anatomy.hidden_size)))
    tail = composed_parameters(library.anatomy, CompositionSettings(layers=2))
    for parameter, tensor in last.items():
        assert torch.equal(tensor, library.model("full" if parameter in tail else None).get_parameter(parameter)), parameter


def test_equal_specialists_give_the_generalist_untouched(tmp_path):
    base = tiny.save(tiny.tiny_model("olmo2"), tmp_path / "generalist")
    for name in ("a", "b", "c"):
        tiny.save(tiny.tiny_model("olmo2"), tmp_path / name)
    library = Library.create(tmp_path, base, {name: tmp_path / name for name in ("a", "b", "c")})
    composer = Composer(library)
    model = composer.materialise(random_mixture(("a", "b", "c"), library.anatomy, 0))
    assert all(torch.equal(tensor, library.tensor(name)) for name, tensor in state(model).items())
    assert composer._changes == {"a": {}, "b": {}, "c": {}}  # nothing stored again


def test_materialising_again_and_restoring_leave_no_trace(kinds):
    library = kinds("phi3")
    a, b = (random_mixture(names, library.anatomy, i) for i, names in enumerate([("full", "lora"), ("lora", "mlp")]))
    composer = Composer(library)
    places = {name: parameter.data_ptr() for name, parameter in composer.model.named_parameters()}
    first = state(composer.materialise(a))
    assert all(torch.equal(first[name], tensor) for name, tensor in state(composer.materialise(a)).items())
    fresh = state(Composer(library).materialise(b))
    assert all(torch.equal(fresh[name], tensor) for name, tensor in state(composer.materialise(b)).items())
    assert any(not torch.equal(first[name], fresh[name]) for name in fresh)
    assert all(torch.equal(library.tensor(name), tensor) for name, tensor in state(composer.restore()).items())
    assert places == {name: parameter.data_ptr() for name, parameter in composer.model.named_parameters()}


def test_a_composer_works_inside_and_outside_inference_mode(kinds):
    library = kinds("gpt2")
    mixture = random_mixture(("full", "lora"), library.anatomy, 0)
    with torch.inference_mode():
        composer = Composer(library)
        inside = [tensor.clone() for tensor in composer.materialise(mixture).parameters()]
    composer.restore()
    outside = list(composer.materialise(mixture).parameters())
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_specialists_that_trained_little_hold_little(kinds):
    library = kinds("mistral")
    composer = Composer(library, CompositionSettings(layers=1))
    composer.materialise(random_mixture(("full", "lora", "mlp"), library.anatomy, 0))
    last = set(composed_parameters(library.anatomy, composer.settings))
    held = {name: set(changes) for name, changes in composer._changes.items()}
    assert held["full"] == last
    assert held["mlp"] == {name for name in last if ".mlp." in name}
    assert held["lora"] == {name for name in last if len(library.anatomy.shapes[name]) == 2}
    assert not any(isinstance(change, Dense) for change in composer._changes["lora"].values())


def test_compose_gives_a_model_of_its_own(kinds):
    library = kinds("gemma3_text")
    mixture = random_mixture(("full", "other"), library.anatomy, 0)
    before = state(library.model())
    model = compose(library, mixture, CompositionSettings(layers=1), layers="all")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, before["model.embed_tokens.weight"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(library.model()).items())
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in state(compose(library, mixture, layers=1)).items() if ".layers." not in name
    )


def test_bfloat16_is_summed_wide_and_rounded_once(tmp_path):
    library = kinds_library(tmp_path, "llama", torch.bfloat16)
    mixture = random_mixture(("full", "lora", "mlp", "other"), library.anatomy, 4)
    composed = state(Composer(library, CompositionSettings(layers=1)).materialise(mixture))
    for parameter in composed_parameters(library.anatomy, CompositionSettings(layers=1)):
        if library.anatomy.output_size(parameter) != 16:
            continue
        axis, whole = library.anatomy.output_axes[parameter], []
        for name in mixture.specialists:
            change, base = library.change(name, parameter), library.tensor(parameter).double()
            dense = isinstance(change, Dense)
            whole.append((change.tensor.double() if dense else base if change is None else base + change.delta(axis).double()).numpy())
        want = torch.tensor(oracles.compose(mixture.weights.double().numpy(), whole, axis))
        spacing = torch.finfo(torch.bfloat16).eps * 2.0 ** want.abs().log2().floor()
        assert ((composed[parameter].double() - want).abs() <= 0.51 * spacing).all(), parameter


def test_what_cannot_be_composed_is_refused(kinds):
    library = kinds("gpt2")
    composer = Composer(library)
    with pytest.raises(MismatchError, match=r"\[1, 12\]"):
        composer.materialise(Mixture.fixed({"full": 1.0}, 12))
    with pytest.raises(UnknownName, match="did you mean 'other'"):
        composer.materialise(Mixture.fixed({"othr": 1.0}, 16))
    with pytest.raises(UnknownName, match="did you mean 'other'"):
        compose(library, Mixture.fixed({"othr": 1.0}, 16))
    with pytest.raises(SettingsError, match="per_module"):
        compose(library, Mixture.fixed({"full": 1.0}, 16), node_map="per_module")
    with pytest.raises(SettingsError, match="1 to 5"):
        Composer(library, CompositionSettings(layers=6))
    with pytest.raises(SettingsError, match="0 to 4"):
        compose(library, Mixture.fixed({"full": 1.0}, 16), layers=(0, 7))
    assert all(torch.equal(library.tensor(name), tensor) for name, tensor in state(composer.model).items())
