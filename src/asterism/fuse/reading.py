"""A fusion's record in words and rows, for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from asterism.models.functions import FUNCTIONS


def by_function(slots: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of function, modules, mean and largest |B_new - B| / |B|, median condition number of B before and after."""
    rows = []
    for function in FUNCTIONS:
        own = [slot for slot in slots if slot["function"] == function]
        if own:
            ratios = [slot["norm_ratio"] for slot in own if slot["norm_ratio"] is not None]
            shown = [f"{mean(ratios):.2%}", f"{max(ratios):.2%}"] if ratios else ["B was zero", ""]
            rows.append([function, str(len(own)), *shown, *(_condition(own, when) for when in ("condition_before", "condition_after"))])
    return rows


def held_out_line(told: Mapping[str, Any]) -> str:
    """What training did to the held-out loss, and of which step the adapter is."""
    if "held_out_loss" not in told:
        return f"{told['examples']['learnt']} examples, none held out"
    counts, before, after = told["examples"], told["start_loss"], told["held_out_loss"]
    kept = "the target as it was: no step was better" if told["best_step"] == 0 else f"step {told['best_step']}"
    return f"{counts['learnt']} examples, {counts['held_out']} held out: {before:.4f} nats a token before, {after:.4f} after ({kept})"


def _condition(slots: Sequence[Mapping[str, Any]], when: str) -> str:
    known = [slot[when] for slot in slots if slot[when] is not None]
    return f"{median(known):.3g}" if known else "none"
