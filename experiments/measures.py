"""One measured figure with its interval, as every experiment tells it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from asterism.core.statistics import wilson

Unit = Literal["share", "points", "plain", "nats"]


@dataclass(frozen=True)
class Measure:
    """One measured value. `low` and `high` bound a 95 % interval over probes, pairs or texts, or the range over seeds."""

    value: float
    low: float
    high: float
    n: int
    unit: Unit = "share"
    over: Literal["probes", "pairs", "seeds", "texts"] = "probes"

    def __str__(self) -> str:
        """`93.3 % (88–96)`; `+2.0 points (−3 to 7)`; `0.562 (0.551 to 0.570)`; a single seed has no range."""
        if self.unit == "share":
            digits = 1 if self.over == "seeds" else 0
            told, ends = f"{100 * self.value:.1f} %", f"{100 * self.low:.{digits}f}–{100 * self.high:.{digits}f}"
        elif self.unit == "points":
            told, ends = f"{100 * self.value:+.1f} points", f"{round(100 * self.low)} to {round(100 * self.high)}"
        else:
            told, low, high = (f"{x:.1e}" if 0 < abs(x) < 5e-4 else f"{x:.3f}" for x in (self.value, self.low, self.high))
            ends = f"{low} to {high}"
        return (told if self.over == "seeds" and self.n == 1 else f"{told} ({ends})").replace("-", "−")


def over_seeds(values: Iterable[float], unit: Unit = "plain") -> Measure | None:
    """Mean and range over seeds; None where there are none."""
    found = [float(value) for value in values]
    return Measure(float(np.mean(found)), min(found), max(found), len(found), unit, "seeds") if found else None


def share(rate: float, n: int) -> Measure:
    """A rate with its Wilson interval."""
    value, low, high = wilson(min(max(rate, 0.0), 1.0) * n, n)
    return Measure(value, low, high, n)


def difference(a: Measure, b: Measure) -> Measure:
    """a - b in points, interval by Newcombe's hybrid of the two Wilson intervals (1998, method 10).

    It takes the two for independent; both candidates saw the same probes, so the interval is wider than it need be.
    """
    apart = a.value - b.value
    down = ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    up = ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    return Measure(apart, apart - down, apart + up, min(a.n, b.n), "points", a.over)
