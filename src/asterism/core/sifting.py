"""Sparse sums of deltas: keep some entries of each model's delta, let signs be elected, add the rest to the base.

What TIES, DARE, Breadcrumbs, DELLA and their kin share. A merge is described by a `SparseSum` and done by `sparse_sum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from asterism.core import native
from asterism.core.draws import below, draws
from asterism.core.errors import MismatchError, UnsupportedError
from asterism.core.gram import FLOATS, accumulator, check, not_finite
from asterism.core.sums import CHUNK, chunk_sums, total

Sift = Literal["none", "magnitude", "outliers", "random", "ranked"]
Consensus = Literal["none", "sum", "count"]
_SIFTS = ("none", "magnitude", "outliers", "random", "ranked")
_CONSENSUS = ("none", "sum", "count")
_BLOCK = 16 * CHUNK  # elements at a time: bounds the wide temporaries
_FEW = 1 << 14  # elements up to which a histogram costs more than a sort
_SMALL = 1e-7  # sums of magnitudes below this are not rescaled to
_NOTHING = 1e-8  # a sum of weights below this does not divide


@dataclass(frozen=True)
class SparseSum:
    """How K deltas become one; the tuples have an entry a model, in the order of the tensors."""

    sift: Sift
    """Which entries stay. magnitude: the largest (TIES); outliers: these but for the very largest (Breadcrumbs); random: each with
    probability density (DARE); ranked: with a probability that grows with the rank in its row (DELLA)."""
    consensus: Consensus
    """Whether only entries of the elected sign take part: that of the sum of the weighted entries, or of most of them; 0 elects +."""
    weight: tuple[float, ...]
    """Factor of each delta."""
    density: tuple[float, ...]
    """Share that stays; 1 or more: all, and nothing is rescaled; 0 or less: nothing."""
    gamma: tuple[float, ...] = ()
    """outliers: the share of very largest entries that goes."""
    epsilon: tuple[float, ...] = ()
    """ranked: the probability rises from density - epsilon to density + epsilon."""
    normalize: bool = False
    """Divide by the sum of the weights; with a consensus, by that of the models taking part in the entry."""
    rescale: bool = False
    """Multiply what stays of a delta so that its sum of magnitudes is what it was."""
    scale: float = 1.0
    """Factor of the merged delta (lambda)."""
    keys: tuple[int, ...] = ()
    """random, ranked: the `stream_key` of each model's draws."""

    def __post_init__(self) -> None:
        if self.sift not in _SIFTS or self.consensus not in _CONSENSUS:
            mend = f"sift one of {', '.join(_SIFTS)}; consensus one of {', '.join(_CONSENSUS)}"
            raise MismatchError("No such sparse sum.", met=f"sift {self.sift!r}, consensus {self.consensus!r}", mend=mend)
        needed = ["density", *{"outliers": ["gamma"], "random": ["keys"], "ranked": ["epsilon", "keys"]}.get(self.sift, [])]
        for each in needed:
            if len(getattr(self, each)) != len(self.weight):
                met = f"{len(self.weight)} weights, {each} of {len(getattr(self, each))}"
                raise MismatchError(f"A sparse sum takes one {each} a model.", met=met, mend="give as many of each")


def sparse_sum(base: Tensor, tensors: Sequence[Tensor], how: SparseSum, out: Tensor, *, name: str = "") -> None:
    """out <- base + merged delta; base and the K tensors of one shape and device, out too, each of any floating dtype.

    delta_i = tensor_i - base; its kept entries (see `kept`), by weight_i and, with rescale, by sum |delta_i| / sum |kept delta_i|.
    With a consensus only entries of the elected sign take part, 0 having none. Their sum, by normalize over the sum of the weights
    that take part (1 where that is 0), times scale. All in float32 (float64 where an input is), rounded once to out's dtype.
    Where it raises for NaN or Inf, out holds nothing of use.
    Sources: TIES arXiv:2306.01708, DARE arXiv:2311.03099, Breadcrumbs arXiv:2312.06795, DELLA arXiv:2406.11617.
    Raises MismatchError (counts, shapes, devices), UnsupportedError (dtype), DataError (NaN or Inf, in the tensor called `name`).
    """
    tensors = tuple(tensors)
    _check(base, tensors, how, out)
    if out.numel() == 0:
        return
    narrow = accumulator(base, *tensors) == torch.float32 and len(tensors) <= native.MOST
    worth = how.sift not in ("magnitude", "outliers") or out.numel() > _FEW
    path = sparse_sum_native if narrow and worth and native.takes(base, *tensors, out) else sparse_sum_torch
    with torch.no_grad():
        path(base, tensors, how, out, name)


def _check(base: Tensor, tensors: tuple[Tensor, ...], how: SparseSum, out: Tensor) -> None:
    check(tensors, base)
    if len(tensors) != len(how.weight):
        met = f"{len(tensors)} tensors, {len(how.weight)} weights"
        raise MismatchError("A sparse sum takes one weight a model.", met=met, mend="give as many of each")
    if out.shape != base.shape or out.device != base.device:
        met = f"out is {list(out.shape)} on {out.device}, base {list(base.shape)} on {base.device}"
        raise MismatchError("out does not fit the tensors.", met=met, mend="one shape and device")
    if out.dtype not in FLOATS:
        raise UnsupportedError("A merge cannot be written in this dtype.", met=out.dtype, mend="one of " + ", ".join(map(str, FLOATS)))


def finite(x: Tensor) -> bool:
    """Whether x holds neither NaN nor Inf."""
    if native.takes(x):
        return native.finite(x)
    return all(bool(piece.isfinite().all()) for piece in x.reshape(-1).split(_BLOCK))


# Which entries stay.


def kept(delta: Tensor, how: SparseSum, place: int) -> Tensor:
    """Bool, like delta: which entries of model `place`'s delta stay; n entries, density and the like those of the model.

    magnitude: the max(1, int(density n)) largest. outliers: without the int(gamma n) largest the next int(density n), or the smallest
    int(density n) where that many are not left. random: where uniform(key, n) < density. ranked: rows along the last axis, entry of
    rank r = 0 .. m-1 from the smallest, where uniform < density - epsilon + 2 epsilon r / (m - 1), for m = 1 < density.
    Of equal magnitudes the earlier in memory counts as the larger.
    """
    n, density = delta.numel(), how.density[place]
    if _whole(how, place):
        return torch.ones_like(delta, dtype=torch.bool)
    if density <= 0 or n == 0:
        return torch.zeros_like(delta, dtype=torch.bool)
    if how.sift in ("magnitude", "outliers"):
        first, last = _cut(how, place, n)
        return largest(delta, last) & ~largest(delta, first)
    drawn = draws(how.keys[place], n, device=delta.device)
    if how.sift == "random":
        return (drawn < below(density)).view(delta.shape)
    rows = delta.reshape(-1, delta.shape[-1] if delta.ndim else 1)
    limits = _chances(rows.shape[1], density, how.epsilon[place]).to(delta.device)
    some = max(1, _BLOCK // rows.shape[1])
    marks = [d < limits[_ranks(row)] for row, d in zip(rows.split(some), drawn.view(rows.shape).split(some), strict=True)]
    return torch.cat(marks).view(delta.shape)


def _whole(how: SparseSum, place: int) -> bool:
    return how.sift == "none" or how.density[place] >= 1


def _cut(how: SparseSum, place: int, n: int) -> tuple[int, int]:
    """magnitude, outliers: the kept entries are the first .. last - 1 (counted from 0) of all, largest first."""
    if how.sift == "magnitude":
        return 0, max(1, int(how.density[place] * n))
    count = max(0, int(how.density[place] * n))
    first = min(max(0, int(how.gamma[place] * n)), n - count)
    return first, first + count


def largest(x: Tensor, k: int) -> Tensor:
    """Bool, like x: the k entries of largest magnitude, exactly k; of equal ones the first in memory order."""
    magnitude = x.reshape(-1).to(accumulator(x)).abs()
    if not 0 < k < len(magnitude):
        return torch.full(x.shape, k > 0, dtype=torch.bool, device=x.device)
    limit = magnitude.kthvalue(len(magnitude) - k + 1).values
    mark, equal = magnitude > limit, magnitude == limit
    mark |= equal & (equal.cumsum(0) <= k - mark.sum())
    return mark.view(x.shape)


def _chances(m: int, density: float, epsilon: float) -> Tensor:
    """[m] int32: what the draw of an entry of rank r must be below, for a row of m."""
    if m == 1:
        return torch.tensor([below(density)], dtype=torch.int32)
    chance = density - epsilon + 2 * epsilon * torch.arange(m, dtype=torch.float64) / (m - 1)
    return (chance * 2.0**24).ceil().clamp(0, 2**24).int()


def _ranks(rows: Tensor) -> Tensor:
    """[r, m] -> [r, m] int64: each entry's place in its row by ascending magnitude, of equal ones the later first."""
    order = rows.abs().flip(1).argsort(dim=1, stable=True)  # places counted from the end
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).flip(1)


# The two paths: what is kept model by model, then the sum. Both trust `_check`, and have the same bits.


def sparse_sum_native(base: Tensor, tensors: tuple[Tensor, ...], how: SparseSum, out: Tensor, name: str) -> None:
    """Contiguous CPU tensors, but for float64: a bit an element and model, no other copies."""
    marks = [None if _whole(how, place) else _marks(base, tensor, how, place, name) for place, tensor in enumerate(tensors)]
    factors = [1.0] * len(tensors)
    for place, mark in enumerate(marks):
        if mark is not None and how.rescale:
            before, after = total(native.weigh(base, tensors[place], mark).T)
            factors[place] = _ratio(before, after)
    if not native.combine(base, tensors, marks, out, consensus=how.consensus, **asdict(_Terms.of(how, factors))):
        raise not_finite(name)


def _marks(base: Tensor, tensor: Tensor, how: SparseSum, place: int, name: str) -> Tensor:
    """As `kept`, a bit an element."""
    n, density = base.numel(), how.density[place]
    if density <= 0:
        return native.no_marks(n)
    if how.sift == "random":
        return native.random_marks(n, how.keys[place], below(density))
    if how.sift == "ranked":
        columns = base.shape[-1] if base.ndim else 1
        return native.ranked_marks(base, tensor, how.keys[place], _chances(columns, density, how.epsilon[place]))
    marks = native.cut_marks(base, tensor, *_cut(how, place, n))
    if marks is None:
        raise not_finite(name)
    return marks


def sparse_sum_torch(base: Tensor, tensors: tuple[Tensor, ...], how: SparseSum, out: Tensor, name: str) -> None:
    """Any device and layout: a bool an element and model, and one delta at a time."""
    dtype = accumulator(base, *tensors)
    masks: list[Tensor | None] = []
    factors: list[float] = []
    for place, tensor in enumerate(tensors):
        delta = tensor.to(dtype) - base.to(dtype)
        if not finite(delta):
            raise not_finite(name)
        mask = None if _whole(how, place) else kept(delta, how, place).reshape(-1)
        masks.append(mask)
        factors.append(1.0 if mask is None or not how.rescale else _rescaling(delta.reshape(-1), mask))
    terms = _Terms.of(how, factors)
    flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
    origin, *others = (tensor.reshape(-1) for tensor in (base, *tensors))
    for begin in range(0, len(flat), _BLOCK):
        at = slice(begin, begin + _BLOCK)
        start = origin[at].to(dtype)
        deltas = [other[at].to(dtype) - start for other in others]
        flat[at] = start + _merged(deltas, [mask if mask is None else mask[at] for mask in masks], terms, how)
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def _rescaling(delta: Tensor, mask: Tensor) -> float:
    whole, rest = [], []
    for piece, mark in zip(delta.split(_BLOCK), mask.split(_BLOCK), strict=True):
        magnitude = piece.abs().double()
        whole.append(chunk_sums(magnitude))
        rest.append(chunk_sums(magnitude * mark))
    return _ratio(total(torch.cat(whole)), total(torch.cat(rest)))


def _ratio(before: Tensor, after: Tensor) -> float:
    """What kept entries are multiplied by so that their magnitudes sum to `before` again; 1 where either sum is next to nothing."""
    return float(before / after) if before >= _SMALL and after >= _SMALL else 1.0


@dataclass(frozen=True)
class _Terms:
    """The numbers that enter the sum: each model's coefficient, its weight in the divisor, and the factor of the whole."""

    coefficient: tuple[float, ...]
    weight: tuple[float, ...]
    divide: bool
    scale: float

    @classmethod
    def of(cls, how: SparseSum, factors: Sequence[float]) -> _Terms:
        """factors: each delta's rescaling. Without a consensus the divisor is one number and enters the coefficients."""
        weighted = tuple(float(w) * f for w, f in zip(how.weight, factors, strict=True))
        if how.consensus != "none":
            return cls(weighted, tuple(map(float, how.weight)), how.normalize, float(how.scale))
        divisor = sum(how.weight) if how.normalize else 1.0
        by = how.scale / (divisor if abs(divisor) >= _NOTHING else 1.0)
        return cls(tuple(w * by for w in weighted), tuple(map(float, how.weight)), False, 1.0)


def _merged(deltas: list[Tensor], masks: list[Tensor | None], terms: _Terms, how: SparseSum) -> Tensor:
    """The merged delta of a block, each step rounded by itself, models in order."""
    weighted = [c * d if m is None else (c * d).where(m, 0.0) for c, d, m in zip(terms.coefficient, deltas, masks, strict=True)]
    result = torch.zeros_like(deltas[0])
    if how.consensus == "none":
        for term in weighted:
            result += term
        return result
    votes = torch.zeros_like(result)
    for term in weighted:
        votes += term if how.consensus == "sum" else term.sign()
    upward, divisor = votes >= 0, torch.zeros_like(result)
    for term, weight in zip(weighted, terms.weight, strict=True):
        part = torch.where(upward, term > 0, term < 0)
        result += term.where(part, 0.0)
        if terms.divide:
            divisor += torch.full_like(term, weight).where(part, 0.0)
    if terms.divide:
        result /= divisor.where(divisor != 0, 1.0)
    return result * terms.scale
