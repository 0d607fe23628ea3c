"""Products of few rows in pieces are the plain products, however many threads and rows, and copy no matrix."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from asterism.serve.local import thin


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[1, 2, 3, 5], autouse=True)
def threads(request, monkeypatch) -> int:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)
    return request.param


@pytest.mark.parametrize("rows", [1, thin.FEWER, thin.FEWER + 1, thin.FEW + 1])
@pytest.mark.parametrize("outputs_last", [False, True])
def test_plain_products(rows, outputs_last):
    for count in (1, 2, 3):
        weights = drawn(count, 10, 24).mT if outputs_last else drawn(count, 24, 10)
        x = drawn(count, rows, 10, seed=1)
        torch.testing.assert_close(thin.batched(x, weights), torch.bmm(x, weights.mT))
    for shape in ((rows, 10), (rows, 1, 10), (1, rows, 10)):
        x, bias = drawn(*shape, seed=2), drawn(24, seed=3)
        torch.testing.assert_close(thin.linear(x, weights[0], bias), F.linear(x, weights[0], bias))
        torch.testing.assert_close(thin.linear(x, weights[0]), F.linear(x, weights[0]))


def test_half_precision_takes_its_own_kernel():
    x, weight = drawn(4, 10).bfloat16(), drawn(24, 10).bfloat16()
    assert torch.equal(thin.linear(x, weight), F.linear(x, weight))


def test_no_matrix_is_copied(monkeypatch):
    met = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: met.extend((a, b)) or bmm(a, b))
    for weights in (drawn(2, 24, 10), drawn(2, 10, 24).mT, drawn(1, 10, 24).mT):
        for rows in (1, thin.FEWER + 1):
            met.clear()
            thin.batched(drawn(len(weights), rows, 10), weights)
            assert any(each.untyped_storage().data_ptr() == weights.untyped_storage().data_ptr() for each in met)
