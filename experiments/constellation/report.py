"""One self-contained HTML page from a ladder's results, in the look of `asterism.report`; sections without rows are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asterism.report.findings import PROTOCOLS, TASKS, label, listed
from asterism.report.pages import written
from experiments.constellation import analysis, panels, summaries
from experiments.constellation.claims import judged, where_the_noise_goes
from experiments.constellation.panels import CELLS, RIVALS
from experiments.constellation.targets import POOLED, Target, allowed, kept, passes, target_tables, targets
from experiments.constellation.view import View, measured
from experiments.pages import rendered
from experiments.tables import Table
from experiments.verdicts import by_theme, counted

TITLE = "The constellation paper's claims, tested"


def write(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report of a ladder's results to the file `path`; returns it. StorageError where it cannot be written."""
    return written(html(results), path)


def html(results: Mapping[str, Any]) -> str:
    """The page as a string; equal results give equal text."""
    view, register = View(results), judged(results)
    lead, *more = lines(view)
    return rendered(
        Path(__file__).with_name("ladder.html.j2"),
        title=TITLE,
        lead=lead,
        more=[*more, f"Of {counted(register).replace(':', ',')}."],
        view=view,
        ladder=ladder(view),
        pooled=POOLED,
        plain=panels.PLAIN,
        scales=scales_of(view),
        asked=asked(view),
        passes=passes(len(view.domains)),
        targets=panels.target_panels(view),
        first=panels.collinearity_panels(view),
        rivals=panels.rival_panels(view),
        general=summaries.general(view),
        ideas=panels.idea_panels(view),
        idea_table=summaries.ideas(view.rows("ideas")),
        updating=panels.updating_panels(view),
        updating_table=summaries.updating(view.rows("updating")),
        noise=panels.noise_panels(view),
        noise_words=where_the_noise_goes(view),
        orders=panels.order_panels(view),
        layers=panels.layer_panels(view),
        top_k=panels.k_panels(view),
        sizes=panels.size_panels(view),
        probes=panels.probe_panels(view),
        advisers=panels.adviser_panels(view),
        advice=summaries.advice(view),
        diagnoses=diagnoses(view),
        themes=by_theme(register),
        counted=counted(register),
        tables=all_tables(view),
    )


def lines(view: View) -> list[str]:
    """The findings in words: what the default and the paper's composition beat, from the lowest to the highest rung."""
    if not view.names:
        return ["No rung of this ladder has been evaluated yet."]
    said = [line for candidate, called in CALLED.items() if (line := _beats(view, candidate, called))]
    if outcomes := kept(view):
        each = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        said.append(f"Of {sum(outcomes.values())} targets, each at one rung: {each}.")
    sizes = [rung["parameters"] / 1e6 for rung in view.rungs]
    seeds = f"{len(view.seeds)} seed{'s' if len(view.seeds) > 1 else ''}"
    ladder = f"{len(view.names)} generalists of {min(sizes):.2g} to {max(sizes):.2g} million parameters"
    about = f"Measured on {ladder}, {len(view.domains)} specialists each, {seeds}; shares from the lowest to the highest rung."
    return [*said, about]


def ladder(view: View) -> list[dict[str, Any]]:
    """The rungs as rows: size, steps, collinearity, or why there is nothing of them."""
    return [{**rung, "collinearity": view.collinearity(rung["name"])} for rung in (*view.rungs, *view.diverged)]


def scales_of(view: View) -> list[str]:
    """Columns of a table of targets."""
    return [*view.names, *([POOLED] if len(view.names) > 1 else [])]


def asked(view: View) -> list[dict[str, Any]]:
    """The targets by task and protocol: {title, note, lines}, a line a target with a cell for each of `scales_of`."""
    groups: dict[tuple[str, str], list[Target]] = {}
    for row in targets(view):
        if row.bound is not None:
            groups.setdefault((row.task, row.protocol), []).append(row)
    return [
        {"title": f"{TASKS[task].capitalize()} probes, {protocol}", "note": allowed(rows), "lines": _lines(view, rows)}
        for (task, protocol), rows in groups.items()
    ]


def _lines(view: View, rows: Sequence[Target]) -> list[dict[str, Any]]:
    found = []
    for rival in dict.fromkeys(row.rival for row in rows):
        cells = {row.scale: row for row in rows if row.rival == rival}
        bound = next(iter(cells.values())).bound or 0.0
        what = "mean loss ≤ the ensemble's" if rival is None else f"> {label(rival)}: {100 * bound:.0f} %"
        found.append({"what": what, "cells": [cells.get(scale) for scale in scales_of(view)]})
    return found


def diagnoses(view: View) -> list[dict[str, Any]]:
    """What `diagnose` advises at each rung with its first seed, what geometry alone would, and the reason given."""
    found = [(name, rows[0]) for name in view.names if (rows := view.each_seed("diagnosis", scale=name))]
    return [
        {"rung": name, "geometry": "", **{key: row[key] for key in ("advice", "geometry", "reason") if key in row}} for name, row in found
    ]


def all_tables(view: View) -> list[Table]:
    """The paper's tables for its composition, ours in the same form, ranks, losses, and the sweeps as they stand."""
    tables = [*target_tables(view), *analysis.paper_tables(view)]
    tables += [table for table in (analysis.rank_table(view), analysis.tracking_table(view)) if not table.empty]
    for candidate, protocol in (("default", "whole"), ("paper", "continuation"), ("default", "continuation")):
        told = (analysis.single_domain(view, candidate, protocol), analysis.cross_domain(view, candidate, protocol))
        tables += [table for table in told if not table.empty]
    tables += [table for task, protocol in CELLS if not (table := _losses(view, task, protocol)).empty]
    names = {"calibration": "Calibration", "updating": "Renewing the mixture while a text goes on", "ideas": "Ideas side by side"}
    names |= {"layers": "Layers", "top_k": "K", "probes": "Index probes", "sizes": "Library size"}
    for section, title in names.items():
        if rows := view.rows(section):
            tables.append(analysis.plain_table("All rows", title, rows))
    return tables


CALLED = {"default": "The model that is composed for each text", "paper": "With the paper's settings it"}
PHRASED = {
    "generalist": "the generalist", "task_arithmetic": "task arithmetic at its best scale",
    "best_single": "the best single specialist picked with hindsight", "ensemble": "the weighted ensemble of all specialists",
}  # fmt: skip


def _beats(view: View, candidate: str, called: str) -> str:
    """One sentence for all protocols: the rivals by name for the first, and for the others their shares in the same order."""
    clauses = []
    for protocol, meaning in PROTOCOLS.items():
        rates = {rival: measured(view, lambda name, r=rival, p=protocol: view.win(name, candidate, r, "cross", p)) for rival in RIVALS}
        ranges = {rival: _range([rate.value for rate in found.values()]) for rival, found in rates.items() if found}
        if not ranges:
            continue
        if clauses:
            clauses.append(f"and {listed(list(ranges.values()))} of them in the same order ({meaning})")
        else:
            n = max(rate.n for found in rates.values() for rate in found.values())
            parts = [f"{PHRASED[rival]} on {told}" for rival, told in ranges.items()]
            clauses.append(f"{called} beats {listed(parts)} of {n} texts that need two domains ({meaning})")
    return f"{', '.join(clauses)}." if clauses else ""


def _range(rates: Sequence[float]) -> str:
    low, high = (f"{100 * side(rates):.0f}" for side in (min, max))
    return f"{low if low == high else f'{low} to {high}'} %"


def _losses(view: View, task: str, protocol: str) -> Table:
    where = dict(task=task, protocol=protocol, group="all", seed=view.seed)
    names = dict.fromkeys(row["candidate"] for row in view.rows("losses", **where))
    rows = [(label(c), *(view.loss(name, c, task, protocol) for name in view.names)) for c in names]
    return Table("Mean loss", f"{TASKS[task]} probes, {protocol}", ("candidate", *view.names), tuple(rows), "Nats a token.")
