"""Look-ups in this experiment's results.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from asterism.core.errors import DataError
from asterism.evaluate.answers import ALL
from experiments.measures import Measure, over_seeds

Row = Mapping[str, Any]
By = Literal["score", "loss"]
_MIRRORED = {"gain": ("low", "high", "by_seed"), "saved": ("saved_low", "saved_high", "loss_by_seed")}


class View:
    """The results of one scale."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        if missing := [key for key in ("settings", "called", "scores", "gains", "seeds") if key not in results]:
            raise DataError("These are no results of fusions.", met=f"no {', '.join(missing)}", mend="python -m experiments.fuse")
        self.results = results
        self.seeds: list[int] = list(results["seeds"])

    def rows(self, section: str, **match: Any) -> list[Row]:
        """Rows of a section that agree with `match`."""
        return [row for row in self.results.get(section) or [] if all(row.get(key) == value for key, value in match.items())]

    def called(self, name: str) -> str:
        """A task or a family in words."""
        return self.results["called"].get(name, name)

    def setting(self, name: str) -> Row:
        """Target, sources, noise and tasks of a setting."""
        return next(own for own in self.results["settings"] if own["name"] == name)

    def measured(self, part: str) -> list[str]:
        """The settings of a part that were measured."""
        return list(dict.fromkeys(row["setting"] for row in self.rows("scores", part=part)))

    def fewer(self, part: str) -> list[int]:
        """The seeds of a part that was not measured on all of them; none of a part that was."""
        own = next((list(row["seeds"]) for row in self.rows("minutes", part=part)), self.seeds)
        return [] if own == self.seeds else own

    def candidates(self, part: str, setting: str) -> list[str]:
        """Everyone who was scored in a setting."""
        return list(dict.fromkeys(row["candidate"] for row in self.rows("scores", part=part, setting=setting)))

    def tasks(self, part: str, setting: str) -> list[str]:
        """The tasks of a setting, all of them together first."""
        found = dict.fromkeys(row["task"] for row in self.rows("scores", part=part, setting=setting))
        return [task for task in (ALL, *self.setting(setting)["tasks"]) if task in found]

    @cached_property
    def _scores(self) -> dict[tuple[str, str, str, str], Row]:
        return {(row["part"], row["setting"], row["candidate"], row["task"]): row for row in self.rows("scores")}

    @cached_property
    def _gains(self) -> dict[tuple[str, str, str, str, str], Row]:
        return {(row["part"], row["setting"], row["candidate"], row["rival"], row["task"]): row for row in self.rows("gains")}

    def row(self, part: str, setting: str, candidate: str, task: str = ALL) -> Row | None:
        """Score and loss of a candidate."""
        return self._scores.get((part, setting, candidate, task))

    def score(self, part: str, setting: str, candidate: str, task: str = ALL) -> Measure | None:
        """Score of a candidate, a share; None where answers are not marked."""
        row = self.row(part, setting, candidate, task)
        return None if row is None or row["score"] is None else Measure(row["score"], row["low"], row["high"], row["n"], "share", "texts")

    def loss(self, part: str, setting: str, candidate: str, task: str = ALL) -> Measure | None:
        """Mean response loss of a candidate, nats a token."""
        row = self.row(part, setting, candidate, task)
        return None if row is None else Measure(row["loss"], row["loss_low"], row["loss_high"], row["n"], "nats", "texts")

    def gain(self, part: str, setting: str, candidate: str, rival: str, task: str = ALL) -> Row | None:
        """What a candidate scores above a rival and loses less, example by example; None where the two were not compared."""
        found = self._gains.get((part, setting, candidate, rival, task))
        if found is None:
            other = self._gains.get((part, setting, rival, candidate, task))
            return other and mirrored(other)
        return found

    def facts(self, part: str, setting: str, candidate: str = "fused") -> list[Row]:
        """What the fusions of a setting say of themselves, seed by seed."""
        return self.rows("facts", part=part, setting=setting, candidate=candidate)


def mirrored(row: Row) -> Row:
    """The same gain from the other's side."""
    turned = dict(row) | {"candidate": row["rival"], "rival": row["candidate"]}
    for name, (low, high, seeds) in _MIRRORED.items():
        if row[name] is not None:
            turned |= {name: -row[name], low: -row[high], high: -row[low], seeds: [-value for value in row[seeds]]}
    return turned


def measure(row: Row, by: By = "score") -> Measure | None:
    """A gain with its interval over texts: in points of the score, or in nats a token of the response's loss."""
    if by == "loss":
        return Measure(row["saved"], row["saved_low"], row["saved_high"], row["n"], "nats", "texts")
    return None if row["gain"] is None else Measure(row["gain"], row["low"], row["high"], row["n"], "points", "texts")


def seeds(values: list[float]) -> Measure:
    """A mean and range over seeds."""
    found = over_seeds(values)
    assert found is not None
    return found
