"""Matrices of one shape in one piece of memory, so that one product over many of them needs no copy.

A product of few rows with a matrix is bound by reading the matrix, and one batched product over matrices that lie beside each other
reads them about twice as fast as one product after another does (measured on a CPU in float32, 12 rows each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPARE = 4
"""Empty places behind the first matrices, where memory that is not touched costs nothing."""


@dataclass(frozen=True)
class Run:
    """Matrices that lie beside each other, each the same way on from the last."""

    places: tuple[int, ...]
    """Which ones of those asked about, in memory's order."""
    matrices: Tensor
    """[count, ...]: all of them as one view."""


def room(like: Tensor, count: int, *, woven: bool = False) -> list[Tensor]:
    """Uninitialised places for `count` matrices [a, b] like one, in one allocation.

    woven: row by row beside each other, memory [a, count, b], so that they are also one matrix [a, count b]; otherwise one after another.
    """
    a, b = like.shape
    whole = torch.empty((a, count, b) if woven else (count, a, b), dtype=like.dtype, device=like.device)
    return list(whole.unbind(1 if woven else 0))


def runs(matrices: Sequence[Tensor]) -> list[Run]:
    """Split matrices of one shape into the longest runs that lie beside each other in memory; each in exactly one run."""
    order = sorted(range(len(matrices)), key=lambda place: (_memory(matrices[place]), matrices[place].storage_offset()))
    found: list[list[int]] = []
    for place in order:
        if found and _follows(matrices[found[-1][-1]], matrices[place]):
            found[-1].append(place)
        else:
            found.append([place])
    return [Run(tuple(places), _joined([matrices[place] for place in places])) for places in found]


def woven_whole(run: Run) -> Tensor:
    """A woven run as one matrix [a, count b]."""
    count, a, b = run.matrices.shape
    return run.matrices.as_strided((a, count * b), (run.matrices.stride(1), 1), run.matrices.storage_offset())


def is_woven(matrix: Tensor) -> bool:
    """Whether a matrix lies row by row between others."""
    return not matrix.is_contiguous()


def _memory(matrix: Tensor) -> int:
    return matrix.untyped_storage().data_ptr()


def _step(matrix: Tensor) -> int:
    return matrix.shape[1] if is_woven(matrix) else matrix.numel()


def _follows(one: Tensor, next_: Tensor) -> bool:
    alike = one.shape == next_.shape and one.stride() == next_.stride() and one.dtype == next_.dtype
    return alike and _memory(one) == _memory(next_) and next_.storage_offset() - one.storage_offset() == _step(one)


def _joined(matrices: Sequence[Tensor]) -> Tensor:
    first = matrices[0]
    return first.as_strided((len(matrices), *first.shape), (_step(first), *first.stride()), first.storage_offset())
