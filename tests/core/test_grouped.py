"""Grouped products are sums of plain ones, on every instruction set, and a row's bits do not depend on its neighbours."""

from __future__ import annotations

import random

import pytest
import torch

from asterism.core import grouped
from asterism.core.errors import MismatchError
from asterism.core.grouped import Meetings

pytestmark = pytest.mark.skipif(not grouped.LEVELS, reason="no kernel for this processor")


@pytest.fixture(params=range(len(grouped.LEVELS)), ids=grouped.LEVELS, autouse=True)
def level(request, monkeypatch):
    monkeypatch.setattr(grouped, "LEVELS", grouped.LEVELS[: request.param + 1])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 4), (15, 8), (37, 20), (64, 64), (512, 516)])
@pytest.mark.parametrize("n", [1, 2, 7, 13, 33])
@pytest.mark.parametrize("kind", ["plain", "by row", "by output"])
def test_sums_of_products(inputs, outputs, n, kind):
    draw = random.Random(f"{inputs} {n}")
    matrices = [drawn(outputs, inputs, seed=seed) for seed in range(4)]
    rows = [sorted(draw.sample(range(n), draw.randint(1, n))) for _ in matrices]
    meetings = sum(map(len, rows))
    weights = {"plain": None, "by row": drawn(meetings, 1, seed=8), "by output": drawn(meetings, outputs, seed=9)}[kind]
    x, want, place = drawn(n, inputs, seed=7), torch.zeros(n, outputs, dtype=torch.float64), 0
    for matrix, own in zip(matrices, rows, strict=True):
        for row in own:
            want[row] += (1 if weights is None else weights[place]) * (matrix.double() @ x[row].double())
            place += 1
    got = grouped.grouped(matrices, Meetings(rows, weights, n))(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


def test_a_row_has_its_own_bits():
    matrices, x = [drawn(20, 37, seed=seed) for seed in range(3)], drawn(16, 37, seed=4)
    weights = drawn(48, 20, seed=5)
    together = grouped.grouped(matrices, Meetings([range(16)] * 3, weights, 16))(x)
    for row in range(16):
        alone = grouped.grouped(matrices, Meetings([[0]] * 3, weights[[row, 16 + row, 32 + row]], 1))(x[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_one_matrix_and_all_rows(monkeypatch):
    weight, x = drawn(1024, 96), drawn(5, 96, seed=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = grouped.linear(x, weight)
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-5, atol=1e-4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(found, grouped.linear(x, weight))


def test_nan_stays_in_its_row():
    x = drawn(3, 16)
    x[1, 3] = float("nan")
    found = grouped.linear(x, drawn(8, 16, seed=1))
    assert found[[0, 2]].isfinite().all()
    assert found[1].isnan().all()


def test_what_does_not_fit(monkeypatch):
    matrix = drawn(8, 16)
    for other in (matrix.double(), drawn(6, 16), drawn(16, 8).T, drawn(0, 16)):
        assert not grouped.fits(other)
    assert grouped.fits(matrix)
    for rows, weights in (([[0, 3]], None), ([[-1]], None), ([[0]], drawn(2, 1))):
        with pytest.raises(MismatchError, match="do not fit"):
            Meetings(rows, weights, 3)
    met = Meetings([[0, 1]], drawn(2, 8), 2)
    for matrices in ([matrix] * 2, [drawn(12, 16)], [matrix.T]):
        with pytest.raises(MismatchError, match="cannot be taken together"):
            grouped.grouped(matrices, met)
    for product in (grouped.grouped([matrix], met), lambda x: grouped.linear(x, matrix)):
        for x in (drawn(2, 15), drawn(2, 16).double(), drawn(16)):
            with pytest.raises(MismatchError, match="inputs do not fit"):
                product(x)
    with pytest.raises(MismatchError, match="inputs do not fit"):
        grouped.grouped([matrix], met)(drawn(3, 16))
    monkeypatch.setenv("ASTERISM_KERNEL", "torch")
    assert not grouped.fits(matrix)
