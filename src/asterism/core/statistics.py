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


Counts = Sequence[tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]
"""Of each part, what was gained of every text and what could be."""


def bootstrap_ratio(parts: Counts, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """Mean over parts of sum(gained) / sum(possible), and its 95 % percentile bootstrap interval: (value, low, high).

    Texts are drawn again within each part. With gained = 2 hits and possible = given + wanted of each text, a part's value is micro F1.
    A part where nothing is possible counts as 1. Raises DataError for no parts, an empty one, or columns of unequal length.
    """
    value, drawn = _ratios(parts, seed, resamples)
    return _interval(value, drawn)


def ratio_gain(parts: Counts, rivals: Counts, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
    """What `bootstrap_ratio` of the one is above that of the other on the same texts, and its 95 % paired bootstrap interval."""
    if [len(gained) for gained, _ in parts] != [len(gained) for gained, _ in rivals]:
        met = f"{[len(gained) for gained, _ in parts]} and {[len(gained) for gained, _ in rivals]} texts"
        raise DataError("Paired figures come in equal numbers.", met=met, mend="score both on the same texts, in the same order")
    (ours, mine), (theirs, others) = _ratios(parts, seed, resamples), _ratios(rivals, seed, resamples)
    return _interval(ours - theirs, mine - others)


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float | None, float | None]:
    """`bootstrap_mean`, with no interval where there is one value: it says nothing of how far another would lie."""
    mean, low, high = bootstrap_mean(values, seed)
    return (mean, low, high) if len(values) > 1 else (mean, None, None)


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


def _ratios(parts: Counts, seed: int, resamples: int) -> tuple[float, np.ndarray]:
    """The value of `bootstrap_ratio`, and those [resamples] of texts drawn again: the same draw for the same numbers of texts."""
    if not parts:
        raise DataError("There is nothing to average.", met="no parts", mend="give one or more")
    generator, values, drawn = np.random.default_rng(seed), [], []
    for columns in parts:
        gained, possible = _paired(*columns)
        rows = generator.integers(len(gained), size=(resamples, len(gained)))
        values.append(_ratio(gained.sum(), possible.sum()))
        drawn.append(_ratio(gained[rows].sum(axis=1), possible[rows].sum(axis=1)))
    return float(np.mean(values)), np.mean(drawn, axis=0)


def _ratio(gained: np.ndarray, possible: np.ndarray) -> np.ndarray:
    return np.where(possible > 0, gained / np.where(possible > 0, possible, 1), 1.0)


def _interval(value: float, drawn: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value, min(value, float(low)), max(value, float(high))


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
