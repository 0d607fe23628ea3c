"""Do two rankings agree, and could chance do that? Spearman's rho with exact permutation tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
from scipy.stats import rankdata, spearmanr

from asterism.core.errors import DataError

EXACT_UP_TO = 5040
"""Relabellings up to which all are tried; of more, this many less one are drawn at random."""


@dataclass(frozen=True)
class Agreement:
    """Spearman's rho and the share of relabellings that agree at least as well (one-sided; the one as given counts)."""

    rho: float
    p: float
    relabellings: int
    exact: bool
    n: int
    """Items ranked."""

    def __str__(self) -> str:
        told = f"ρ = {self.rho:.2f} (p = {self.p:.3f}, n = {self.n})"
        return told.replace("-", "−")


def pairs_of(matrix: np.ndarray) -> np.ndarray:
    """[N (N-1) / 2] entries above the diagonal, in the order 01, 02, .., 12, ..."""
    return matrix[np.triu_indices(len(matrix), k=1)]


def same_pairs(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Agreement | None:
    """Do two [N, N] similarity matrices rank the pairs of domains alike? A Mantel test on ranks (Mantel 1967).

    A domain's relabelling moves all its pairs together, so N domains have N! relabellings whatever the number of pairs: with
    four, p cannot fall below 1/24. None for fewer than three domains or pairs that are all alike. DataError for unequal shapes.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise DataError("Similarities come as two square matrices of equal size.", met=f"{a.shape} and {b.shape}", mend="[N, N] each")
    n, mine, theirs = len(a), pairs_of(a), pairs_of(b)
    if n < 3 or np.ptp(mine) == 0 or np.ptp(theirs) == 0:
        return None
    ranks, other = rankdata(mine), np.zeros((n, n))
    other[np.triu_indices(n, k=1)] = rankdata(theirs)
    other += other.T
    tried = (pairs_of(other[np.ix_(order, order)]) for order in _orders(n, seed))
    return _agreement(_rho(mine, theirs), ranks, tried, n, len(mine))


def same_order(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Agreement | None:
    """Do x and y rise together? None for fewer than three pairs or where one of them is constant."""
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(first) != len(second):
        raise DataError("Rankings come in equal lengths.", met=f"{len(first)} and {len(second)}", mend="one value each an item")
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    ranks, other = rankdata(first), rankdata(second)
    tried = (other[list(order)] for order in _orders(len(first), seed))
    return _agreement(_rho(first, second), ranks, tried, len(first), len(first))


def _rho(x: np.ndarray, y: np.ndarray) -> float:
    found: Any = spearmanr(x, y)
    return float(found.statistic)


def _agreement(rho: float, ranks: np.ndarray, tried: Iterable[np.ndarray], items: int, n: int) -> Agreement:
    others = np.array(list(tried))  # [relabellings, n]
    found = (others - others.mean(axis=1, keepdims=True)) @ (ranks - ranks.mean())
    found = found / (others.std(axis=1) * ranks.std() * len(ranks))
    return Agreement(rho, float(np.mean(found >= rho - 1e-9)), len(others), factorial(items) <= EXACT_UP_TO, n)


def _orders(n: int, seed: int) -> Iterator[Sequence[int]]:
    """Every order of n things where they are few, else the given one and a seeded sample."""
    if factorial(n) <= EXACT_UP_TO:
        yield from permutations(range(n))
        return
    random = np.random.default_rng(seed)
    yield list(range(n))
    yield from (random.permutation(n).tolist() for _ in range(EXACT_UP_TO - 1))
