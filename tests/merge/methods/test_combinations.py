"""Merges by coefficients against vectors written out in NumPy, their geometry by property, and the places where angles give out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import SettingsError
from asterism.merge.methods import METHODS
from tests.merge.methods import oracles


def merge(name, stack, **parameters):
    return METHODS[name].on_stack(torch.as_tensor(stack), **parameters).numpy()


@st.composite
def stacks(draw, least=2, most=4, shape=None):
    """[K, rows, columns] float64, from nearly parallel to nearly orthogonal, of different lengths."""
    k = draw(st.integers(least, most))
    rows, columns = shape or (draw(st.integers(1, 4)), draw(st.integers(2, 6)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stack = rng.normal(size=(k, rows, columns)) + draw(st.floats(0, 3)) * rng.normal(size=(rows, columns))
    return stack * np.exp(rng.normal(size=(k, 1, 1)))


weights = st.lists(st.floats(0.1, 2), min_size=4, max_size=4)


@given(stacks(least=1), weights, st.booleans())
def test_linear(stack, weight, normalize):
    weight = weight[: len(stack)]
    np.testing.assert_allclose(
        merge("linear", stack, weight=weight, normalize=normalize), oracles.linear(stack, weight, normalize), atol=1e-12
    )
    np.testing.assert_allclose(merge("uniform", stack), stack.mean(0), atol=1e-12)


@given(stacks(least=1), weights, st.booleans(), st.floats(-2, 2))
def test_task_arithmetic(deltas, weight, normalize, scale):
    weight = [w * (-1) ** i for i, w in enumerate(weight[: len(deltas)])]
    got = merge("task_arithmetic", deltas, weight=weight, normalize=normalize, **{"lambda": scale})
    want = oracles.task_arithmetic(deltas, weight, normalize, scale)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_weights_that_sum_to_nothing_do_not_divide_task_arithmetic_and_are_refused_by_linear():
    stack = np.random.default_rng(0).normal(size=(3, 2, 2))
    np.testing.assert_array_equal(
        merge("task_arithmetic", stack, weight=[0.3, -0.1, -0.2], normalize=True), merge("task_arithmetic", stack, weight=[0.3, -0.1, -0.2])
    )
    got = merge("task_arithmetic", stack, weight=[1, 1, -2], normalize=True)
    np.testing.assert_allclose(got, stack[0] + stack[1] - 2 * stack[2], atol=1e-12)
    for name in ("linear", "multislerp"):
        with pytest.raises(SettingsError, match=rf"{name}'s weights sum to 0.*\n  met:  \[0.3, -0.1, -0.2\]"):
            merge(name, stack, weight=[0.3, -0.1, -0.2])  # 2.8e-17 in floating point
    np.testing.assert_allclose(merge("linear", stack, weight=[1, 1, -2], normalize=False), got, atol=1e-12)


@given(stacks(most=2), st.floats(0, 1))
def test_lerp_and_slerp(stack, t):
    np.testing.assert_allclose(merge("lerp", stack, t=t), (1 - t) * stack[0] + t * stack[1], atol=1e-12)
    np.testing.assert_allclose(merge("slerp", stack, t=t), oracles.slerp(*stack, t), rtol=1e-9, atol=1e-9)


@given(stacks(most=2), st.floats(0, 1))
def test_slerp_of_equally_long_tensors_keeps_the_length_and_cuts_the_angle(stack, t):
    a, b = stack[0] / np.linalg.norm(stack[0]), stack[1] / np.linalg.norm(stack[1])
    if abs((a * b).sum()) > 0.99:
        return
    got = merge("slerp", np.stack([a, b]), t=t)
    assert np.linalg.norm(got) == pytest.approx(1)
    assert np.arccos(np.clip((got * a).sum(), -1, 1)) == pytest.approx(t * np.arccos((a * b).sum()), abs=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_tensors_on_one_line_are_interpolated_linearly(name):
    a = np.random.default_rng(0).normal(size=(3, 5))
    how = {"t": 0.25} if name == "slerp" else {"weight": [3, 1]}
    for factor in (2.0, 1.0, -1.0, -0.7):
        stack = torch.from_numpy(np.stack([a, factor * a])).float()
        np.testing.assert_allclose(merge(name, stack, **how), (0.75 + 0.25 * factor) * a, atol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "karcher"])
@pytest.mark.parametrize("seed", range(8))
def test_tensors_opposed_but_for_rounding_do_not_blow_up(name, seed):
    a = np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    how = {"slerp": {"t": 0.25}, "nuslerp": {"weight": [3, 1]}, "karcher": {}}[name]
    want = 0.85 * a if name == "karcher" else (0.75 - 0.25 * 0.7) * a
    np.testing.assert_allclose(merge(name, np.stack([a, np.float32(-0.7) * a]), **how), want, atol=1e-6)


@pytest.mark.parametrize("name", ["slerp", "nuslerp"])
def test_a_zero_tensor_counts_as_orthogonal(name):
    a = np.random.default_rng(0).normal(size=(3, 5))
    how = {"t": 0.25} if name == "slerp" else {"weight": [3, 1]}
    np.testing.assert_allclose(merge(name, np.stack([a, 0 * a]), **how), np.sin(0.75 * np.pi / 2) * a, atol=1e-12)
    np.testing.assert_allclose(merge(name, np.stack([0 * a, a]), **how), np.sin(0.25 * np.pi / 2) * a, atol=1e-12)
    np.testing.assert_array_equal(merge(name, np.stack([0 * a, 0 * a]), **how), 0)


@given(stacks(most=2), st.floats(0.1, 2), st.floats(0.1, 2), st.sampled_from([None, -1, 0]))
def test_nuslerp(stack, first, second, axis):
    switches = {"nuslerp_flatten": axis is None, "nuslerp_row_wise": axis == 0}
    got = merge("nuslerp", stack, weight=[first, second], **switches)
    np.testing.assert_allclose(got, oracles.nuslerp(stack, [first, second], axis), rtol=1e-7, atol=1e-7)


def test_nuslerp_takes_vectors_of_any_number_of_axes():
    stack = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
    for shape in ((2, 3, 4), (24,), (2, 12)):
        for axis in (-1, 0):
            got = merge("nuslerp", stack.reshape(2, *shape), weight=[1, 2], nuslerp_flatten=False, nuslerp_row_wise=axis == 0)
            np.testing.assert_allclose(got, oracles.nuslerp(stack.reshape(2, *shape), [1, 2], axis), atol=1e-12)
    scalars = torch.tensor([2.0, 4.0])
    assert float(METHODS["nuslerp"].on_stack(scalars, weight=1, nuslerp_flatten=False)) == pytest.approx(3)


def test_nuslerp_with_weights_that_sum_to_nothing_meets_in_the_middle():
    stack = np.random.default_rng(0).normal(size=(2, 2, 3))
    np.testing.assert_allclose(merge("nuslerp", stack, weight=[1, -1]), merge("nuslerp", stack, weight=[1, 1]), atol=1e-12)


@given(stacks(least=1), weights, st.booleans())
def test_multislerp(stack, weight, normalize):
    weight = weight[: len(stack)]
    got = merge("multislerp", stack, weight=weight, normalize_weights=normalize)
    np.testing.assert_allclose(got, oracles.multislerp(stack, weight, normalize), rtol=1e-6, atol=1e-6)


def test_multislerp_whose_directions_cancel_is_the_weighted_sum():
    a = np.random.default_rng(0).normal(size=(2, 3))
    np.testing.assert_allclose(merge("multislerp", np.stack([a, -3 * a]), weight=1), -a, atol=1e-9)
    third = np.stack([[1.0, 0.0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    np.testing.assert_allclose(merge("multislerp", third * [[1], [2], [4]], weight=1), (third * [[1], [2], [4]]).mean(0), atol=1e-9)
    np.testing.assert_array_equal(merge("multislerp", np.zeros((3, 2, 2)), weight=1), 0)


@given(stacks(least=1))
def test_karcher_stands_still_where_small_steps_do(stack):
    got = merge("karcher", stack, max_iter=100, tol=1e-7)
    want = oracles.karcher(stack) if len(stack) > 1 else stack[0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_karcher_of_two_tensors_is_the_middle_of_their_arc_at_their_mean_length():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 3))
    unit_a, unit_b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    middle = (unit_a + unit_b) / np.linalg.norm(unit_a + unit_b)
    length = (np.linalg.norm(a) + np.linalg.norm(b)) / 2
    np.testing.assert_allclose(merge("karcher", np.stack([a, b])), length * middle, atol=1e-9)
    np.testing.assert_allclose(merge("karcher", 1e-9 * np.stack([a, b])), 1e-9 * length * middle, atol=1e-18)


def test_karcher_where_there_is_no_direction():
    a = np.random.default_rng(0).normal(size=(2, 3))
    np.testing.assert_allclose(merge("karcher", np.stack([0 * a, a, 0 * a])), a / 3, atol=1e-12)
    np.testing.assert_allclose(merge("karcher", np.stack([a, -a])), a, atol=1e-12)
    np.testing.assert_array_equal(merge("karcher", np.zeros((3, 2, 2))), 0)
    np.testing.assert_allclose(merge("karcher", np.stack([a, a]), tol=0), a, atol=1e-9)


@given(stacks())
def test_model_stock_whole_and_by_filter(deltas):
    np.testing.assert_allclose(merge("model_stock", deltas), oracles.model_stock(deltas), rtol=1e-6, atol=1e-6 * np.abs(deltas).max())
    rows = np.stack([oracles.model_stock(deltas[:, i]) for i in range(deltas.shape[1])])
    np.testing.assert_allclose(merge("model_stock", deltas, filter_wise=True), rows, rtol=1e-6, atol=1e-6 * np.abs(deltas).max())


def test_model_stock_does_not_see_the_scale_of_the_deltas():
    deltas = np.random.default_rng(0).normal(size=(3, 4, 4)) + 1
    for factor in (1e-12, 1e12):
        np.testing.assert_allclose(merge("model_stock", factor * deltas) / factor, merge("model_stock", deltas), rtol=1e-9)


def test_model_stock_of_equal_opposed_and_orthogonal_deltas():
    a = np.random.default_rng(0).normal(size=(2, 3))
    np.testing.assert_allclose(merge("model_stock", np.stack([a, a, a])), a, atol=1e-12)
    np.testing.assert_array_equal(merge("model_stock", np.stack([a, -a])), 0)  # 1 + cos = 0
    np.testing.assert_allclose(merge("model_stock", np.eye(2)), 0, atol=1e-12)
    np.testing.assert_allclose(merge("model_stock", np.stack([a, 0 * a])), 0, atol=1e-12)


ALIKE = {"linear": {"weight": [1, 2, -0.5]}, "uniform": {}, "multislerp": {"weight": [1, 2, 3]}, "karcher": {}, "model_stock": {}}


@pytest.mark.parametrize("name", ALIKE)
def test_equal_models_merge_to_themselves(name):
    stack = np.stack([np.random.default_rng(0).normal(size=(4, 4))] * 3)
    np.testing.assert_allclose(merge(name, stack, **ALIKE[name]), stack[0], rtol=1e-7)


@pytest.mark.parametrize("name", ["linear", "uniform", "multislerp", "karcher", "passthrough"])
def test_a_single_model_is_its_own_merge(name):
    stack = torch.randn(1, 3, 4)
    parameters = {"weight": 0.3} if "weight" in METHODS[name].parameters else {}
    assert torch.equal(METHODS[name].on_stack(stack, **parameters), stack[0])


def test_passthrough_scales():
    stack = torch.randn(1, 3, 4)
    assert torch.equal(METHODS["passthrough"].on_stack(stack, scale=-0.5), -0.5 * stack[0])
