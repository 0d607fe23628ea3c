"""The sliced Wasserstein distance is that of sorted projections; a rectified normal sample is at distance about 0 from one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import MismatchError
from asterism.fuse.regulariser import from_rectified_normal, matched, sliced_wasserstein, unit_directions
from tests.fuse import oracles


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_agrees_with_numpy():
    one, other = (torch.randn(13, 5, generator=generator(seed), dtype=torch.float64) for seed in (1, 2))
    directions = unit_directions(5, 7, generator(3)).double()
    got = sliced_wasserstein(one, other, directions)
    assert float(got) == pytest.approx(oracles.sliced_wasserstein(one.numpy(), other.numpy(), directions.numpy()), rel=1e-12)
    unsorted = ((one - other) @ directions).square().mean()
    assert float(got) < 0.9 * float(unsorted)  # the plan is the best one


def test_the_order_of_rows_does_not_matter_and_a_shift_counts_in_full():
    rows, directions = torch.randn(20, 4, generator=generator()), unit_directions(4, 3000, generator(1))
    assert float(sliced_wasserstein(rows, rows.flip(0), directions)) < 1e-12
    shift = torch.tensor([3.0, 0, 0, 0])
    assert float(sliced_wasserstein(rows, rows + shift, directions)) == pytest.approx(9 / 4, rel=0.05)  # mean of (3 cos)^2


def test_directions_have_length_1():
    torch.testing.assert_close(unit_directions(6, 50, generator()).norm(dim=0), torch.ones(50))


def test_it_draws_embeddings_to_the_rectified_normal():
    directions = unit_directions(8, 256, generator(1))
    near = torch.randn(2000, 8, generator=generator(2))
    assert float(from_rectified_normal(near, directions, 0.0, 1.0, generator(3))) < 0.01
    for far in (near + 2, 3 * near):
        assert float(from_rectified_normal(far, directions, 0.0, 1.0, generator(3))) > 0.3
    assert float(from_rectified_normal(2 + 3 * near, directions, 2.0, 3.0, generator(3))) < 0.1


def test_it_has_a_gradient():
    embeddings = (torch.randn(50, 8, generator=generator(2)) + 1).requires_grad_(True)
    from_rectified_normal(embeddings, unit_directions(8, 64, generator(1)), 0.0, 1.0, generator(3)).backward()
    assert np.isfinite(embeddings.grad.numpy()).all()
    assert embeddings.grad.sum() > 0  # downwards


def test_samples_of_unequal_size_are_refused():
    with pytest.raises(MismatchError, match="of one size"):
        sliced_wasserstein(torch.ones(3, 2), torch.ones(4, 2), torch.eye(2))


def test_the_gradient_is_that_of_sorting_and_both_ways_of_matching_agree():
    one = torch.randn(9, 4, generator=generator(1), dtype=torch.float64, requires_grad=True)
    other, directions = torch.randn(9, 4, generator=generator(2), dtype=torch.float64), unit_directions(4, 6, generator(3)).double()
    (got,) = torch.autograd.grad(sliced_wasserstein(one, other, directions), one)
    plain = ((one @ directions).sort(dim=0).values - (other @ directions).sort(dim=0).values).square().mean()
    torch.testing.assert_close(got, torch.autograd.grad(plain, one)[0])
    values, others = (directions.T @ each.detach().T for each in (one, other))
    by_torch = torch.empty_like(others).scatter_(1, values.argsort(dim=1), others.sort(dim=1).values)
    assert torch.equal(matched(values, others), by_torch)
    assert torch.equal(by_torch.sort(dim=1).values, others.sort(dim=1).values)
