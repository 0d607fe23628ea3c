"""Products of few rows with many matrices (grouped GEMM): out[r] = sum_i w_ri W_i x[r] over the matrices that row r meets, in float32.

A step of a few rows is bound by reading matrices. A small C kernel (`_grouped.c`, built at installation where there is a compiler) reads
each once for all rows that meet it, gathers, weighs and adds on the way, and gives a row the same bits whoever runs beside it; PyTorch's
batched products copy the rows that they gather and take longer (benchmarks/serve.py measures whole steps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from asterism.core.errors import MismatchError
from asterism.core.kernels import kernel
from asterism.core.mixing import backend

_kernel = kernel("_grouped")

LEVELS: tuple[str, ...] = _kernel.levels() if _kernel else ()
"""The instruction sets that kernel and processor share, slowest first; none where there is no kernel."""
FEW = 32
"""Rows of a matrix up to which the kernel is the fastest; beyond, a product that packs its matrix is."""
_OUTPUTS = 4  # that the kernel takes together
_SMALL = 1 << 15  # elements that a thread is worth waking for


def fits(matrix: Tensor) -> bool:
    """Whether the kernel takes a matrix [out, in]: float32 on a CPU that it knows, contiguous, outputs a multiple of 4."""
    plain = matrix.dtype == torch.float32 and matrix.device.type == "cpu" and matrix.is_contiguous()
    return bool(plain and LEVELS and matrix.shape[0] % _OUTPUTS == 0 and matrix.numel() and backend() == "native")


class Meetings:
    """Which of n rows meet which of some matrices, and with what weights: the same for all parameters that are composed alike."""

    def __init__(self, rows: Sequence[Sequence[int]], weights: Tensor | None, n: int) -> None:
        """Matrix i meets rows[i]; `weights` has an entry for each meeting, in that order: [meetings, out], [meetings, 1] where every
        output has the same, None for 1. Raises MismatchError for rows that are not below n, and where weights are fewer or more.
        """
        places = [place for each in rows for place in each]
        if any(not 0 <= place < n for place in places) or (weights is not None and len(weights) != len(places)):
            met = f"{len(places)} meetings of rows {min(places, default=0)} to {max(places, default=0)} of {n}"
            raise MismatchError("Rows or weights do not fit.", met=met, mend="rows below n, and weights for each meeting")
        self.n, self.matrices = n, len(rows)
        self.outputs = None if weights is None or weights.shape[1] == 1 else weights.shape[1]
        """For how many outputs there are weights; None where every output has the same."""
        table = None if weights is None else weights.float().contiguous()
        self._held = torch.tensor([len(each) for each in rows]), torch.tensor(places), table
        self.at = tuple(0 if tensor is None else tensor.data_ptr() for tensor in self._held)


def grouped(matrices: Sequence[Tensor], meetings: Meetings) -> Callable[[Tensor], Tensor]:
    """The product of matrices [out, in] of one shape that `fit`: inputs [n, in] float32 -> [n, out]. No gradient.

    Raises MismatchError for other matrices, counts or shapes.
    """
    alike = all(fits(matrix) and matrix.shape == matrices[0].shape for matrix in matrices)
    if not alike or len(matrices) != meetings.matrices or meetings.outputs not in (None, len(matrices[0])):
        met = f"{len(matrices)} matrices for meetings of {meetings.matrices}, weights for {meetings.outputs or 'all'} outputs"
        raise MismatchError("These matrices cannot be taken together.", met=met, mend="contiguous float32 matrices of one shape")
    return partial(_run, tuple(matrices), tuple(matrix.data_ptr() for matrix in matrices), meetings)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Rows x [n, in] with one matrix that `fits`, [out, in] -> [n, out]. No gradient."""
    return _run((weight,), (weight.data_ptr(),), None, x)


def _run(matrices: tuple[Tensor, ...], at: tuple[int, ...], meetings: Meetings | None, x: Tensor) -> Tensor:
    """`matrices` is held as long as its addresses `at` are used. No meetings: all rows meet them all."""
    outputs, inputs = matrices[0].shape
    n = len(x) if meetings is None else meetings.n
    if x.shape != (n, inputs) or x.dtype != torch.float32:
        raise MismatchError("The inputs do not fit.", met=f"{list(x.shape)} {x.dtype}", mend=f"float32, [{n}, {inputs}]")
    x = x.contiguous()
    out = torch.empty(n, outputs)
    threads = max(1, min(torch.get_num_threads(), len(matrices) * outputs * inputs // _SMALL))
    met, by_output = ((0, 0, 0), False) if meetings is None else (meetings.at, meetings.outputs is not None)
    _kernel.product(len(LEVELS) - 1, out.data_ptr(), x.data_ptr(), at, *met, by_output, n, inputs, outputs, threads)
    return out
