"""Sums in a stated order, against that order in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from asterism.core.sums import chunk_sums, total


def oracle(x: np.ndarray) -> float:
    """Chunks of 65536, tiles of 512, rows of 32 lanes: one number after another."""
    result = 0.0
    for chunk in range(0, len(x), 65536):
        lanes = np.zeros(32)
        for tile in range(chunk, min(chunk + 65536, len(x)), 512):
            of_tile = np.zeros(32)
            for row in range(tile, min(tile + 512, len(x)), 32):
                part = x[row : min(row + 32, len(x))]
                of_tile[: len(part)] += part
            lanes += of_tile
        while len(lanes) > 1:
            lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
        result += lanes[0]
    return float(result)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 511, 512, 513, 5000, 65535, 65536, 65537, 200_003])
def test_sums_have_the_bits_of_the_stated_order(n):
    x = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) * 1e3
    got = float(total(chunk_sums(x)))
    assert got == oracle(x.numpy())
    assert got == pytest.approx(math.fsum(x.tolist()), abs=1e-9)
    if n > 5000:
        assert got != float(np.add.accumulate(x.numpy())[-1])  # another order has other bits


def test_leading_axes_are_sums_of_their_own():
    x = torch.randn(2, 3, 70_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = total(chunk_sums(x))
    assert got.shape == (2, 3)
    assert torch.equal(got, torch.tensor([[oracle(row.numpy()) for row in rows] for rows in x], dtype=torch.float64))
