"""Centred kernel alignment of features that are held: exact for linear and RBF kernels, in blocks of rows; and permutation tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Literal, get_args

import torch
from torch import Tensor

from asterism.core.cka import middle
from asterism.core.errors import DataError, MismatchError, SettingsError, UnknownName
from asterism.core.hsic import Estimator, Grams, enough

Kernel = Literal["linear", "rbf"]

BUDGET = 2**22
"""Entries of Gram matrices held at once."""
SAMPLE = 1000
"""Rows whose distances give the median."""
MOST = 5000
"""Rows of a permutation test, which holds whole Gram matrices."""


@dataclass(frozen=True)
class Permutations:
    """What random pairing of the rows gives."""

    mean: float
    sd: float
    p: float
    """(1 + pairings at least as similar) / (1 + pairings): Phipson & Smyth 2010."""


def kernel_cka(x: Tensor, y: Tensor, *, kernel: Kernel = "linear", bandwidth: float = 1.0, estimator: Estimator = "debiased") -> float:
    """CKA of x [n, d] and y [n, e]; row i of both is of one sample. As `kernel_grams` and `Grams.similarity`."""
    return float(kernel_grams([x], [y], kernel=kernel, bandwidth=bandwidth).similarity(estimator))


@torch.no_grad()
def kernel_grams(xs: Sequence[Tensor], ys: Sequence[Tensor] | None = None, *, kernel: Kernel = "linear", bandwidth: float = 1.0) -> Grams:
    """The sums that CKA needs of every layer xs[l] [n, d_l] with every ys[m] [n, e_m], or of the layers xs among themselves.

    Kernel `rbf`: exp(-|a - b|^2 / (2 s^2)), s = bandwidth times the median distance of a layer's rows (of SAMPLE of them, evenly
    spaced). Blocks of the Gram matrices, float64, BUDGET entries at once: O(n^2 d) operations a layer.
    Raises MismatchError (shapes), DataError (fewer than 4 rows, NaN, infinity), UnknownName (kernel), SettingsError (bandwidth).
    """
    layers = [*xs, *(ys or ())]
    _check(layers, kernel, bandwidth)
    sources = [_Source(layer, kernel, bandwidth) for layer in layers]
    n, size, device = len(layers[0]), len(layers), layers[0].device
    inner = torch.zeros(size, size, dtype=torch.float64, device=device)
    rows, own = torch.zeros(2, size, n, dtype=torch.float64, device=device)  # sums and diagonals of the Gram matrices
    step = max(64, int((BUDGET / size) ** 0.5))
    blocks = [slice(top, min(top + step, n)) for top in range(0, n, step)]
    for i, j in combinations_with_replacement(blocks, 2):
        grams = torch.stack([source.block(i, j) for source in sources])  # [S, i, j]
        inner += (1 if i == j else 2) * grams.flatten(1) @ grams.flatten(1).T
        rows[:, i] += grams.sum(dim=2)
        if i == j:
            own[:, i] = grams.diagonal(dim1=1, dim2=2)
        else:
            rows[:, j] += grams.sum(dim=1)
    totals = rows.sum(dim=1)
    own += (totals / n**2)[:, None] - 2 / n * rows  # of the centred matrices
    inner += totals[:, None] * totals / n**2 - 2 / n * rows @ rows.T
    return Grams(n, inner.cpu(), (own @ own.T).cpu(), own.sum(dim=1).cpu(), len(xs))


@torch.no_grad()
def permutation_null(
    x: Tensor,
    y: Tensor,
    *,
    permutations: int = 1000,
    seed: int = 0,
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
    estimator: Estimator = "debiased",
) -> Permutations:
    """How similar x [n, d] and y [n, e] are when their rows are paired at random, from `permutations` drawn pairings.

    Holds two n x n matrices: n is at most MOST (`Grams.null` has the exact moments for any n). A constant side: mean and sd 0, p 1.
    Raises as `kernel_grams`, and DataError for too many rows or no permutations.
    """
    grams = kernel_grams([x], [y], kernel=kernel, bandwidth=bandwidth)
    if len(x) > MOST or permutations < 1:
        mend = f"at most {MOST} rows (Grams.null has exact moments for any number), at least one permutation"
        raise DataError("This permutation test cannot be done.", met=f"{len(x)} rows, {permutations} permutations", mend=mend)
    left, right = (_centred(_Source(layer, kernel, bandwidth).block(slice(None), slice(None)), estimator) for layer in (x, y))
    scale = left.norm() * right.norm()
    if not float(grams.similarity(estimator)):
        return Permutations(0.0, 0.0, 1.0)
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randperm(len(x), generator=generator).to(x.device) for _ in range(permutations))
    found = torch.stack([(left * right[order][:, order]).sum() / scale for order in drawn])
    observed = (left * right).sum() / scale
    above = int((found >= observed - 1e-12).sum())  # the observed pairing itself, drawn again, may be summed in another order
    return Permutations(float(found.mean()), float(found.std(correction=0)), (1 + above) / (1 + permutations))


class _Source:
    """Blocks of the Gram matrix of one layer, up to what centring takes away."""

    def __init__(self, rows: Tensor, kernel: Kernel, bandwidth: float) -> None:
        self.rows, self.rbf = rows, kernel == "rbf"
        self.shift = middle(rows)
        self.scale = 1 / (bandwidth * _median_distance(rows)) if self.rbf else 1.0

    def block(self, i: slice, j: slice) -> Tensor:
        """[i, j] float64: a . b, or exp(...) - 1, whose digits survive a large bandwidth."""
        a, b = ((self.rows[at] - self.shift) * self.scale for at in (i, j))
        products = a @ b.T
        if not self.rbf:
            return products
        squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * products
        return torch.expm1(-squares.clamp_min_(0) / 2)


def _median_distance(rows: Tensor) -> float:
    """Median distance of different rows (of those that are not equal, should half be); 1 where all are equal."""
    sample = rows[torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).long()].double()
    distances = torch.pdist(sample)
    for found in (distances, distances[distances > 0]):
        if len(found) and (distance := float(found.quantile(0.5))):
            return distance
    return 1.0


def _centred(gram: Tensor, estimator: Estimator) -> Tensor:
    """The whole [n, n] matrix, centred on both axes, or U-centred (Song et al. 2012; Szekely & Rizzo 2014)."""
    n, bias = len(gram), estimator == "biased"
    if not bias:
        gram = gram - gram.diag().diag()
    rows = gram.sum(dim=0) / (n if bias else n - 2)
    centred = gram - rows - rows[:, None] + gram.sum() / (n**2 if bias else (n - 1) * (n - 2))
    return centred if bias else centred - centred.diag().diag()


def _check(layers: Sequence[Tensor], kernel: Kernel, bandwidth: float) -> None:
    if kernel not in get_args(Kernel):
        raise UnknownName("kernel", kernel, get_args(Kernel))
    if not bandwidth > 0:
        raise SettingsError("A bandwidth is a positive multiple of the median distance.", met=bandwidth, mend="e.g. 1.0")
    shapes = [tuple(layer.shape) for layer in layers]
    if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise MismatchError("Features do not belong together.", met=f"shapes {shapes}", mend="[n, width] each, of the same n samples")
    enough(len(layers[0]))
    for place, layer in enumerate(layers):
        if not bool(layer.isfinite().all()):
            raise DataError("Features are not finite (NaN or infinity).", met=f"layer {place}", mend="check the model's weights")
