"""Products of few rows with a matrix, on CPUs in float32 and float64: one batched product over as many pieces of the matrix as threads.

There a plain product of up to about a hundred rows leaves most of memory's speed unused (1 to 16 rows, 512 x 1360, two threads: 277 to
460 microseconds, in pieces 77 to 303; one row on one thread 279 and 150). Half precision and other devices have kernels of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 128
"""Rows up to which pieces are faster."""
FEWER = 8
"""Rows up to which matrix times rows is faster than rows times matrix."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., in], weight [out, in] -> [..., out]."""
    rows = x.numel() // x.shape[-1]
    pieces = _pieces(weight, rows, 1)
    if not pieces:
        return F.linear(x, weight, bias)
    found = _cut(x.reshape(1, rows, -1), weight[None], pieces).view(*x.shape[:-1], -1)
    return found if bias is None else found.add_(bias)


def batched(x: Tensor, weights: Tensor) -> Tensor:
    """Each matrix with rows of its own: x [c, rows, in], weights [c, out, in] -> [c, rows, out]."""
    pieces = _pieces(weights[0], x.shape[1], len(x))
    return _cut(x, weights, pieces) if pieces else torch.bmm(x, weights.mT)


def _pieces(weight: Tensor, rows: int, count: int) -> int:
    """In how many pieces each of `count` matrices is taken; 0 for a plain product."""
    if rows > FEW or weight.dtype.itemsize < 4 or weight.device.type != "cpu":
        return 0
    threads = max(torch.get_num_threads(), 2 if rows <= FEWER else 1)  # two pieces of few rows are faster on one thread too
    if count % threads == 0 or (count > 1 and not weight.is_contiguous()):  # pieces of several [in, out] would have to be copied
        return int(count > 1)
    return 0 if weight.shape[0] % threads else threads


def _cut(x: Tensor, weights: Tensor, pieces: int) -> Tensor:
    (count, rows, inputs), out = x.shape, weights.shape[1]
    cut = weights.unflatten(1, (pieces, out // pieces)).flatten(0, 1)  # [c pieces, out / pieces, in], a view
    if pieces > 1:
        x = x[:, None].expand(count, pieces, rows, inputs).reshape(count * pieces, rows, inputs)
    if rows <= FEWER:
        found = torch.bmm(cut, x.mT).view(count, out, rows).mT
        return found.contiguous()
    found = torch.bmm(x, cut.mT)
    return found if pieces == 1 else found.view(count, pieces, rows, -1).transpose(1, 2).reshape(count, rows, out)
