"""Merges that look at every entry, against NumPy and at their edges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.merge.methods import METHODS
from tests.merge.methods import oracles


def merge(name, stack, **parameters):
    return METHODS[name].on_stack(torch.as_tensor(stack), **parameters).numpy()


@st.composite
def deltas(draw, least=1, most=4):
    """[K, rows, columns] float64 with zeros, and with entries that cancel."""
    shape = tuple(draw(st.integers(low, high)) for low, high in ((least, most), (1, 4), (1, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stack = rng.normal(size=shape) * (rng.random(shape) < draw(st.sampled_from([0.4, 1.0])))
    if draw(st.booleans()):
        stack[-1] = -stack[0]
    return stack * draw(st.sampled_from([1.0, 1e-4]))


@given(deltas(most=1), st.floats(0, 2))
def test_nearswap(stack, t):
    np.testing.assert_allclose(merge("nearswap", stack, t=t), oracles.nearswap(stack[0], t), rtol=1e-12)


def test_nearswap_takes_what_is_near_and_steps_by_t_towards_the_rest():
    got = merge("nearswap", torch.tensor([[0.0, 0.5, -0.5, 2.0, -4.0]]), t=1)
    np.testing.assert_allclose(got, [0, 0.5, -0.5, 1, -1])
    np.testing.assert_allclose(merge("nearswap", torch.ones(1, 3), t=0), 0)
    np.testing.assert_allclose(merge("nearswap", torch.tensor([[1e-7, 1e-5]]), t=2e-7), [2e-8, 2e-7], rtol=1e-5)


@given(deltas(), st.sampled_from([0.0, 0.1, 0.5, 0.75, 1.0]))
def test_sce(stack, select_topk):
    np.testing.assert_allclose(merge("sce", stack, select_topk=select_topk), oracles.sce(stack, select_topk), rtol=1e-6, atol=1e-12)


def test_sce_weighs_by_energy_whatever_the_scale():
    stack = np.array([[3.0, 1.0], [1.0, 1.0]])  # sums of squares 10 and 2
    for factor in (1.0, 1e-6):
        np.testing.assert_allclose(merge("sce", factor * stack), factor * np.array([32 / 12, 1]), rtol=1e-9)


def test_sce_selects_an_exact_number_the_first_of_equal_variance():
    stack = np.array([[1.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert merge("sce", stack, select_topk=0.5).tolist() == [1, 1, 0, 0, 0]
    assert merge("sce", stack[:1], select_topk=0.5).tolist() == [0] * 5  # one model has no variance
    assert merge("sce", np.zeros((3, 4))).tolist() == [0] * 4


@given(deltas(), st.floats(0, 1), st.floats(0, 2))
def test_ram_and_ram_plus(stack, r, alpha):
    np.testing.assert_allclose(merge("ram", stack), oracles.ram(stack), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(merge("ramplus_tl", stack, r=r, alpha=alpha), oracles.ram(stack, r=r, alpha=alpha), rtol=1e-9, atol=1e-15)


def test_ram_keeps_what_one_model_changed_and_averages_what_several_did():
    stack = torch.tensor([[4.0, 4.0, 0.0, 1e-6], [2.0, 0.0, 0.0, 0.0], [0.0, 0.0, -3.0, 0.0]])
    np.testing.assert_allclose(merge("ram", stack), [3, 4, -3, 0])
    # model 0: one shared, one own; model 2: none shared
    np.testing.assert_allclose(merge("ramplus_tl", stack, r=0.5, alpha=0.4), [3, 4 * 1.2, -3, 0], rtol=1e-6)


@given(deltas(least=2, most=2))
def test_arcee_fusion(stack):
    stack = np.stack([stack[0], stack[0] + stack[1]])
    np.testing.assert_allclose(merge("arcee_fusion", stack), oracles.arcee_fusion(*stack), atol=1e-12)


def test_arcee_fusion_takes_few_entries_whole_and_leaves_the_rest():
    base, other = torch.randn(64, 64), torch.randn(64, 64)
    got = METHODS["arcee_fusion"].on_stack(torch.stack([base, other]))
    taken = got != base
    np.testing.assert_allclose(got[taken], other[taken], atol=1e-6)
    assert 0 < float(taken.float().mean()) < 0.25
    assert torch.equal(METHODS["arcee_fusion"].on_stack(torch.stack([base, base])), base)
    vector = METHODS["arcee_fusion"].on_stack(torch.randn(2, 100))
    assert vector.shape == (100,)
    assert float(METHODS["arcee_fusion"].on_stack(torch.tensor([1.0, 3.0]))) == 3  # a scalar's row is itself; all are as important


def test_arcee_fusion_tells_rows_apart_that_float32_sums_cannot():
    base = torch.zeros(8, 1000)
    other = base + 1e-4 * torch.randn(8, 1000) * torch.arange(1, 9.0)[:, None]
    got = METHODS["arcee_fusion"].on_stack(torch.stack([base, other]))
    np.testing.assert_array_equal(got, oracles.arcee_fusion(base, other).astype(np.float32))


@pytest.mark.parametrize("name", ["sce", "ram", "ramplus_tl"])
def test_equal_models_and_a_single_one(name):
    stack = torch.randn(3, 4, 5).abs() + 1
    parameters = {"alpha": 0} if name == "ramplus_tl" else {}
    np.testing.assert_allclose(merge(name, stack[:1], **parameters), stack[0], rtol=1e-6)
    np.testing.assert_allclose(merge(name, torch.stack([stack[0]] * 3), **parameters), stack[0], rtol=1e-6)
