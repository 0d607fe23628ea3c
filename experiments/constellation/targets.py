"""What a default that wins was asked to reach on test probes, rung by rung, and what it reached.

A win rate meets its target with the lower end of its 95 % interval. With few probes no rate can: n of n has a lower end of its own
(`best_low`), and where that lies below the target the rate alone is judged and the outcome says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from asterism.constellation.settings import MixtureSettings
from asterism.report.findings import TASKS
from experiments.constellation.analysis import Value
from experiments.constellation.view import View
from experiments.measures import Measure, share
from experiments.tables import Table

Outcome = Literal["met", "as far as n allows", "missed", ""]
DEFAULT, REFINED, FAST, ENSEMBLE = "default", "refined", "fast", "ensemble"
RIVALS = ("generalist", "task_arithmetic", "best_single")
WANTED = {
    ("cross", "whole"): (0.99, 0.98, 0.90), ("cross", "continuation"): (0.95, 0.90, 0.65), ("single", "whole"): (1.0, 1.0, 0.70),
    ("single", "continuation"): (None, None, None),
}  # fmt: skip
"""(task, protocol) -> the win rate to reach against each of RIVALS."""
LOSS = {("cross", "whole")}
"""Where the mean loss is to be at or below the ensemble's."""
POOLED = "all rungs"
"""What all rungs give together: the mean over rungs of the rates of the same probes, with the interval of so many probes."""
STEP = 3
"""Passes over the query that a refining gradient step costs: its own forward and a backward, which counts two."""


@dataclass(frozen=True)
class Target:
    """One target at one rung, or over all of them: a win rate against `rival`, or, where that is None, the mean loss."""

    scale: str
    """The rung, or POOLED."""
    task: str
    protocol: str
    rival: str | None
    bound: float | None
    """The win rate to reach; for the loss, the ensemble's mean. None: measured, but nothing was asked."""
    default: Measure
    refined: Measure | None
    fast: Measure | None
    ensemble: Measure | None
    """The same figure of the ensemble: its win rate against the rival, or its mean loss."""
    best_low: float | None
    """The lower end of n of n; None for the loss."""

    @property
    def reachable(self) -> bool:
        """Whether so few probes let an interval's lower end come so high."""
        return self.bound is None or self.best_low is None or self.best_low >= self.bound

    @property
    def outcome(self) -> Outcome:
        """Of the default; empty where nothing was asked."""
        return self.outcome_of(self.default)

    def outcome_of(self, found: Measure | None) -> Outcome:
        """The same for another candidate's figure."""
        if self.bound is None or found is None:
            return ""
        if self.rival is None:
            return "met" if found.value <= self.bound else "missed"
        if self.reachable:
            return "met" if found.low >= self.bound else "missed"
        return "as far as n allows" if found.value >= self.bound else "missed"


def targets(view: View) -> list[Target]:
    """Every target at every rung and, with several rungs, over all; rungs, tasks and rivals without rows are left out."""
    found = []
    for task, protocol in WANTED:
        for rival in (*RIVALS, None):
            rows = [row for name in view.names if (row := _target(view, name, task, protocol, rival))]
            found += [*rows, _together(rows)] if len(rows) > 1 else rows
    return found


def kept(view: View) -> dict[str, int]:
    """Outcome -> how many of the targets have it, rung by rung; outcomes without any are left out."""
    outcomes = [row.outcome for row in targets(view) if row.scale != POOLED]
    return {outcome: outcomes.count(outcome) for outcome in ("met", "as far as n allows", "missed") if outcome in outcomes}


def target_tables(view: View) -> list[Table]:
    """A table for each task and protocol: a line for each target and candidate, a column for each rung and for POOLED.

    The default's cells say what came of them.
    """
    found = targets(view)
    tables = []
    for task, protocol in WANTED:
        here = [row for row in found if (row.task, row.protocol) == (task, protocol)]
        scales = list(dict.fromkeys(row.scale for row in here))
        lines = [line for rival in (*RIVALS, None) for line in _lines([row for row in here if row.rival == rival], scales)]
        if lines:
            title = f"{TASKS[task].capitalize()} probes, {protocol}"
            tables.append(Table("Targets", title, ("", *scales), tuple(lines), f"{allowed(here)} Losses in nats a token.", 1))
    return tables


def mixed(view: View, rung: str) -> str | None:
    """Which parameters the default mixes at a rung, `all parameters (100%)`, from its own description."""
    line = view.results.get("candidates", {}).get(rung, {}).get(DEFAULT, "")
    found = re.search(r"((?:all parameters|(?:the last \d+ )?blocks[^;]*?) \(\d+%) of the parameters\)", line)
    return f"{found[1]})" if found else None


def passes(specialists: int, top_k: int | None = None) -> list[dict[str, str | int]]:
    """What a query costs in passes of one model: rows {candidate, reading, query, token}, `reading` being what the first figure counts.

    `query`: passes over the query until it is known how to answer; `token`: passes for each token generated.
    """
    k = min(MixtureSettings().top_k if top_k is None else top_k, specialists)
    ways = (
        (DEFAULT, "generalist and K specialists", 1 + k, 1),
        (FAST, "generalist", 1, 1),
        (REFINED, "as the default, and a gradient step", 1 + k + STEP, 1),
        (ENSEMBLE, "every specialist", specialists, specialists),
    )
    return [{"candidate": name, "reading": what, "query": query, "token": token} for name, what, query, token in ways]


def _lines(rows: Sequence[Target], scales: Sequence[str]) -> list[tuple[Value, ...]]:
    """The lines of one target: default, refined and fast, and for the loss the ensemble."""
    if not rows:
        return []
    at = {row.scale: row for row in rows}
    rival = rows[0].rival
    asked = "mean loss" if rival is None else f"> {rival.replace('_', ' ')}"
    bound = rows[0].bound
    if bound is not None:
        asked += ", at most the ensemble's" if rival is None else f", {100 * bound:.0f} %"
    lines: list[tuple[Value, ...]] = [(f"{asked}: default", *(_told(at.get(scale)) for scale in scales))]
    for who in (REFINED, FAST, *([ENSEMBLE] if rival is None else [])):
        cells = [getattr(at[scale], who) if scale in at else None for scale in scales]
        lines += [(f"{asked.split(',')[0]}: {who}", *cells)] if any(cells) else []
    return lines


def _told(row: Target | None) -> str | None:
    return row and " ".join(filter(None, (str(row.default), row.outcome)))


def allowed(rows: Sequence[Target]) -> str:
    """What so few probes allow, in words."""
    best = {row.default.n: row.best_low for row in rows if row.best_low is not None}
    return " ".join(f"With n = {n} the lower end of a rate of 100 % is {100 * low:.1f} %." for n, low in best.items())


def _target(view: View, name: str, task: str, protocol: str, rival: str | None) -> Target | None:
    everyone = (DEFAULT, REFINED, FAST, ENSEMBLE)
    if rival is None:
        own, refined, fast, ensemble = (view.loss(name, candidate, task, protocol) for candidate in everyone)
        bound = ensemble.value if ensemble and (task, protocol) in LOSS else None
    else:
        own, refined, fast, ensemble = (view.win(name, candidate, rival, task, protocol) for candidate in everyone)
        bound = WANTED[task, protocol][RIVALS.index(rival)]
    if own is None:
        return None
    best = None if rival is None else share(1.0, own.n).low
    return Target(name, task, protocol, rival, bound, own, refined, fast, ensemble, best)


def _together(rows: Sequence[Target]) -> Target:
    """All rungs: every probe counted once, by the mean over rungs; the interval of a loss is the mean of the rungs' intervals."""

    def mean(find: Callable[[Target], Measure | None]) -> Measure | None:
        found = [measure for row in rows if (measure := find(row))]
        if len(found) < len(rows):
            return None
        value, low, high = (float(np.mean([getattr(each, end) for each in found])) for end in ("value", "low", "high"))
        n = min(each.n for each in found)
        return share(value, n) if found[0].unit == "share" else Measure(value, low, high, n, found[0].unit)

    own, ensemble = mean(lambda row: row.default), mean(lambda row: row.ensemble)
    assert own is not None
    bound = rows[0].bound
    if rows[0].rival is None and bound is not None:
        bound = ensemble.value if ensemble else None
    beside = {"refined": mean(lambda row: row.refined), "fast": mean(lambda row: row.fast), "ensemble": ensemble}
    best = None if rows[0].rival is None else share(1.0, own.n).low
    return replace(rows[0], scale=POOLED, bound=bound, default=own, best_low=best, **beside)
