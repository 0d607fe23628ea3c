"""The report's figures, drawn by `asterism.report` from these results: each function gives the panels that have rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asterism.evaluate.answers import ALL
from asterism.report.bars import share_bars
from asterism.report.ladders import ladder
from asterism.report.maps import heat_map
from experiments.fuse.rivals import CONTROL, FUSED, TARGET
from experiments.fuse.setting import SINGLE
from experiments.fuse.summaries import TITLES, VARIED, headings, label, ranked
from experiments.fuse.view import View

FUNCTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Panel:
    """A figure with its heading."""

    title: str
    svg: str


def score_panels(view: View, part: str) -> list[Panel]:
    """Everyone's score in each setting of a part, best first: all tasks together, then each."""
    panels = []
    for own, setting, title in headings(view):
        if own != part:
            continue
        for task in view.tasks(part, setting):
            rows = {name: view.score(part, setting, name, task) for name in ranked(view, part, setting)}
            bars = [(label(name), score.value, score.low, score.high) for name, score in rows.items() if score]
            if not bars:
                continue
            told = title if task == ALL else view.called(task)
            bars.sort(key=lambda bar: -bar[1])
            n = max(score.n for score in rows.values() if score)
            svg = share_bars(bars, title=f"Scores, {title}, {told}", unit=f"score, % (n = {n})", strong=[label(FUSED)])
            panels.append(Panel(told, svg))
    return panels


def gain_panels(view: View) -> list[Panel]:
    """What the fused adapter is above the target and above the control, setting by setting."""
    bars: dict[str, list[tuple[str, float, float, float]]] = {}
    n = 0
    for part, setting, title in headings(view, seeds=False):
        if part in VARIED:
            continue
        for rival in (TARGET, CONTROL):
            row = view.gain(part, setting, FUSED, rival)
            if row and row["gain"] is not None:
                bars.setdefault(f"over the {'target alone' if rival == TARGET else 'control'}", []).append((title, *_points(row)))
                n = max(n, row["n"])
    if not bars:
        return []
    names = [bar[0] for bar in next(iter(bars.values()))]
    title = "What fusing gains"
    return [Panel(title, ladder(bars, title=title, xlabel=f"points (n up to {n})", apart=names))]


def variant_panels(view: View, part: str) -> list[Panel]:
    """What each variant of the single fusion is above the recipe's."""
    rows = [(name, row) for name in view.candidates(part, SINGLE) if name != FUSED and (row := view.gain(part, SINGLE, name, FUSED))]
    bars = [(label(name), *_points(row)) for name, row in rows if row["gain"] is not None]
    if not bars:
        return []
    told, names = f"{TITLES[part]}: gain over the fusion as it is", [bar[0] for bar in bars]
    return [Panel(told, ladder({"": bars}, title=told, xlabel=f"points (n = {rows[0][1]['n']})", apart=names))]


def _points(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """A gain and its interval in points of score, of which a hundred are everything."""
    gain, low, high = (100 * row[part] for part in ("gain", "low", "high"))
    return gain, low, high


def change_panels(view: View) -> tuple[list[Panel], str]:
    """|B_new − B| / |B| by function and setting, the mean over blocks and seeds, and which setting has which number."""
    rows: dict[str, list[float | None]] = {}
    for part, setting, title in headings(view):
        facts = [fact["by_function"] for fact in view.facts(part, setting)] if part not in VARIED else []
        if facts:
            rows[title] = [_mean([fact[function] for fact in facts if fact.get(function) is not None]) for function in FUNCTIONS]
    values = [value for row in rows.values() for value in row if value is not None]
    if not values:
        return [], ""
    title = "Change of B by function"
    shown = [list(column) for column in zip(*rows.values(), strict=True)]
    legend = [f"{number}: {name}" for number, name in enumerate(rows, 1)]
    made = heat_map(
        list(FUNCTIONS), [str(number + 1) for number in range(len(rows))], shown, title=title, unit="|new B − B| / |B|",
        xlabel="setting", high=max(values) or 1.0,
    )  # fmt: skip
    return [Panel(title, made)], f"Mean over blocks and seeds. {'; '.join(legend)}."


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
