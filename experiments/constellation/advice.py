"""Is the advice right? Each library's diagnosis, held against what every way to answer lost on the test probes.

Advice counts as right where its way's mean loss, over both tasks and both protocols, is the best or within CLOSE nats a token of it.
Beside it: the advice of geometry alone (the paper's thresholds on collinearity), always composing, and always task arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asterism.constellation.diagnosis import WAYS as MEASURED
from asterism.core.statistics import wilson

CLOSE = 0.01
WAYS = {way: tuple(name.removesuffix("@") for name in names) for way, names in reversed(MEASURED.items())}
"""Advice -> the candidates that follow it, as `diagnose` has it; of several the better one, of scales the best."""
SAID = {"add noise": "compose", "domains not separable": "merge"}
"""Advice that is a way to compose, or to merge, in other words."""


def advice_rows(losses: Sequence[Mapping[str, Any]], diagnoses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a library (scale, seed): what was advised, what each way lost, which was best, and whether each adviser was right.

    `losses`: mean-loss rows of the evaluation; `diagnoses`: rows {scale, seed, advice, geometry}.
    """
    rows = []
    for told in diagnoses:
        ways = way_losses([row for row in losses if (row["scale"], row["seed"]) == (told["scale"], told["seed"])])
        if not ways:
            continue
        best = min(ways, key=lambda way: ways[way])
        advisers: dict[str, str] = {"measured": told["advice"], "geometry": told["geometry"]}
        advisers |= {"always compose": "compose", "always merge": "merge"}
        right = {name: ways[SAID.get(advice, advice)] <= ways[best] + CLOSE for name, advice in advisers.items()}
        rows.append({"scale": told["scale"], "seed": told["seed"], **advisers, "best": best, "losses": ways, "right": right})
    return rows


def way_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Way -> mean over the cells (protocol, task) of the mean loss, of one library's rows."""
    cells: dict[str, list[float]] = {}
    for row in rows:
        if row["group"] == "all":
            cells.setdefault(row["candidate"], []).append(row["loss"])
    means = {name: float(np.mean(values)) for name, values in cells.items()}
    return {way: min(means[name] for name in names if name in means) for way, names in WAYS.items() if any(name in means for name in names)}


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often each adviser was right, over all libraries, with its interval."""
    found = []
    for name in ("measured", "geometry", "always compose", "always merge"):
        if rows:
            rate, low, high = wilson(sum(row["right"][name] for row in rows), len(rows))
            found.append({"adviser": name, "rate": rate, "low": low, "high": high, "n": len(rows)})
    return found
