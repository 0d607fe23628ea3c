"""Directions and how they overlap: cosines, orthonormal bases, residuals, sparsity. Computed in float64, returned in the input's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from asterism.core.errors import DataError, SettingsError

Orthogonalisation = Literal["gram_schmidt", "lowdin", "none"]

_INSEPARABLE = (
    "the domains are not separable here: give this one other probes, merge it with its neighbour, "
    "add noise to the centroids, or use the orthogonalisation none"
)


def cosine_matrix(x: Tensor) -> Tensor:
    """Cosine of every two rows: x [n, d] -> [n, n]. Raises DataError naming a zero or non-finite row."""
    unit = _unit_rows(x)
    return (unit @ unit.T).clamp(-1, 1).to(x.dtype)


def mean_collinearity(x: Tensor) -> float:
    """Mean cosine over the pairs of different rows of x [n, d], n >= 2 (section 5.1, Table 1)."""
    n = len(x)
    if n < 2:
        raise DataError("Collinearity needs two directions.", met=f"{n} row(s)", mend="give at least two domains")
    total = _unit_rows(x).sum(dim=0)  # the mean over all n^2 pairs is |sum|^2, without the [n, n] matrix
    return float((total @ total - n) / (n * (n - 1)))


def gram_schmidt(x: Tensor) -> Tensor:
    """Orthonormal rows, each the part of its row that no earlier row explains: x [n, d] -> [n, d] (Eq. 3, in the order given).

    By Householder QR, which stays orthonormal for nearly parallel rows where the textbook recurrence does not; the signs are
    those of Eq. 3 (row k of the result points along row k of x). O(n^2 d). Raises DataError naming the first dependent row.
    """
    unit = _unit_rows(x)
    q, r = torch.linalg.qr(unit.T)  # [d, m], [m, n], m = min(n, d)
    left = r.diagonal()
    dependent = (left.abs() <= _negligible(x)).nonzero()
    if len(dependent) or len(x) > len(left):
        raise _dependent(int(dependent[0]) if len(dependent) else len(left))
    return (q * left.sign()).T.to(x.dtype)


def lowdin(x: Tensor, *, nullity: int = 0) -> Tensor:
    """Symmetric orthogonalisation G^(-1/2) x_hat of the normalised rows x_hat, G = x_hat x_hat^T: x [n, d] -> [n, d].

    The orthonormal set nearest to x_hat in the least-squares sense, so no row's place in the order matters (Loewdin 1950).
    `nullity` directions that are known to be missing (1 after centring on the rows' own mean) are left out: the result is then
    the nearest tight frame of rank n - nullity, whose rows are not quite orthogonal.
    By QR and the SVD of its factor, never through G, whose condition is the square of x's. O(n^2 d).
    Raises DataError naming the row that is most nearly a combination of the others.
    """
    unit = _unit_rows(x)
    q, r = torch.linalg.qr(unit.T)  # [d, m], [m, n]
    u, s, vt = torch.linalg.svd(r.T, full_matrices=False)  # [n, m], [m], [m, m]
    rank = len(x) - nullity
    if not 0 < rank <= len(s) or s[rank - 1] <= _negligible(x):
        raise _dependent(int(u[:, min(rank, len(s)) - 1].abs().argmax()))
    return (u[:, :rank] @ (vt[:rank] @ q.T)).to(x.dtype)


def orthogonalise(x: Tensor, method: Orthogonalisation) -> Tensor:
    """Unit rows made from x [n, d]: `gram_schmidt`, `lowdin`, or `none` (only normalised). DataError as those raise."""
    methods: dict[str, Callable[[Tensor], Tensor]] = {"gram_schmidt": gram_schmidt, "lowdin": lowdin, "none": _normalise}
    if method not in methods:
        raise SettingsError("No such orthogonalisation.", met=repr(method), mend="choose from " + ", ".join(methods))
    return methods[method](x)


def residual_norms(x: Tensor) -> Tensor:
    """Share of each row's norm that Gram-Schmidt leaves, in the order given: x [n, d] -> [n], the first 1, a dependent row 0."""
    unit = _unit_rows(x)
    r = torch.linalg.qr(unit.T, mode="r").R  # [m, n]: the rows' coordinates in an orthonormal basis of their span
    left = r.diagonal().abs()
    if len(x) > len(left) or (left <= _negligible(x)).any():
        left = _residuals_one_by_one(r.T, _negligible(x))
    return left.to(x.dtype)


def unique_norms(x: Tensor) -> Tensor:
    """Share of each row's norm that no combination of the others explains: x [n, d] -> [n], whatever the order; a dependent row 0.

    What Gram-Schmidt would leave of the row if it came last: 1 / sqrt((G^-1)_kk), G the Gram matrix of the normalised rows.
    """
    unit = _unit_rows(x)
    r = torch.linalg.qr(unit.T, mode="r").R
    u, s, _ = torch.linalg.svd(r.T)  # [n, n], [m]
    rank = int((s > _negligible(x)).sum())
    inverse = (u[:, :rank] / s[:rank]).square().sum(dim=1)
    entangled = u[:, rank:].norm(dim=1) > 1e-6  # the row takes part in a combination that vanishes
    return torch.where(entangled, 0.0, inverse.clamp_min(1).rsqrt()).to(x.dtype)


def gini(values: Tensor) -> Tensor:
    """Gini coefficient of the sizes |v| along the last axis, [..., n] -> [...]: 0 all equal (or all zero), 1 - 1/n one alone (Table 6)."""
    sizes = values.to(torch.float64).abs().sort(dim=-1).values
    n = sizes.shape[-1]
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    total = sizes.sum(dim=-1)
    uneven = ((2 * ranks - n - 1) * sizes).sum(dim=-1)
    return torch.where(total > 0, uneven / (n * total.clamp_min(torch.finfo(torch.float64).tiny)), 0.0).to(values.dtype)


def _normalise(x: Tensor) -> Tensor:
    return _unit_rows(x).to(x.dtype)


def _unit_rows(x: Tensor) -> Tensor:
    if x.ndim != 2 or not len(x):
        raise DataError("Directions come as rows, at least one.", met=tuple(x.shape), mend="[n, d]")
    wide = x.to(torch.float64)
    bad = (~wide.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise DataError("A direction holds NaN or infinity.", met=f"row {int(bad[0])}", mend="check the model's weights and these probes")
    peak = wide.abs().amax(dim=1, keepdim=True)
    wide = wide / peak.clamp_min(torch.finfo(torch.float64).tiny)  # so that squares neither overflow nor vanish
    norms = wide.norm(dim=1, keepdim=True)
    empty = (norms[:, 0] == 0).nonzero()
    if len(empty):
        mend = "a domain whose centroid equals what centring subtracts has no direction: choose another centring or other probes"
        raise DataError("A direction is zero.", met=f"row {int(empty[0])}", mend=mend)
    return wide / norms


def _negligible(x: Tensor) -> float:
    """Residual of a unit row that rounding alone could leave: input precision, grown with sqrt(d)."""
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    return 16 * torch.finfo(precision).eps * x.shape[1] ** 0.5


def _residuals_one_by_one(rows: Tensor, negligible: float) -> Tensor:
    """Gram-Schmidt, projecting twice, that passes over dependent rows instead of inventing a direction for them."""
    basis, left, found = torch.zeros_like(rows), torch.zeros_like(rows[:, 0]), 0
    for k, row in enumerate(rows):
        for _ in range(2):
            row = row - (basis[:found] @ row) @ basis[:found]
        norm = row.norm()
        if norm > negligible and found < rows.shape[1]:
            basis[found], left[k], found = row / norm, norm, found + 1
    return left


def _dependent(row: int) -> DataError:
    return DataError("A direction is a combination of the others.", met=f"row {row}", mend=_INSEPARABLE)
