"""Figures with their uncertainty: win rates, means and correlations, each with a 95 % interval and never without."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from asterism.core.errors import DataError

_Z = NormalDist().inv_cdf(0.975)


def wilson(wins: float, n: int) -> tuple[float, float, float]:
    """Rate and its 95 % Wilson score interval (Wilson 1927): (rate, low, high), 0 <= low <= rate <= high <= 1.

    `wins` may be half an integer (a tie is half a win). Raises DataError unless 0 <= wins <= n and n >= 1.
    """
    if n < 1 or not 0 <= wins <= n:
        raise DataError("A rate needs trials, and no more wins than trials.", met=f"{wins} of {n}", mend="0 <= wins <= n, n >= 1")
    rate, spread = wins / n, _Z**2 / n
    centre = (rate + spread / 2) / (1 + spread)
    half = (rate * (1 - rate) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def win_rate(losses: Sequence[float] | np.ndarray, rival_losses: Sequence[float] | np.ndarray) -> tuple[float, float, float, int]:
    """Share of pairs whose loss is strictly below the rival's, ties counting half: (rate, low, high, n), Wilson interval."""
    ours, theirs = _paired(losses, rival_losses)
    wins = float((ours < theirs).sum() + (ours == theirs).sum() / 2)
    return *wilson(wins, len(ours)), len(ours)


def bootstrap_mean(values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval (Efron 1979): (mean, low, high); the same seed gives the same interval."""
    from scipy.stats import bootstrap

    values = _finite(values)
    mean = float(values.mean())
    if np.ptp(values) == 0:  # one value, or equal ones: resampling has nothing to show
        return mean, mean, mean
    interval = bootstrap((values,), np.mean, n_resamples=resamples, method="percentile", rng=seed).confidence_interval
    return mean, min(mean, float(interval.low)), max(mean, float(interval.high))


def pearson(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Pearson correlation with its 95 % Fisher interval: (r, low, high).

    Where x or y is constant nothing can be measured, and with fewer than four pairs no interval: the interval is then [-1, 1] (and r 0).
    """
    from scipy.stats import pearsonr

    x, y = _paired(x, y)
    if np.ptp(x) <= _level(x) or np.ptp(y) <= _level(y):
        return 0.0, -1.0, 1.0
    result: Any = pearsonr(x, y)
    r = float(result.statistic)
    if len(x) < 4:
        return r, -1.0, 1.0
    if abs(r) >= 1:  # the Fisher interval has no width there
        return r, r, r
    low, high = result.confidence_interval(0.95)
    return r, float(low), float(high)


def _level(x: np.ndarray) -> float:
    """Spread that rounding alone gives numbers of this size."""
    return 1e-13 * float(np.abs(x).max())


def _paired(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = _finite(x), _finite(y)
    if len(x) != len(y):
        raise DataError(
            "Paired figures come in equal numbers.", met=f"{len(x)} and {len(y)}", mend="score both on the same probes, in the same order"
        )
    return x, y


def _finite(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        met = f"{array.size} figures, {int((~np.isfinite(array)).sum())} of them not finite"
        raise DataError("Figures come as a row of finite numbers, at least one.", met=met, mend="look for NaN losses or an empty group")
    return array
