"""Look-ups in this experiment's results.json."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from asterism.core.errors import DataError
from experiments.measures import Measure, over_seeds

Row = Mapping[str, Any]


class View:
    """The results of one scale."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        if missing := [key for key in ("targets", "called", "losses", "seeds") if key not in results]:
            raise DataError("These are no results of routing.", met=f"no {', '.join(missing)}", mend="python -m experiments.route")
        self.results = results
        self.seeds: list[int] = list(results["seeds"])
        self.targets: list[str] = [target["name"] for target in results["targets"]]

    def rows(self, section: str, **match: Any) -> list[Row]:
        """Rows of a section that agree with `match`."""
        return [row for row in self.results.get(section) or [] if all(row.get(key) == value for key, value in match.items())]

    def called(self, name: str) -> str:
        """What stands behind a target or an expert."""
        return self.results["called"].get(name, name)

    def pair(self, target: str) -> tuple[str, str]:
        """The two experts of a target."""
        left, right = next(own["pair"] for own in self.results["targets"] if own["name"] == target)
        return left, right

    def candidates(self, target: str) -> list[str]:
        """Everyone who was scored on a target."""
        return list(dict.fromkeys(row["candidate"] for row in self.rows("losses", target=target)))

    @cached_property
    def _losses(self) -> dict[tuple[str, str, str], Row]:
        return {(row["target"], row["candidate"], row["protocol"]): row for row in self.rows("losses")}

    @cached_property
    def _gains(self) -> dict[tuple[str, str, str, str], Row]:
        return {(row["target"], row["candidate"], row["rival"], row["protocol"]): row for row in self.rows("gains")}

    def row(self, target: str, candidate: str, protocol: str = "whole") -> Row | None:
        """Mean loss and what was chosen."""
        return self._losses.get((target, candidate, protocol))

    def loss(self, target: str, candidate: str, protocol: str = "whole") -> Measure | None:
        """Mean loss in nats a token."""
        row = self.row(target, candidate, protocol)
        return measure(row, "loss") if row else None

    def gain(self, target: str, candidate: str, rival: str, protocol: str = "whole") -> Row | None:
        """How much less the candidate loses than the rival, text by text."""
        return self._gains.get((target, candidate, rival, protocol))

    def curve(self, candidate: str) -> list[Row]:
        """A candidate's mean losses by step; the generalist's at step 0 is everyone's beginning."""
        rows = [row for row in self.rows("curve") if row["candidate"] == candidate or row["step"] == 0]
        return sorted(rows, key=lambda row: row["step"])

    def similar(self, texts: str, mode: str) -> list[Row]:
        """CKA of the two experts at the middle block by step."""
        return sorted(self.rows("similar", texts=texts, mode=mode), key=lambda row: row["step"])

    def turn(self, candidate: str) -> Row | None:
        """Where a candidate's curve is lowest."""
        return next(iter(self.rows("turns", candidate=candidate)), None)


def measure(row: Row, key: str = "gain") -> Measure:
    """A mean over texts with its interval."""
    return Measure(row[key], row["low"], row["high"], row["n"], "nats", "texts")


def seeds(values: list[float]) -> Measure:
    """A mean and range over seeds."""
    found = over_seeds(values)
    assert found is not None
    return found
