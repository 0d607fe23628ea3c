"""Gram matrices of whole tensors: all that a merge by coefficients needs to see of its models, read in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from asterism.core import native
from asterism.core.errors import DataError, MismatchError, UnsupportedError
from asterism.core.sums import CHUNK, chunk_sums, total

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""The dtypes that merging reads."""

_BLOCK = 16 * CHUNK  # elements of a tensor at a time: bounds the float64 temporaries


def gram(tensors: Sequence[Tensor], base: Tensor | None = None, *, by_row: bool = False, name: str = "") -> Tensor:
    """[K, K] float64 on the CPU: inner products <x_i, x_j> of the K tensors, or of tensor - base.

    by_row: [rows, K, K], one matrix for each place along the first axis; a vector is one row. Differences are float32 (float64 where
    an input is), products and sums float64 in the order of `core.sums`, so no number of threads changes a bit.
    Raises MismatchError (no tensors, shapes, devices), UnsupportedError (dtype), DataError (NaN or Inf, in the tensor called `name`).
    """
    tensors = tuple(tensors)
    check(tensors, base)
    rows = tensors[0].shape[0] if by_row and tensors[0].ndim > 1 else 1
    result = torch.zeros(rows, len(tensors), len(tensors), dtype=torch.float64)
    if tensors[0].numel():
        with torch.no_grad():
            ready = len(tensors) <= native.MOST and native.takes(*tensors, *([] if base is None else [base]))
            (gram_native if ready else gram_torch)(result, tensors, base)
        if not result.isfinite().all():
            raise _unusable(tensors, base, name)
    return result if by_row else result[0]


def check(tensors: Sequence[Tensor], base: Tensor | None) -> None:
    """Raise unless there is a tensor, and all (base too) have one shape and device, and floating dtypes."""
    if not tensors:
        raise MismatchError("There is nothing to merge.", met="0 tensors", mend="give at least one")
    given = [*enumerate(tensors), *([] if base is None else [("base", base)])]
    for place, tensor in given:
        if tensor.shape != tensors[0].shape or tensor.device != tensors[0].device:
            met = f"tensor {place} is {list(tensor.shape)} on {tensor.device}, tensor 0 {list(tensors[0].shape)} on {tensors[0].device}"
            raise MismatchError("Tensors to merge differ in shape or device.", met=met, mend="models of one architecture, on one device")
        if tensor.dtype not in FLOATS:
            raise UnsupportedError(
                "Tensors of this dtype cannot be merged.", met=tensor.dtype, mend="one of " + ", ".join(map(str, FLOATS))
            )


def not_finite(name: str) -> DataError:
    """The error for a NaN or Inf among the inputs of the tensor called `name`."""
    return DataError("A weight is not finite (NaN or Inf).", met=name or "one of the tensors", mend="models without NaN and Inf")


def accumulator(*tensors: Tensor) -> torch.dtype:
    """float64 where a tensor is, else float32: what merging computes in."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _unusable(tensors: Sequence[Tensor], base: Tensor | None, name: str) -> DataError:
    if all(bool(tensor.isfinite().all()) for tensor in (*tensors, *([] if base is None else [base]))):
        met = name or "one of the tensors"
        return DataError("Weights are too large for their inner products.", met=met, mend="models whose weights are of usual size")
    return not_finite(name)


# The two paths, of the same bits. out: [rows, K, K] float64, on the CPU.


def gram_native(out: Tensor, tensors: tuple[Tensor, ...], base: Tensor | None) -> None:
    """Contiguous CPU tensors: one pass."""
    i, j = torch.triu_indices(len(tensors), len(tensors))
    out[:, i, j] = out[:, j, i] = total(native.gram_sums(tensors, base, len(out)).mT)


def gram_torch(out: Tensor, tensors: tuple[Tensor, ...], base: Tensor | None) -> None:
    """Any device and layout: blocks in float64."""
    rows, k = out.shape[:2]
    flat = [tensor.reshape(rows, -1) for tensor in tensors]
    origin = None if base is None else base.reshape(rows, -1)
    dtype = accumulator(*tensors, *([] if base is None else [base]))
    columns = flat[0].shape[1]
    some = max(1, _BLOCK // columns)  # rows a block
    for top in range(0, rows, some):
        partial: list[list[Tensor]] = [[] for _ in range(k)]
        for left in range(0, columns, _BLOCK):
            at = slice(top, top + some), slice(left, left + _BLOCK)
            block = torch.stack([x[at].to(dtype) for x in flat])
            if origin is not None:
                block -= origin[at].to(dtype)
            wide = block.double()  # [K, rows, columns]
            for i in range(k):
                partial[i].append(chunk_sums(wide[i] * wide[i:]).cpu())
        sums = [total(torch.cat(blocks, dim=-1)) for blocks in partial]  # for each i: [K - i, rows]
        for i, j in combinations_with_replacement(range(k), 2):
            out[top : top + some, i, j] = out[top : top + some, j, i] = sums[i][j - i]
