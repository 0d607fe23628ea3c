"""Products are the plain products, whichever kernel takes them: few rows, many rows, either layout, every dtype."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from asterism.core import grouped
from asterism.serve.local import thin


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture(params=["every kernel", "no grouped product", "PyTorch alone"], autouse=True)
def kernels(request, monkeypatch):
    if request.param != "every kernel":
        monkeypatch.setattr(grouped, "LEVELS", ())
    if request.param == "PyTorch alone":
        monkeypatch.setattr(thin, "_ONEDNN", None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, grouped.FEW, grouped.FEW + 1])
@pytest.mark.parametrize("outputs_last", [False, True])
def test_plain_products(rows, outputs_last, dtype):
    near = dict(rtol=2e-2, atol=2e-1) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    for count in (1, 2, 3):
        weights = drawn(count, 10, 24, dtype=dtype).mT if outputs_last else drawn(count, 24, 10, dtype=dtype)
        x = drawn(count, rows, 10, seed=1, dtype=dtype)
        torch.testing.assert_close(thin.batched(x, weights), torch.bmm(x, weights.mT), **near)
    for shape in ((rows, 10), (rows, 1, 10), (1, rows, 10)):
        x, bias = drawn(*shape, seed=2, dtype=dtype), drawn(24, seed=3, dtype=dtype)
        torch.testing.assert_close(thin.linear(x, weights[0], bias), F.linear(x, weights[0], bias), **near)
        torch.testing.assert_close(thin.linear(x, weights[0]), F.linear(x, weights[0]), **near)


def test_inputs_may_be_strided():
    x, weight = drawn(4, 3, 20)[:, 1:2, ::2], drawn(24, 10)
    torch.testing.assert_close(thin.linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
