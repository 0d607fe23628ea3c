"""How a claim is judged: a status for each rung or family, and one outcome from them all, with the reason in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from experiments.constellation.view import Measure, View, difference

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


def everywhere(status: Mapping[str, Outcome], figures: Figures, beside: str = "") -> Verdict:
    """Held if met in every place, not held if missed in any, else undecided; `beside` is said after the reason."""
    outcome: Outcome = "undecided"
    if status and all(each == "held" for each in status.values()):
        outcome = "held"
    elif "not held" in status.values():
        outcome = "not held"
    return Verdict(outcome, figures, " ".join(filter(None, (_reason(status), beside))))


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
    return {name: _side(measure.low >= limit, measure.high < limit) for name, measure in found.items()}


def below(limit: float, found: Found) -> dict[str, Outcome]:
    """Held where the upper end lies below the limit (or at it), not held where the lower end lies above it."""
    return {name: _side(measure.high <= limit, measure.low > limit) for name, measure in found.items()}


def rising(view: View, found: Found, *, ends: bool = False, falling: bool = False) -> dict[str, Outcome]:
    """A status for each family with two measured rungs or more, smallest first.

    A step is sure where its change excludes zero: intervals of rates are compared by `difference`, ranges over seeds by not
    overlapping. Held where every step surely rises (`ends`: the one from the smallest to the largest), not held where one surely falls.
    """
    status: dict[str, Outcome] = {}
    for names in view.grown:
        here = [found[name] for name in names if name in found]
        if len(here) < 2:
            continue
        steps = [(here[0], here[-1])] if ends else list(pairwise(here))
        signs = [(-1 if falling else 1) * _sign(a, b) for a, b in steps]
        status[f"family {view.family(names[0])}"] = _side(all(sign > 0 for sign in signs), any(sign < 0 for sign in signs))
    return status


def peaked(view: View, found: Found) -> dict[str, Outcome]:
    """A status for each family of three measured rungs or more: does some inner rung stand above both the smallest and the largest?

    Held where one surely does, not held where every inner rung is surely below one of the two.
    """
    status: dict[str, Outcome] = {}
    for names in view.grown:
        here = [found[name] for name in names if name in found]
        if len(here) > 2:
            tops = [(_sign(here[0], inner), _sign(here[-1], inner)) for inner in here[1:-1]]
            status[f"family {view.family(names[0])}"] = _side(any(min(top) > 0 for top in tops), all(min(top) < 0 for top in tops))
    return status


def by(names: Sequence[str], judge: Callable[[str], tuple[bool, bool] | None]) -> dict[str, Outcome]:
    """A status for each name from judge(name) = (met, missed); None leaves the name out."""
    judged = {name: judge(name) for name in names}
    return {name: _side(*each) for name, each in judged.items() if each is not None}


def _side(met: bool, missed: bool) -> Outcome:
    return "held" if met else "not held" if missed else "undecided"


def _sign(a: Measure, b: Measure) -> int:
    """+1 where b surely lies above a, -1 where below, 0 where that is open, as with a single seed."""
    if a.over == "seeds":
        if min(a.n, b.n) < 2:
            return 0
        return (b.low > a.high) - (b.high < a.low)
    change = difference(b, a)
    return (change.low > 0) - (change.high < 0)


def _reason(status: Mapping[str, Outcome]) -> str:
    if not status:
        return "Nothing was measured that could decide it."
    words = {"held": "met at", "not held": "missed at", "undecided": "open at"}
    parts = []
    for outcome, word in words.items():
        names = [name for name, each in status.items() if each == outcome]
        if len(names) == len(status) and len(status) > 1:
            kind = "families" if names[0].startswith("family ") else "pairings" if " and " in names[0] else "rungs"
            kind = "comparisons" if "(" in names[0] else kind
            parts.append(f"{word} all {len(names)} {kind}")
        elif names:
            parts.append(f"{word} {', '.join(names)}")
    line = "; ".join(parts)
    return f"{line[0].upper()}{line[1:]}."
