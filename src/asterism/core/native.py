"""The C kernel `_sift.c`, a function a pass: Gram matrices and sparse sums read bf16, fp16, fp32 (and fp64) tensors in place.

Built at installation where there is a compiler; without it, and for other devices and layouts, the torch paths of `core.gram` and
`core.sifting` do the same, sparse sums bit for bit. Nothing here checks its arguments.
Marks are [words] int64, a bit an element, the lowest first; zeros past the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asterism.core.kernels import kernel
from asterism.core.mixing import backend
from asterism.core.sums import CHUNK

_kernel = kernel("_sift")

LEVELS: tuple[str, ...] = _kernel.levels() if _kernel else ()
MOST = 16
"""Tensors that one call takes."""

_level = len(LEVELS) - 1  # the best that this processor runs
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_HIGH, _LOW = 16, 15  # bits of a magnitude that the first and the second histogram count by
_LONG = 1 << 31  # elements, from which a histogram's counters might overflow


def takes(*tensors: Tensor) -> bool:
    """Whether the kernel is there and wished for (see core.mixing.backend), and reads or writes such tensors."""
    if backend() != "native" or _kernel is None:
        return False
    return all(x.is_cpu and x.dtype in _DTYPES and x.is_contiguous() and x.numel() < _LONG for x in tensors)


def gram_sums(tensors: Sequence[Tensor], base: Tensor | None, rows: int) -> Tensor:
    """[rows, chunks of a row, pairs] float64: inner products of the tensors (minus base), pairs (0, 0), (0, 1), ... (1, 1), ..."""
    columns, k = tensors[0].numel() // rows, len(tensors)
    sums = torch.empty(rows, -(-columns // CHUNK), k * (k + 1) // 2, dtype=torch.float64)
    wide = any(x.dtype == torch.float64 for x in (*tensors, *([] if base is None else [base])))
    where = (0, 0) if base is None else _source(base)
    _kernel.gram(_level, torch.get_num_threads(), where, _sources(tensors), wide, rows, columns, sums.data_ptr())
    return sums


def finite(x: Tensor) -> bool:
    """Whether x holds neither NaN nor Inf."""
    return _kernel.finite(_level, torch.get_num_threads(), _sources([x]), x.numel())


def draws(key: int, n: int, start: int) -> Tensor:
    """As core.draws.draws."""
    out = torch.empty(n, dtype=torch.int32)
    _kernel.draws(_level, torch.get_num_threads(), n, key, start, out.data_ptr())
    return out


def cut_marks(base: Tensor, tensor: Tensor, first: int, last: int) -> Tensor | None:
    """Marks of the entries of tensor - base that are the first .. last - 1 by magnitude, largest first, of equal ones the earlier
    first; None where a difference is not finite."""
    n = base.numel()
    coarse = _count(base, tensor, _LOW, 1 << _HIGH, -1)
    if coarse[0x7F800000 >> _LOW :].any():
        return None
    fine: dict[int, Tensor] = {}
    limits, needs, cuts = [], [], False
    for k in (last, first):
        if k <= 0:  # none: nothing is above the largest number, and no quota is left
            limits.append(0x7FFFFFFF)
            needs.append(0)
            continue
        above, left = _locate(coarse, k)
        if above not in fine:
            fine[above] = _count(base, tensor, 0, 1 << _LOW, above)
        below, left = _locate(fine[above], left)
        limits.append(above << _LOW | below)
        needs.append(left)
        cuts |= left < int(fine[above][below])
    quota = torch.full((-(-n // CHUNK), 2), CHUNK)
    quota[:, [need == 0 for need in needs]] = 0
    if cuts:
        _kernel.ties(_level, torch.get_num_threads(), _source(base), _sources([tensor]), n, *limits, quota.data_ptr(), 0)
        quota = (torch.tensor(needs) - quota.cumsum(0) + quota).clamp(0, CHUNK)
    marks = _marks(n)
    _kernel.cut(_level, torch.get_num_threads(), _source(base), _sources([tensor]), n, *limits, quota.data_ptr(), marks.data_ptr())
    return marks


def _count(base: Tensor, tensor: Tensor, shift: int, bins: int, prefix: int) -> Tensor:
    """[bins] int64: how many magnitudes above `shift` bits end in each number, of those that begin with `prefix`, or of all for -1."""
    n, threads = base.numel(), torch.get_num_threads()
    threads, shares = min(threads, -(-n // CHUNK)), 4 if prefix < 0 and n > CHUNK else 1
    counts = torch.zeros(threads, shares, bins, dtype=torch.int32)
    _kernel.count(_level, threads, _source(base), _sources([tensor]), n, shift, bins, shares, prefix, counts.data_ptr())
    return counts.view(-1, bins).sum(0)


def _locate(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin of the k-th number, counted from the highest bin, and its place in there, from 1."""
    reached = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(reached, k))
    return len(counts) - 1 - place, k - (int(reached[place - 1]) if place else 0)


def random_marks(n: int, key: int, below: int) -> Tensor:
    """Marks of the places whose draw is less than `below`."""
    marks = _marks(n)
    _kernel.random(_level, torch.get_num_threads(), n, key, below, marks.data_ptr())
    return marks


def ranked_marks(base: Tensor, tensor: Tensor, key: int, chances: Tensor) -> Tensor:
    """Marks of the places whose draw is less than the chance of their rank in tensor - base's row; chances: [columns] int32."""
    columns = len(chances)
    marks = no_marks(base.numel())
    where = _source(base), _sources([tensor]), base.numel() // columns, columns
    _kernel.ranked(_level, torch.get_num_threads(), *where, key, chances.data_ptr(), marks.data_ptr())
    return marks


def weigh(base: Tensor, tensor: Tensor, marks: Tensor) -> Tensor:
    """[chunks, 2] float64: sums of |tensor - base|, of all and of the marked entries."""
    sums = torch.empty(-(-base.numel() // CHUNK), 2, dtype=torch.float64)
    where = _source(base), _sources([tensor]), base.numel()
    _kernel.weigh(_level, torch.get_num_threads(), *where, marks.data_ptr(), sums.data_ptr())
    return sums


def combine(
    base: Tensor,
    tensors: Sequence[Tensor],
    marks: Sequence[Tensor | None],
    out: Tensor,
    *,
    coefficient: Sequence[float],
    weight: Sequence[float],
    consensus: str,
    divide: bool,
    scale: float,
) -> bool:
    """out <- base + merged delta, as core.sifting says; False where a difference was not finite."""
    terms = tuple((0 if m is None else m.data_ptr(), c, w) for m, c, w in zip(marks, coefficient, weight, strict=True))
    vote = {"none": 0, "sum": 1, "count": 2}[consensus]
    where = _source(base), _sources(tensors), _source(out), base.numel()
    fine = _kernel.combine(_level, torch.get_num_threads(), *where, terms, vote, divide, scale)
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)
    return fine


def no_marks(n: int) -> Tensor:
    """Marks of nothing."""
    return _marks(n).zero_()


def _marks(n: int) -> Tensor:
    return torch.empty(-(-n // 512) * 8, dtype=torch.int64)


def _source(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), _DTYPES[tensor.dtype]


def _sources(tensors: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple(map(_source, tensors))
