"""The page of a fusion: what it gains beside its rivals, how far each source was let in, and what became of the target's adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asterism.models.functions import FUNCTIONS
from asterism.report.bars import share_bars
from asterism.report.figures import loss_dots
from asterism.report.findings import listed
from asterism.report.maps import heat_map
from asterism.report.pages import rendered, written
from asterism.report.scores import MEASURES, called, of_all_seeds, ranked, score_tables, task_title, tasks_of, verdict

STRONG = "fused"


def write_fusion(found: Mapping[str, Any], out: str | Path) -> Path:
    """Write a fusion's page to the file `out`; StorageError where it cannot be written.

    found: `stages`, name -> what fusion.json says; `results` of `evaluate.fusion.compare` where it was compared.
    """
    return written(fusion_html(found), out)


def fusion_html(found: Mapping[str, Any]) -> str:
    """The page as a string; equal figures give equal text."""
    results = found.get("results")
    said = [*(verdict(results) if results else []), *_sources(found["stages"])]
    lead, *more = said
    return rendered(
        "fusion.html.j2",
        title="Adapters fused across families",
        lead=lead,
        more=more,
        results=results,
        panels=_panels(results) if results else [],
        losses=_losses(results) if results else "",
        tables=score_tables(results) if results else [],
        names={name: (called(name), about) for name, about in results["candidates"].items()} if results else {},
        answers=results["answers"] if results else [],
        called=called,
        stages=[_stage(name, told) for name, told in found["stages"].items()],
    )


def _sources(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who was let in how far, and how far the adapter moved, in a sentence a stage."""
    said = []
    for name, told in stages.items():
        which = f"In {name} " if len(stages) > 1 else ""
        opened = {source: own["open"] for source, own in told["openness"].items()}
        if opened:
            shown = listed(
                [f"{source} ({100 * share:.0f}\u00a0% open)" for source, share in sorted(opened.items(), key=lambda item: -item[1])]
            )
            gates = f"the gates let in {shown}"
        else:
            gates = f"{listed(list(told['sources']))} came in without gates"
        ratios = [slot["norm_ratio"] for slot in told["slots"] if slot["norm_ratio"] is not None]
        moved = (
            f"; {len(told['slots'])} modules changed, by {100 * sum(ratios) / len(ratios):.1f}\u00a0% of their norm on average"
            if ratios
            else ""
        )
        sentence = f"{which}{gates}{moved}."
        said.append(sentence[0].upper() + sentence[1:])
    return said


def _panels(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each task the candidates' scores as bars, best first."""
    panels = []
    for task in tasks_of(results):
        rows = ranked([row for row in of_all_seeds(results, "scores") if row["task"] == task])
        if rows[0]["score"] is None:
            continue
        bars = [(called(row["candidate"]), row["score"], row["low"], row["high"]) for row in rows]
        measure, n = MEASURES[rows[0]["mark"]], rows[0]["n"]
        svg = share_bars(bars, title=f"Scores on {task}", unit=f"{measure}, % (n = {n})", strong=[called(STRONG)])
        panels.append({"title": task_title(task), "svg": svg})
    return panels


def _losses(results: Mapping[str, Any]) -> str:
    """Mean response losses of all texts, lowest first."""
    task = tasks_of(results)[0]
    rows = sorted((row for row in of_all_seeds(results, "scores") if row["task"] == task), key=lambda row: row["loss"])
    return loss_dots(
        [(called(row["candidate"]), row["loss"], row["loss_low"], row["loss_high"]) for row in rows], rows[0]["n"], [called(STRONG)]
    )


def _stage(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    opened = [(source, own["open"], None, None) for source, own in told["openness"].items()]
    pairs, alignment = len(told["alignment"]["pairs"]), told["alignment"]
    return {
        "name": name,
        "told": told,
        "gates": share_bars(opened, title=f"Gates of {name}", unit="gate entries above 0, %") if opened else "",
        "changes": _changes(told["slots"]),
        "paired": pairs,
        "alone": len(alignment["unpaired_target"]),
        "unused": {source: len(slots) for source, slots in alignment["unpaired_sources"].items() if slots},
    }


def _changes(slots: list[Mapping[str, Any]]) -> str:
    """|B_new - B| / |B| of every module: functions by blocks; empty where every B was zero."""
    known = {(slot["function"], slot["block"]): slot["norm_ratio"] for slot in slots if slot["norm_ratio"] is not None}
    if not known:
        return ""
    rows = [function for function in FUNCTIONS if any(own == function for own, _ in known)]
    blocks = sorted({block for _, block in known})
    values = [[known.get((function, block)) for block in blocks] for function in rows]
    high = max(known.values()) or 1.0
    return heat_map(
        rows,
        [str(block) for block in blocks],
        values,
        title="Change of every module's B",
        unit="|new B − B| / |B|",
        xlabel="block",
        high=high,
    )
