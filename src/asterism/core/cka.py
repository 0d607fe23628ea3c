"""Linear centred kernel alignment of layers, streamed: one pass over the features, no row kept, no n x n matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asterism.core.errors import DataError, MismatchError
from asterism.core.hsic import Estimator, Grams, Null

ROWS = 256
"""Rows gathered before they are multiplied: products of a few rows would spend their time on reading the sums."""
_BLOCK = 64
"""Columns a block of a symmetric matrix."""


class LinearCka:
    """CKA of every left layer with every right one, or of the layers of one model with one another, from batches of their features.

    widths: features of each left layer, d_l; others: of each right layer, e_m, or None for one model (half the work).
    Kept are the cross moments X_l^T Y_m, d_l e_m numbers a pair in six bytes each, and a few sums a layer; the arithmetic is float64.
    Of 12 x 12 layers of 768 features that is 0.55 GB; 2 n d_l e_m operations a pair.

        cka = LinearCka([768] * 12, [768] * 12)
        for xs, ys in batches:
            cka.add(xs, ys)
        cka.similarity()
    """

    def __init__(self, widths: Sequence[int], others: Sequence[int] | None = None) -> None:
        self.widths = (*widths, *(others or ()))  # of all layers s: the left ones, then the right ones
        self.lefts = len(widths)
        if not widths or (others is not None and not others):
            raise MismatchError("Similarity needs layers on both sides.", met=f"{widths} and {others}", mend="at least one width a side")
        self._buffers: list[Tensor] = []  # rows not yet multiplied, [ROWS, width] a layer; made with the first batch
        self._shifts: list[Tensor] = []  # what is subtracted before products are taken, so that large means cost no digits
        self._filled = 0

    @torch.no_grad()
    def add(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None) -> None:
        """Take a batch: xs[l] [b, d_l] and ys[m] [b, e_m]; row i of every tensor is of one sample. Batches may be of any sizes.

        The first batch's device and dtype (at least float32) are those of the whole stream. Raises MismatchError for other shapes.
        NaN or infinity: DataError, here or when the result is asked for.
        """
        layers = self._checked(xs, ys)
        if not self._buffers:
            self._prepare(layers[0])
        top = 0
        while top < len(layers[0]):
            some = min(ROWS - self._filled, len(layers[0]) - top)
            for buffer, layer in zip(self._buffers, layers, strict=True):
                buffer[self._filled : self._filled + some].copy_(layer[top : top + some])
            top, self._filled = top + some, self._filled + some
            if self._filled == ROWS:
                self._multiply()

    def similarity(self, estimator: Estimator = "debiased") -> Tensor:
        """CKA so far, [L, M] float64 on the CPU, as `Grams.similarity`. Raises DataError for fewer than 4 samples."""
        return self.grams().similarity(estimator)

    def null(self, estimator: Estimator = "debiased") -> Null:
        """Exact mean and standard deviation under random pairing of the rows, as `Grams.null`."""
        return self.grams().null(estimator)

    @torch.no_grad()
    def grams(self) -> Grams:
        """The sums over centred Gram matrices: exact centring of what was summed about the first rows' mean."""
        if not self._buffers:
            raise DataError("Similarity needs features.", met="no batch", mend="add() some first")
        self._multiply()
        norms = self._norms[:-1, -1]  # [S] sum_i |x_i|^2
        n = self._norms[-1, -1]
        means = [sums[:, -1] / n for sums in self._weighted]
        squares = torch.stack([mean @ mean for mean in means])
        slopes = torch.stack([mean @ sums[:, :-1] for mean, sums in zip(means, self._weighted, strict=True)])  # [S, S]
        inner, crossed = torch.zeros_like(slopes), torch.zeros_like(slopes)
        for s, moments in enumerate(self._cross):
            for t, moment in [(s, self._own[s]), *moments.items()]:
                inner[s, t], crossed[s, t] = moment.square_and_form(means[s], means[t])
                inner[t, s], crossed[t, s] = inner[s, t], crossed[s, t]
        both = squares[:, None] * squares  # what follows is (x - m)(y - k)^T, and |x - m|^2 |y - k|^2, multiplied out and summed
        inner = inner - 2 * n * crossed + n.square() * both
        mixed = slopes - norms * squares[:, None] / 2
        diagonal = self._norms[:-1, :-1] - 2 * (mixed + mixed.T) + 4 * crossed - 3 * n * both
        return Grams(int(n), inner.cpu(), diagonal.cpu(), (norms - n * squares).cpu(), self.lefts)

    def _checked(self, xs: Sequence[Tensor], ys: Sequence[Tensor] | None) -> list[Tensor]:
        layers = [*xs, *(ys or ())]
        found = [tuple(layer.shape) for layer in layers]
        rows = len(layers[0]) if layers and layers[0].ndim else 0
        if len(xs) != self.lefts or found != [(rows, width) for width in self.widths]:
            wanted = f"{self.lefts} left and {len(self.widths) - self.lefts} right layers [b, width], widths {list(self.widths)}"
            raise MismatchError("Features do not fit these layers.", met=f"{len(xs)} left; shapes {found}", mend=wanted)
        return layers

    def _prepare(self, like: Tensor) -> None:
        size, right = len(self.widths), range(self.lefts, len(self.widths))
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        self._buffers = [torch.empty(ROWS, width, dtype=dtype, device=like.device) for width in self.widths]
        wide = like.new_zeros(0, dtype=torch.float64)
        self._room = wide.new_empty(max(self.widths) ** 2)
        self._norms = wide.new_zeros(size + 1, size + 1)  # sum_i w_i w_i^T, w_i = (|x_i|^2 of every layer, 1)
        self._weighted = [wide.new_zeros(width, size + 1) for width in self.widths]  # sum_i x_i w_i^T
        self._own = [_Square(width, wide) for width in self.widths]
        partners = [right or range(s + 1, self.lefts) for s in range(self.lefts)] + [range(0)] * len(right)
        self._cross = [{t: _Moment(self.widths[s], self.widths[t], wide) for t in found} for s, found in enumerate(partners)]

    def _multiply(self) -> None:
        """Add the gathered rows to all sums."""
        if not self._filled:
            return
        raw = [buffer[: self._filled] for buffer in self._buffers]
        self._shifts = self._shifts or [middle(rows) for rows in raw]
        weights = torch.ones(self._filled, len(raw) + 1, dtype=torch.float64, device=raw[0].device)
        for s, shift in enumerate(self._shifts):
            weights[:, s] = (raw[s] - shift).square().sum(dim=1)
        if not bool(weights.isfinite().all()):
            s = int((~weights.isfinite()).any(dim=0).nonzero()[0])
            met = f"left layer {s}" if s < self.lefts else f"right layer {s - self.lefts}"
            raise DataError("Features are not finite (NaN or infinity).", met=met, mend="use a wider dtype, or check the model's weights")
        self._norms.addmm_(weights.T, weights)
        for s, shift in enumerate(self._shifts):
            x = raw[s] - shift  # [rows, d_s] float64, one layer at a time
            self._weighted[s].addmm_(x.T, weights)
            self._own[s].add(x, self._room)
            for t, moment in self._cross[s].items():
                moment.add(x, raw[t] - self._shifts[t], self._room)
        self._filled = 0


class _Moment:
    """sum_i x_i y_i^T, [d, e], in six bytes a number: a float32, and in bfloat16 what it leaves out. Each sum is good to 1e-10."""

    def __init__(self, rows: int, columns: int, like: Tensor) -> None:
        self.high = like.new_zeros(rows, columns, dtype=torch.float32)
        self.low = like.new_zeros(rows, columns, dtype=torch.bfloat16)

    def add(self, x: Tensor, y: Tensor, room: Tensor) -> None:
        """x [b, d], y [b, e] float64; room: float64 to compute in, at least d e."""
        total = torch.mm(x.T, y, out=room[: self.high.numel()].view_as(self.high))
        total += self.high
        total += self.low
        self.high.copy_(total)
        total -= self.high
        self.low.copy_(total)

    def value(self) -> Tensor:
        """[d, e] float64."""
        return self.high.double().add_(self.low)

    def square_and_form(self, a: Tensor, b: Tensor) -> Tensor:
        """[2]: the sum of squared entries, and a^T C b."""
        return _square_and_form(self.value(), a, b)


class _Square:
    """sum_i x_i x_i^T, [d, d]: only its blocks on and above the diagonal."""

    def __init__(self, width: int, like: Tensor) -> None:
        self.strips = [(top, _Moment(min(_BLOCK, width - top), width - top, like)) for top in range(0, width, _BLOCK)]

    def add(self, x: Tensor, room: Tensor) -> None:
        """x [b, d] float64."""
        for top, strip in self.strips:
            strip.add(x[:, top : top + _BLOCK], x[:, top:], room)

    def square_and_form(self, a: Tensor, b: Tensor) -> Tensor:
        """As of the whole symmetric matrix; a = b."""
        both = a.new_zeros(2)
        for top, strip in self.strips:
            whole = strip.value()
            here = slice(top, top + len(whole))
            both += 2 * _square_and_form(whole, a[here], b[top:]) - _square_and_form(whole[:, : len(whole)], a[here], b[here])
        return both


def _square_and_form(whole: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([whole.square().sum(), a @ whole @ b])


def middle(rows: Tensor) -> Tensor:
    """Mean of [n, d] over rows in float64 -> [d]; of constant rows exactly that constant."""
    first = rows[0].double()
    return first + (rows - first).mean(dim=0)
