"""Matrices of low rank as two thin factors, up [out, r] and down [r, in], that stand for up @ down: truncated, measured, compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from asterism.core.errors import SettingsError

Factors = tuple[Tensor, Tensor]
"""up [out, r], down [r, in]."""
THIN_SVD = 1024
"""Matrices whose shorter side is at most this take an exact SVD; larger ones a randomised one."""
_FIRST = 64  # singular values that a search by energy starts with, where not all are computed


def nearest_low_rank(delta: Tensor, rank: int) -> Factors:
    """Nearest matrix of rank at most `rank` in Frobenius norm: delta [out, in] -> up [out, r], down [r, in].

    Thin SVD, O(out in min(out, in)); where both sides exceed THIN_SVD a randomised one, seeded, with four power iterations,
    O(out in rank) and within a fraction of a percent of the optimum. Sources: Eckart & Young 1936; Halko et al. 2011.
    """
    return _factors(*_leading(delta, rank), rank)


def nearest_for_energy(delta: Tensor, share: float) -> Factors:
    """The factors of least rank that keep `share` of delta's energy, the sum of its squared singular values (see `rank_for_energy`).

    Where both sides exceed THIN_SVD the values are computed from the largest on until they suffice; the rank found may then be one or
    two more than the least, the share kept is not less. A zero matrix has rank 0.
    """
    total = torch.linalg.vector_norm(delta, dtype=torch.float64).square()
    count = _FIRST
    while True:
        u, s, vt = _leading(delta, count)
        missing = (total - s.double().square().sum()).clamp_min(0).sqrt()  # what was not computed, as one value
        known = s if len(s) == min(delta.shape) else torch.cat([s, missing.to(s.dtype)[None]])
        rank = rank_for_energy(known, share)
        if rank <= len(s):
            return _factors(u, s, vt, rank)
        count *= 2


def rank_for_energy(values: Tensor, share: float) -> int:
    """Least r for which the r largest singular values have `share` of the sum of all squares, 0 < share <= 1.

    values: [n], descending. Values within rounding of zero (n eps times the largest) do not count, so a share of 1 is the numerical rank.
    """
    if not 0 < share <= 1:
        raise SettingsError("Energy is a share of the whole.", met=share, mend="above 0, at most 1; e.g. 0.9")
    if not len(values):
        return 0
    squares = values.double().square()
    squares = squares.where(values > len(values) * torch.finfo(values.dtype).eps * values[0], 0.0)
    missed = squares.flip(0).cumsum(0).flip(0)  # [n]: energy that rank r = 0, 1, ... leaves out
    least = (missed > (1 - share) * missed[0] * (1 + 1e-9)).sum()  # rounding of the share asks for no further rank
    return max(int(least), int(missed[0] > 0))


def shortened(up: Tensor, down: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Nearest factors of rank at most `rank`, and their relative error, without forming up @ down: O((out + in) r^2)."""
    (q_up, r_up), (q_down, r_down) = torch.linalg.qr(up), torch.linalg.qr(down.mT)
    u, s, vt = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    error = (s[rank:].norm() / s.norm()).item() if len(s) > rank and s[0] > 0 else 0.0
    return *_factors(q_up @ u, s, vt @ q_down.mT, rank), error


def size(up: Tensor, down: Tensor) -> float:
    """|up @ down| in Frobenius norm, float64, also where the columns cancel: O((out + in) r^2)."""
    r_up, r_down = (torch.linalg.qr(factor.double(), mode="r").R for factor in (up, down.mT))
    return torch.linalg.matrix_norm(r_up @ r_down.mT).item()


def difference(one: Factors, other: Factors) -> Factors:
    """Factors of the first matrix minus the second, in the wider dtype."""
    dtype = torch.promote_types(one[0].dtype, other[0].dtype)
    up = torch.cat([one[0].to(dtype), -other[0].to(dtype)], dim=1)
    return up, torch.cat([one[1].to(dtype), other[1].to(dtype)])


def products(matrices: Sequence[Factors | None], by: Literal["whole", "up", "down"] = "whole") -> Tensor:
    """[K, K] float64: inner products <x_i, x_j> of K matrices given by their factors, None for zero; no matrix is formed.

    by: "up", [out, K, K], those of each row of the matrices; "down", [in, K, K], those of each column.
    """
    if by == "down":
        return products([None if pair is None else (pair[1].mT, pair[0].mT) for pair in matrices], "up")
    known = {place: (pair[0].double(), pair[1].double()) for place, pair in enumerate(matrices) if pair is not None}
    rows = len(next(iter(known.values()))[0]) if known else 1
    found = torch.zeros(rows, len(matrices), len(matrices), dtype=torch.float64)
    for i, (up, down) in known.items():
        for j, (other_up, other_down) in known.items():
            if i <= j:
                found[:, i, j] = found[:, j, i] = (up @ (down @ other_down.mT) * other_up).sum(1).cpu()
    return found if by == "up" else found.sum(0)


def _leading(delta: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """At least `count` of the leading singular triplets, if there are so many: u [out, n], s [n], vt [n, in]."""
    if min(delta.shape) <= max(THIN_SVD, 2 * count):
        return torch.linalg.svd(delta, full_matrices=False)
    with torch.random.fork_rng(devices=[delta.device] if delta.is_cuda else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(delta, q=min(count + 16, *delta.shape), niter=4)
    return u, s, v.mT


def _factors(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> Factors:
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).contiguous(), (root[:, None] * vt[:rank]).contiguous()
