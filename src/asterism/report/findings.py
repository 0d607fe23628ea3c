"""What a results dict says: which rows to show, how to name them, and the findings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asterism.core.errors import DataError

KEYS = ("scale", "seeds", "settings", "origin", "domains", "candidates", "table", "losses", "retrieval", "correlation")
KEYS = (*KEYS, "collinearity", "mixtures", "probes", "example")
"""What results.json must hold; an empty list or object is left out of the report, a missing key is an error."""

LABELS = {
    "default": "composition (default)",
    "refined": "composition (refined)",
    "fast": "composition (fast)",
    "nodes": "composition (per node)",
    "paper": "composition (paper)",
    "generalist": "generalist",
    "best_single": "best single (oracle)",
    "task_arithmetic": "task arithmetic (best)",
    "ensemble": "ensemble (weighted)",
    "ensemble_uniform": "ensemble (uniform)",
    "uniform": "uniform average",
    "routed_coefficient": "routed (coefficient)",
    "routed_activation": "routed (activation)",
    "joint": "composition (joint)",
    "specialist_space": "composition (spec. space)",
    "random": "random mixture",
}
SHORT = {
    "best_single": "best single",
    "task_arithmetic": "task arith.",
    "routed_coefficient": "routed",
    "uniform": "uniform",
    "ensemble": "ensemble",
}
"""For the heads of narrow columns."""
PHRASES = {
    "generalist": "the generalist",
    "best_single": "the best single specialist picked with hindsight",
    "task_arithmetic": "task arithmetic at its best scale",
    "ensemble": "the weighted ensemble",
    "uniform": "the uniform average",
    "routed_coefficient": "the specialist picked by coefficient",
}
TASKS = {"single": "single-domain", "cross": "cross-domain"}
PROTOCOLS = {
    "continuation": "mixture from the first half of a text, loss on the second half",
    "whole": "mixture and loss from the same whole text, as in the paper",
}


def label(name: str) -> str:
    """A candidate's or specialist's name as figures and tables show it."""
    if name.startswith("specialist:"):
        return f"{name.partition(':')[2]} specialist"
    if name.startswith("router:"):
        return f"{name.partition(':')[2]} router"
    if name.startswith("task_arithmetic@"):
        return f"task arithmetic {name.partition('@')[2]}"
    return LABELS.get(name, name.replace("_", " "))


def percent(row: Mapping[str, Any]) -> str:
    """`93 % (88–96)`."""
    return f"{100 * row['rate']:.0f}\u00a0% ({100 * row['low']:.0f}–{100 * row['high']:.0f})"


def verdict(row: Mapping[str, Any]) -> str:
    """`wins` or `loses` where the interval excludes one half, else `even`."""
    return "wins" if row["low"] > 0.5 else "loses" if row["high"] < 0.5 else "even"


@dataclass(frozen=True)
class Cell:
    """One protocol and task: a table, or a panel of a figure."""

    protocol: str
    task: str

    @property
    def title(self) -> str:
        """`Cross-domain probes, continuation protocol`."""
        return f"{TASKS.get(self.task, self.task).capitalize()} probes, {self.protocol} protocol"


class Findings:
    """Look-ups in a results dict. Shows the seed `all` where there are several seeds, else the only one."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        if missing := [key for key in KEYS if key not in results]:
            raise DataError("Results lack a part.", met=f"no {', '.join(missing)}", mend="evaluate again with this version")
        self.results = results
        seeds = {row["seed"] for row in results["table"]} | {row["seed"] for row in results["losses"]}
        self.seed = "all" if "all" in seeds else next(iter(sorted(seeds, key=str)), None)
        self._wins = {(*self._key(row), row["rival"]): row for row in results["table"] if row["seed"] == self.seed}
        self._losses = {self._key(row): row for row in results["losses"] if row["seed"] == self.seed}

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
        return row["protocol"], row["task"], row["group"], row["candidate"]

    def win(self, cell: Cell, candidate: str, rival: str, group: str = "all") -> Mapping[str, Any] | None:
        """The win-rate row, if there is one."""
        return self._wins.get((cell.protocol, cell.task, group, candidate, rival))

    def loss(self, cell: Cell, candidate: str, group: str = "all") -> Mapping[str, Any] | None:
        """The mean-loss row, if there is one."""
        return self._losses.get((cell.protocol, cell.task, group, candidate))

    @property
    def cells(self) -> list[Cell]:
        """Cross-domain before single-domain, continuation before whole."""
        met = dict.fromkeys((key[0], key[1]) for key in [*self._losses, *self._wins])
        order = {name: place for place, name in enumerate((*PROTOCOLS, "cross", "single"))}
        return [Cell(*pair) for pair in sorted(met, key=lambda pair: (order.get(pair[1], 9), order.get(pair[0], 9)))]

    @property
    def rivals(self) -> list[str]:
        """Whom candidates are compared with, in the table's order."""
        known = [name for name in PHRASES if any(key[4] == name for key in self._wins)]
        return known + [name for name in dict.fromkeys(key[4] for key in self._wins) if name not in known]

    def candidates(self, cell: Cell) -> list[str]:
        """Every candidate scored there, lowest mean loss first."""
        here = [key[3] for key in self._losses if key[:3] == (cell.protocol, cell.task, "all")]
        return sorted(here, key=lambda name: self._losses[cell.protocol, cell.task, "all", name]["loss"])

    def groups(self, cell: Cell) -> list[str]:
        """The domains, or the pairs, of a task."""
        return [name for name in dict.fromkeys(key[2] for key in self._losses if key[:2] == (cell.protocol, cell.task)) if name != "all"]

    def compared(self, cell: Cell, candidate: str) -> list[Mapping[str, Any]]:
        """A candidate's win-rate rows, one a rival."""
        return [row for rival in self.rivals if (row := self.win(cell, candidate, rival))]

    def n(self, cell: Cell) -> int:
        """Probes of a cell."""
        rows = [row["n"] for key, row in self._losses.items() if key[:3] == (cell.protocol, cell.task, "all")]
        return max(rows, default=0)

    @property
    def advice(self) -> tuple[str, ...]:
        """The index's diagnosis, where the results hold one: (advice, its measured reason)."""
        found = self.results.get("diagnosis") or self.results
        return tuple(found[key] for key in ("advice", "reason") if found.get(key))

    def lead(self) -> list[str]:
        """The findings in words: whom the composition beats, by how much, with the paper's settings, and on the other task."""
        if not self.cells:
            return []
        first = self.cells[0]
        name = "default" if self.compared(first, "default") else next((c for c in self.candidates(first) if self.compared(first, c)), None)
        if name is None:
            return []
        called = "the model composed for each text" if name == "default" else label(name)
        lines = [f"On {self.n(first)} {_texts(first)}, {self._against(called, self.compared(first, name))}."]
        if by := self._by_how_much(first, name):
            lines.append(by)
        if name == "default" and (rows := self.compared(first, "paper")):
            lines.append(f"With the paper's settings on the same probes, {self._against('it', rows)}.")
        for cell in self.cells[1:]:
            if cell.protocol == first.protocol and (rows := self.compared(cell, name)):
                lines.append(f"On {self.n(cell)} {_texts(cell)}, {self._against(called, rows)}.")
        return lines

    @staticmethod
    def _against(called: str, rows: Sequence[Mapping[str, Any]]) -> str:
        said = dict(wins="beats", even="is level with", loses="loses to")
        parts, first = [], True
        for outcome, words in said.items():
            those = []
            for row in (row for row in rows if verdict(row) == outcome):
                figures = f"{100 * row['low']:.0f}–{100 * row['high']:.0f}"
                figures = (
                    f"on {100 * row['rate']:.0f}\u00a0% of the probes, 95\u00a0% interval {figures}"
                    if first
                    else f"{100 * row['rate']:.0f}\u00a0%, {figures}"
                )
                those.append(f"{PHRASES.get(row['rival'], label(row['rival']))} ({figures})")
                first = False
            if those:
                parts.append(f"{words} {listed(those)}")
        return f"{called} {'; it '.join(parts)}"

    def _by_how_much(self, cell: Cell, name: str) -> str:
        own = self.loss(cell, name)
        others = [(rival, row) for rival in self.rivals if (row := self.loss(cell, rival))]
        if not own or not others:
            return ""
        against = listed([f"{row['loss']:.3f} for {PHRASES.get(rival, label(rival))}" for rival, row in others])
        interval = f"95\u00a0% interval {own['low']:.3f}–{own['high']:.3f}"
        return f"Its mean loss there is {own['loss']:.3f} nats a token ({interval}), against {against}."


def _texts(cell: Cell) -> str:
    said = {"single": "texts of one domain (single-domain probes)", "cross": "texts that need two domains (cross-domain probes)"}
    return said.get(cell.task, f"{cell.task} probes")


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return ", ".join(words[:-1]) + (" and " if len(words) > 1 else "") + words[-1]


def plane(probes: Sequence[Mapping[str, Any]]) -> tuple[Any, tuple[float, float]]:
    """([N, 2] orthonormal directions in which the single-domain groups' mean coefficients differ most, their shares of that spread).

    The signs are fixed (largest entry positive), so that equal probes give equal pictures.
    """
    import numpy as np

    rows = [probe for probe in probes if probe["task"] == "single"] or list(probes)
    values = np.array([probe["coefficients"] for probe in rows], dtype=float)  # [n, N]
    groups = np.array([probe["group"] for probe in rows])
    means = np.stack([values[groups == name].mean(axis=0) for name in dict.fromkeys(groups.tolist())])  # [groups, N]
    spread = values if len(means) < 3 else means
    _, sizes, directions = np.linalg.svd(spread - spread.mean(axis=0))
    directions = directions[:2] * np.sign(directions[np.arange(2), np.abs(directions[:2]).argmax(axis=1)])[:, None]
    shares = np.append(sizes, 0.0)[:2] ** 2 / max(float((sizes**2).sum()), 1e-30)
    return directions.T, (float(shares[0]), float(shares[1]))
