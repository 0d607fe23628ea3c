"""How a claim is judged: a status for each place where it was measured, one outcome from them all, and the reason in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.measures import Measure

Outcome = Literal["held", "not held", "undecided"]
Found = Mapping[str, Measure]
Figures = Mapping[str, Mapping[str, object]]
"""What is measured ("" where it needs no name) -> rung or family -> the figure."""


@dataclass(frozen=True)
class Verdict:
    """What was found of a claim."""

    outcome: Outcome
    figures: Figures
    why: str
    """Where the criterion was met and where it was missed."""

    @property
    def measured(self) -> tuple[str, ...]:
        """A line for each place, `gpt2-2m: paper 55.3 % (47–63), default 98.0 % (94–99)`, and one for n."""
        places = dict.fromkeys(place for found in self.figures.values() for place in found)
        lines = []
        for place in places:
            here = [f"{head} {found[place]}".strip() for head, found in self.figures.items() if place in found]
            lines.append(f"{place}: {', '.join(here)}")
        measures = [each for found in self.figures.values() for each in found.values() if isinstance(each, Measure)]
        sizes = dict.fromkeys((measure.n, measure.over) for measure in measures)
        counts = dict.fromkeys(f"{n} {over if n > 1 else over.removesuffix('s')}" for n, over in sizes)
        return (*lines, f"n = {', '.join(counts)}") if counts else tuple(lines)


def everywhere(status: Mapping[str, Outcome], figures: Figures, beside: str = "", places: str = "rungs") -> Verdict:
    """Held if met in every place, not held if missed in any, else undecided; `beside` is said after the reason, which counts `places`."""
    outcome: Outcome = "undecided"
    if status and all(each == "held" for each in status.values()):
        outcome = "held"
    elif "not held" in status.values():
        outcome = "not held"
    return Verdict(outcome, figures, " ".join(filter(None, (_reason(status, places), beside))))


def anywhere(status: Mapping[str, Outcome], figures: Figures) -> Verdict:
    """Held if met in one place, not held if missed in every, else undecided: for what a text reports of one scale of its own."""
    outcome: Outcome = "undecided"
    if "held" in status.values():
        outcome = "held"
    elif status and all(each == "not held" for each in status.values()):
        outcome = "not held"
    return Verdict(outcome, figures, _reason(status))


def unmeasured(what: str) -> Verdict:
    """Undecided for want of rows."""
    return Verdict("undecided", {}, f"Not measured: {what}.")


def above(limit: float, found: Found) -> dict[str, Outcome]:
    """Held where the lower end lies above the limit (or at it), not held where the upper end lies below it."""
    return {name: side(measure.low >= limit, measure.high < limit) for name, measure in found.items()}


def below(limit: float, found: Found) -> dict[str, Outcome]:
    """Held where the upper end lies below the limit (or at it), not held where the lower end lies above it."""
    return {name: side(measure.high <= limit, measure.low > limit) for name, measure in found.items()}


def by(names: Sequence[str], judge: Callable[[str], tuple[bool, bool] | None]) -> dict[str, Outcome]:
    """A status for each name from judge(name) = (met, missed); None leaves the name out."""
    judged = {name: judge(name) for name in names}
    return {name: side(*each) for name, each in judged.items() if each is not None}


def side(met: bool, missed: bool) -> Outcome:
    """The outcome in one place."""
    return "held" if met else "not held" if missed else "undecided"


def _reason(status: Mapping[str, Outcome], places: str = "rungs") -> str:
    if not status:
        return "Nothing was measured that could decide it."
    words = {"held": "met at", "not held": "missed at", "undecided": "open at"}
    parts = []
    for outcome, word in words.items():
        names = [name for name, each in status.items() if each == outcome]
        if len(names) == len(status) and len(status) > 1:
            kind = "families" if names[0].startswith("family ") else "pairings" if " and " in names[0] else places
            kind = "comparisons" if "(" in names[0] else kind
            parts.append(f"{word} all {len(names)} {kind}")
        elif names:
            parts.append(f"{word} {', '.join(names)}")
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}."


@dataclass(frozen=True)
class Claim:
    """One claim and how it is judged."""

    id: str
    theme: str
    text: str
    where: str
    """`4.2` and the like: section or table of the paper; `summary`: the author's page."""
    criterion: str
    rule: Callable[[Any], Verdict]
    """From a view of the results."""


def by_theme(register: list[tuple[Claim, Verdict]]) -> dict[str, list[tuple[Claim, Verdict]]]:
    """The same by theme."""
    themes: dict[str, list[tuple[Claim, Verdict]]] = {}
    for claim, verdict in register:
        themes.setdefault(claim.theme, []).append((claim, verdict))
    return themes


def counted(register: list[tuple[Claim, Verdict]]) -> str:
    """`31 claims: 9 held, 12 not held, 10 undecided`."""
    outcomes = [verdict.outcome for _, verdict in register]
    each = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in ("held", "not held", "undecided"))
    return f"{len(outcomes)} claims: {each}"
