"""Is the advice of `asterism compat` right? Case by case, what it says by the texts that choose against what held-out texts show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from asterism.constellation.diagnosis import CLOSE
from asterism.evaluate.candidates import DEFAULT
from asterism.route.advice import BARRIER, ORDER, SIMILAR
from experiments.route.workshop import Workshop

WAYS = ("neither", "merge", "compose", "route")
PROTOCOL = "continuation"
"""What `compat` measures ways by: what the first halves choose, told on the second."""
BARRIERS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
SIMILARS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Thresholds tried."""
Row = dict[str, Any]


def advice_rows(shop: Workshop) -> list[Row]:
    """A row a case: every target with the main experts, and the checkpoints of the curve that have a router."""
    ladder, table, curve = (shop.found(part) for part in ("ladder", "table", "curve"))
    rows = []
    for target in shop.targets.values():
        here = [row for row in [*ladder["rows"], *table["rows"]] if row["target"] == target.name]
        rows.append({"case": target.name, "step": None} | _case(shop.found(f"compat/{target.name}"), here, target.pair))
    for step in shop.recipe.routed_steps if curve else ():
        here = [row for row in curve["rows"] if row["step"] in (0, step)]
        rows.append({"case": "cross", "step": step} | _case(shop.found(f"compat/step-{step}"), here, shop.targets["cross"].pair))
    return rows


def _case(told: Mapping[str, Any], rows: Sequence[Row], pair: Sequence[str]) -> Row:
    """What was advised and by which numbers, what each way loses on held-out texts, and whether the advised one is the best or close."""
    cells = {row["candidate"]: row for row in rows}

    def loss(*names: str) -> float:
        """Of the one of these that loses least on the texts that choose."""
        best = min((cells[name] for name in names), key=lambda row: row.get("chosen", 0.0))
        return float(np.mean(best[PROTOCOL]))

    singles = ("generalist", *(f"expert:{name}" for name in pair))
    measured = {"neither": loss(*singles), "merge": loss("lerp", "slerp"), "compose": loss(DEFAULT), "route": loss("layer")}
    helps = [told["losses"]["generalist"]["loss"] - told["losses"][name]["loss"] > CLOSE for name in pair]
    least = min(way["loss"] for way in told["ways"].values())
    first = next(name for name in ORDER if name in told["ways"] and told["ways"][name]["loss"] <= least + CLOSE)
    return {
        "advice": told["advice"],
        "barrier": told["barriers"]["lerp"]["height"],
        "similar": told["similar"]["target"],
        "both_help": all(helps),
        "settled": first not in ("generalist", "specialist"),
        "measured": measured,
        "right": is_right(told["advice"], measured),
    }


def is_right(advice: str, measured: Mapping[str, float]) -> bool:
    """Whether the way advised loses at most CLOSE more than the best."""
    return measured[advice] <= min(measured.values()) + CLOSE


def calibrated(rows: Sequence[Row]) -> list[Row]:
    """How often each adviser is right: `compat` as it stands, always the same way, and with the thresholds that suit the first seed best.

    Thresholds only speak where no mixture measured is better than a model alone; they are fitted on the first seed and told on the
    others, so with a single seed they are not told.
    """
    if not rows:
        return []
    first = min(row["seed"] for row in rows)
    fitted, others = [row for row in rows if row["seed"] == first], [row for row in rows if row["seed"] != first]
    found = [_told("compat", rows, (row["right"] for row in rows))]
    found += [_told(f"always {way}", rows, (is_right(way, row["measured"]) for row in rows)) for way in WAYS]
    if others:
        best = max(product(BARRIERS, SIMILARS), key=lambda pair: (_count(fitted, *pair), pair == (BARRIER, SIMILAR)))
        for called, pair in (("compat, other seeds", (BARRIER, SIMILAR)), ("compat with fitted thresholds, other seeds", best)):
            told = _told(called, others, (_right(row, *pair) for row in others))
            found.append(told | {"barrier": pair[0], "similar": pair[1]})
    return found


def _right(row: Row, barrier: float, similar: float) -> bool:
    if row["settled"]:
        return row["right"]
    routes = row["both_help"] and row["barrier"] > barrier and row["similar"] >= similar
    return is_right("route" if routes else "neither", row["measured"])


def _count(rows: Sequence[Row], barrier: float, similar: float) -> int:
    return sum(_right(row, barrier, similar) for row in rows)


def _told(adviser: str, rows: Sequence[Row], right: Iterable[bool]) -> Row:
    return {"adviser": adviser, "right": sum(right), "cases": len(rows)}
