"""The plan of a composition: which parameters, whose weights at which nodes, and how much of the generalist remains."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.compose.plan import Plan, composed_parameters
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import MismatchError, SettingsError
from asterism.models.anatomy import Anatomy, anatomy_of, skeleton
from asterism.models.changes import Change, Dense, LowRank
from tests import tiny
from tests.compose.conftest import random_mixture

LIKE = torch.zeros(1, dtype=torch.float64)


@cache
def anatomy(family: str = "gpt2") -> Anatomy:
    return anatomy_of(skeleton(tiny.tiny_config(family)))


def weights_at(parameter: str, mixture: Mixture, family: str = "gpt2", **settings) -> np.ndarray:
    """[K, out or 1] as the plan carries the weights of `mixture` to a parameter that every specialist holds densely."""
    plan = Plan(anatomy(family), [mixture], CompositionSettings(**settings), LIKE)
    terms = plan.terms(parameter, lambda name, parameter: Dense(torch.ones(1)))
    assert terms is not None
    assert [part.specialist for part in terms.parts] == list(mixture.specialists)
    return torch.stack([part.weights[0] for part in terms.parts]).numpy()


def test_layers_select_the_last_blocks_a_list_or_everything():
    tiny_gpt2 = anatomy()
    blocks = lambda **settings: {tiny_gpt2.block_of(p) for p in composed_parameters(tiny_gpt2, CompositionSettings(**settings))}  # noqa: E731
    assert blocks(layers=2) == {3, 4}
    assert blocks(layers=5) == {0, 1, 2, 3, 4}
    assert blocks(layers=(3, 0)) == {0, 3}
    assert blocks(layers="all") == {None, 0, 1, 2, 3, 4}
    assert composed_parameters(tiny_gpt2, CompositionSettings(layers="all")) == tuple(tiny_gpt2.shapes)
    one = composed_parameters(tiny_gpt2, CompositionSettings(layers=(1,)))
    assert one == tuple(name for name in tiny_gpt2.shapes if name.startswith("transformer.h.1."))
    assert len(one) == 12


@pytest.mark.parametrize(("layers", "says"), [(6, "1 to 5"), ((0, 5), "0 to 4"), ((), "0 to 4")])
def test_layers_that_are_not_there_are_refused_with_the_range(layers, says):
    with pytest.raises(SettingsError, match=says):
        composed_parameters(anatomy(), CompositionSettings(layers=layers))


def test_node_maps_carry_weights_to_outputs_of_every_width():
    """gpt2 with d = 16: c_proj has 16 outputs, c_attn 48, c_fc 64; Qwen3's q_proj 24, its k_norm 6."""
    rng = np.random.default_rng(0)
    hidden = rng.random((2, 16)).astype(np.float32)
    mixture = Mixture(("a", "b"), torch.tensor(hidden), torch.ones(2), {"transformer.h.0.attn.c_attn": torch.tensor(rng.random((2, 48)))})
    mean = hidden.astype(np.float64).mean(axis=1, keepdims=True)
    own = mixture.modules["transformer.h.0.attn.c_attn"].numpy()
    c_attn, c_proj, ln = (f"transformer.h.0.{name}" for name in ("attn.c_attn.weight", "attn.c_proj.bias", "ln_1.weight"))
    for parameter, node_map, want in (
        (c_proj, "hidden", hidden), (c_proj, "tiled", hidden), (c_proj, "mean", mean), (ln, "hidden", hidden),
        (c_attn, "hidden", mean), (c_attn, "tiled", np.concatenate([hidden] * 3, axis=1)), (c_attn, "mean", mean),
        (c_attn, "per_module", own), ("transformer.h.0.attn.c_attn.bias", "per_module", own),
        ("transformer.wte.weight", "tiled", mean), ("transformer.wpe.weight", "per_module", mean),
        ("transformer.ln_f.bias", "hidden", mean),
    ):  # fmt: skip
        got = weights_at(parameter, mixture, node_map=node_map)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-15)
    for parameter in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_norm.weight"):
        np.testing.assert_allclose(weights_at(parameter, mixture, "qwen3", node_map="tiled"), mean, rtol=1e-15)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_embeddings_final_norm_and_head_take_the_mean_weight_so_ties_hold(family):
    parts = anatomy(family)
    mixture = random_mixture(("a", "b"), parts, 0)
    for parameter in parts.shapes:
        if parts.role_of(parameter) in ("embedding", "final_norm", "head"):
            for node_map in ("hidden", "tiled", "mean", "per_module"):
                got = weights_at(parameter, mixture, family, node_map=node_map)
                np.testing.assert_allclose(got, mixture.weights.double().mean(dim=1, keepdim=True), rtol=1e-15)


def change(kind: str, shape: tuple[int, int], seed: int) -> tuple[Change | None, np.ndarray]:
    """A random change of a [out, in] parameter and what it adds to or puts in the place of the generalist's."""
    rng = np.random.default_rng(seed)
    if kind == "dense":
        tensor = rng.normal(size=shape)
        return Dense(torch.tensor(tensor)), tensor
    up, down = rng.normal(size=(shape[0], 2)), rng.normal(size=(2, shape[1]))
    return (LowRank(torch.tensor(up), torch.tensor(down)), up @ down) if kind == "low_rank" else (None, np.zeros(shape))


@given(
    kinds=st.lists(st.sampled_from(["dense", "low_rank", "none"]), min_size=1, max_size=4),
    mix=st.sampled_from(["specialists", "deltas"]),
    scale=st.sampled_from([0.0, 0.4, 1.0, 2.0]),
    joint=st.booleans(),
    seed=st.integers(0, 99),
)
def test_base_and_parts_sum_to_the_definition(kinds, mix, scale, joint, seed):
    """sum_i W_i theta_i, or theta_G + s sum_i W_i (theta_i - theta_G), written out in NumPy over whole specialists."""
    parameter, shape = "model.layers.1.mlp.down_proj.weight", (16, 40)
    rng = np.random.default_rng(seed)
    scale = 1.0 if mix == "specialists" else scale
    names = [f"{kind}-{i}" for i, kind in enumerate(kinds)]
    mixture = random_mixture(names, anatomy("llama"), seed, joint=joint)
    generalist, changes = rng.normal(size=shape), {}
    for i, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        changes[name] = change(kind, shape, seed + i)
    whole = [added if kind == "dense" else generalist + added for (_, added), kind in zip(changes.values(), kinds, strict=True)]
    weights = mixture.weights.double().numpy()
    if mix == "specialists":
        want = sum(w[:, None] * theta for w, theta in zip(weights, whole, strict=True))
    else:
        want = generalist + scale * sum(w[:, None] * (theta - generalist) for w, theta in zip(weights, whole, strict=True))
    terms = Plan(anatomy("llama"), [mixture], CompositionSettings(mix=mix, scale=scale), LIKE).terms(parameter, lambda n, p: changes[n][0])
    if terms is None:
        np.testing.assert_allclose(want, generalist, atol=1e-5)
        return
    base = terms.base if isinstance(terms.base, float) else terms.base[0][:, None].numpy()
    got = base * generalist
    for part in terms.parts:
        own = part.change.tensor if isinstance(part.change, Dense) else part.change.up @ part.change.down
        got = got + part.weights[0][:, None].numpy() * own.numpy()
    np.testing.assert_allclose(got, want, atol=1e-5)  # columns that sum to 1 up to float32 rounding count as exact


def test_a_parameter_that_no_specialist_changes_is_left_out_but_joint_weights_shrink_it():
    tiny_gpt2, parameter = anatomy(), "transformer.h.4.mlp.c_fc.weight"
    unchanged = lambda name, parameter: None  # noqa: E731
    two_stage = Plan(tiny_gpt2, [random_mixture(("a", "b"), tiny_gpt2, 0)], CompositionSettings(), LIKE)
    assert two_stage.terms(parameter, unchanged) is None
    joint = random_mixture(("a", "b"), tiny_gpt2, 0, joint=True)
    terms = Plan(tiny_gpt2, [joint], CompositionSettings(mix="specialists"), LIKE).terms(parameter, unchanged)
    assert terms is not None
    np.testing.assert_allclose(terms.base[0], joint.weights.double().sum(dim=0).repeat(4), rtol=1e-12)
    deltas = Plan(tiny_gpt2, [joint], CompositionSettings(mix="deltas"), LIKE)
    assert deltas.terms(parameter, unchanged) is None


def test_full_specialists_need_nothing_of_the_generalist():
    tiny_gpt2, parameter = anatomy(), "transformer.h.4.mlp.c_fc.weight"
    mixture = random_mixture(("a", "b", "c"), tiny_gpt2, 3)
    for mix in ("specialists", "deltas"):
        terms = Plan(tiny_gpt2, [mixture], CompositionSettings(mix=mix), LIKE).terms(parameter, lambda n, p: Dense(torch.ones(1)))
        assert terms is not None
        assert terms.base == 0.0


def test_several_mixtures_share_one_plan_with_zeros_for_absent_specialists():
    tiny_gpt2 = anatomy()
    ab, c = random_mixture(("a", "b"), tiny_gpt2, 0), random_mixture(("c",), tiny_gpt2, 1)
    plan = Plan(tiny_gpt2, [c, ab], CompositionSettings(), LIKE)
    assert plan.specialists == ("c", "a", "b")
    terms = plan.terms("transformer.h.0.ln_1.weight", lambda n, p: Dense(torch.ones(1)) if n != "b" else None)
    assert terms is not None
    weights = {part.specialist: part.weights for part in terms.parts}
    assert weights.keys() == {"a", "c"}
    torch.testing.assert_close(weights["a"], torch.stack([torch.zeros(16).double(), ab.weights[0].double()]))
    torch.testing.assert_close(weights["c"][:, 0], torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(terms.base, torch.stack([torch.zeros(16).double(), ab.weights[1].double()]))


def test_weights_that_do_not_fit_are_refused():
    tiny_gpt2 = anatomy()
    with pytest.raises(MismatchError, match=r"\[1, 17\]"):
        Plan(tiny_gpt2, [Mixture.fixed({"a": 1.0}, 17)], CompositionSettings(), LIKE)
    per_module = CompositionSettings(node_map="per_module")
    with pytest.raises(SettingsError, match="per_module=True"):
        Plan(tiny_gpt2, [Mixture.fixed({"a": 1.0}, 16)], per_module, LIKE).terms("transformer.h.0.ln_1.weight", lambda n, p: None)
    short = Mixture(("a",), torch.ones(1, 16), torch.ones(1), {"transformer.h.0.ln_1": torch.ones(1, 15)})
    with pytest.raises(MismatchError, match=r"transformer\.h\.0\.ln_1"):
        Plan(tiny_gpt2, [short], per_module, LIKE).terms("transformer.h.0.ln_1.weight", lambda n, p: None)


def test_the_generalists_own_weight_and_the_mixtures_scale_reach_the_parameters():
    tiny_gpt2, parameter = anatomy(), "transformer.h.4.mlp.c_fc.weight"
    base, own = torch.tensor(0.3), torch.tensor(-1.2)
    change = lambda name, parameter: Dense(own)  # noqa: E731
    one = Mixture.fixed({"a": 0.6}, tiny_gpt2.hidden_size, generalist=0.4)
    for mix in ("specialists", "deltas"):
        terms = Plan(tiny_gpt2, [one], CompositionSettings(mix=mix), LIKE).terms(parameter, change)
        assert terms is not None
        np.testing.assert_allclose(
            (terms.base[0] * base + terms.parts[0].weights[0] * own).numpy(), float(0.4 * base + 0.6 * own), rtol=1e-5
        )
    scaled = Mixture.fixed({"a": 0.6}, tiny_gpt2.hidden_size, generalist=0.4, scale=1.5)
    terms = Plan(tiny_gpt2, [one, scaled], CompositionSettings(scale=2.0), LIKE).terms(parameter, change)
    assert terms is not None
    for row, factor in ((0, 2.0), (1, 3.0)):
        got = terms.base[row] * base + terms.parts[0].weights[row] * own
        np.testing.assert_allclose(got.numpy(), float(base + factor * 0.6 * (own - base)), rtol=1e-4)
    with pytest.raises(SettingsError, match="mixture of deltas"):
        Plan(tiny_gpt2, [scaled], CompositionSettings(mix="specialists"), LIKE)
