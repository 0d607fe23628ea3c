"""Low-rank and dense changes against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import MismatchError
from asterism.models.changes import Dense, LowRank, applied


def factors(outputs: int, inputs: int, rank: int, dtype=torch.float64) -> LowRank:
    generator = torch.Generator().manual_seed(outputs + 10 * inputs + 100 * rank)
    return LowRank(
        torch.randn(outputs, rank, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(rank, inputs, generator=generator, dtype=torch.float64).to(dtype),
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0, 1]))
def test_delta_is_the_product_in_the_layout_of_the_parameter(outputs, inputs, rank, axis):
    change = factors(outputs, inputs, rank)
    want = change.up.numpy() @ change.down.numpy()  # [out, in]
    want = want if axis == 0 else want.T
    np.testing.assert_allclose(change.delta(axis).numpy(), want, atol=1e-12)
    assert change.rank == rank
    assert change.shape(axis) == want.shape


def test_applied_adds_in_float32_and_rounds_once():
    base = torch.tensor([[256.0, 1.0]], dtype=torch.bfloat16)
    change = LowRank(torch.tensor([[0.75]], dtype=torch.bfloat16), torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16))
    got = applied(base, change, 0)
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [[256.0, 1.75]]  # 256.75 rounds to 256 in bfloat16, once
    half = LowRank(torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16), torch.tensor([[1.0], [1.0]], dtype=torch.bfloat16))
    assert applied(torch.tensor([[256.0]], dtype=torch.bfloat16), half, 0).item() == 258.0  # adding 1 twice in bfloat16 would stay at 256


def test_applied_keeps_and_replaces():
    base, other = torch.ones(2, 3), torch.zeros(2, 3)
    assert applied(base, None, 0) is base
    assert applied(base, Dense(other), 1) is other
    conv = factors(3, 2, 1, torch.float32)
    torch.testing.assert_close(applied(base, conv, 1), base + (conv.up @ conv.down).T)


def test_factors_that_do_not_fit_are_refused():
    with pytest.raises(MismatchError, match=r"up \[4, 2\], down \[3, 5\]"):
        LowRank(torch.ones(4, 2), torch.ones(3, 5))
    with pytest.raises(MismatchError):
        LowRank(torch.ones(4), torch.ones(1, 5))
