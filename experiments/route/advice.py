"""Is the advice of `asterism compat` right? Case by case, what it says by the texts that choose against what held-out texts show.

Judged among ways that train nothing, which is what `compat` measures; what trained gates lose on the same texts is told beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asterism.constellation.diagnosis import CLOSE
from asterism.evaluate.candidates import DEFAULT
from experiments.route.workshop import Workshop

WAYS = ("neither", "merge", "compose", "route")
UNTRAINED = ("activation", "untrained:prompts", "untrained:average", "untrained:arrow")
"""Gates that nothing trains: one proportion for all tokens, or what the prompts, the activations or the adapters say."""
PROTOCOL = "continuation"
"""What `compat` measures ways by: what the first halves choose, told on the second."""
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
    untrained = [name for name in UNTRAINED if name in cells]  # along the curve gates are not made
    measured = {"neither": loss(*singles), "merge": loss("lerp", "slerp"), "compose": loss(DEFAULT), "route": loss(*untrained)}
    return {
        "advice": told["advice"],
        "barrier": told["barriers"]["lerp"]["height"],
        "similar": told["similar"]["target"],
        "measured": measured,
        "trained": loss("layer"),
        "right": is_right(told["advice"], measured),
    }


def is_right(advice: str, measured: Mapping[str, float]) -> bool:
    """Whether the way advised loses at most CLOSE more than the best."""
    return measured[advice] <= min(measured.values()) + CLOSE


def advisers(rows: Sequence[Row]) -> list[Row]:
    """How often `compat` is right, and how often whoever always says the same; by how much the way followed misses the best one."""
    if not rows:
        return []
    always = [_told(f"always {way}", [(way, row) for row in rows]) for way in WAYS]
    return [_told("compat", [(row["advice"], row) for row in rows]), *always]


def _told(adviser: str, said: Iterable[tuple[str, Row]]) -> Row:
    measured = [(advice, row["measured"]) for advice, row in said]
    missed = [own[advice] - min(own.values()) for advice, own in measured]
    right = sum(is_right(advice, own) for advice, own in measured)
    return {"adviser": adviser, "right": right, "cases": len(measured), "missed": float(np.mean(missed))}
