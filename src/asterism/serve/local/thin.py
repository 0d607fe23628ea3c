"""Products of rows with a matrix on CPUs in float32: the fastest kernel for their number.

A few rows are bound by reading the matrix and take the grouped product's kernel (core/grouped.py). More take oneDNN's product where the
processor has AVX-512: PyTorch's own (MKL's) is slower on AMD processors whatever the number of rows, and oneDNN reads a matrix that lies
the other way round no worse. Other dtypes, processors and devices have PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.core import grouped

_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what torch.compile calls; no public name without a layout of its own


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: x [..., in], weight [out, in] -> [..., out]. No gradient."""
    rows = x.numel() // x.shape[-1]
    if rows <= grouped.FEW and grouped.fits(weight):
        found = grouped.linear(x.reshape(rows, -1), weight).view(*x.shape[:-1], -1)
        return found if bias is None else found.add_(bias)
    if _of_onednn(weight):
        return _ONEDNN(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def batched(x: Tensor, weights: Tensor) -> Tensor:
    """Each matrix with rows of its own: x [c, rows, in], weights [c, out, in] -> [c, rows, out]."""
    return linear(x, weights[0]) if len(x) == 1 else torch.bmm(x, weights.mT)


def _of_onednn(weight: Tensor) -> bool:
    fits = weight.dtype == torch.float32 and weight.device.type == "cpu" and _ONEDNN is not None
    return fits and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
