"""Blocks are cut and put together exactly; a source's form does not depend on how its change was factored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.fuse.blocks import balanced, from_blocks, to_blocks


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 17), st.integers(0, 3))
def test_blocks_put_together_are_the_factor(rows, rank, height, more):
    factor = torch.randn(rows, rank)
    blocks = to_blocks(factor, height, rank + more)
    assert blocks.shape == (-(-rows // height), height, rank + more)
    assert torch.equal(from_blocks(blocks, rows, rank), factor)
    assert blocks.sum().item() == pytest.approx(factor.sum().item(), abs=1e-4)  # the rest is zero
    assert torch.equal(blocks[0, 0, :rank], factor[0])
    if rows > height:
        assert torch.equal(blocks[1, 0, :rank], factor[height])


def drawn(out, inputs, rank, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(out, rank)), rng.normal(size=(rank, inputs))


@pytest.mark.parametrize(("out", "inputs", "rank"), [(9, 7, 3), (7, 9, 1), (3, 8, 5), (8, 3, 5)])
def test_the_balanced_form_is_that_of_a_plain_svd(out, inputs, rank):
    up, down = drawn(out, inputs, rank)
    got_up, got_down = (each.numpy() for each in balanced(torch.tensor(up), torch.tensor(down)))
    u, s, vt = np.linalg.svd(up @ down)
    count = min(out, inputs, rank)
    np.testing.assert_allclose(got_up @ got_down, up @ down, atol=1e-12)
    for place in range(count):
        sign = np.sign(u[np.abs(u[:, place]).argmax(), place])
        np.testing.assert_allclose(got_up[:, place], sign * np.sqrt(s[place]) * u[:, place], atol=1e-10)
        np.testing.assert_allclose(got_down[place], sign * np.sqrt(s[place]) * vt[place], atol=1e-10)


def test_any_factoring_of_one_change_gives_one_form():
    up, down = (torch.tensor(each) for each in drawn(12, 10, 4))
    basis = torch.tensor(np.random.default_rng(1).normal(size=(4, 4)))
    wide = torch.cat([up @ basis, torch.zeros(12, 2, dtype=torch.float64)], dim=1)  # two ranks more that carry nothing
    tall = torch.cat([torch.linalg.solve(basis, down), torch.ones(2, 10, dtype=torch.float64)])
    one, other = balanced(up, down), balanced(wide, tall)
    torch.testing.assert_close(other[0][:, :4], one[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(other[1][:4], one[1], atol=1e-9, rtol=0)
    assert other[0][:, 4:].abs().max() < 1e-6
