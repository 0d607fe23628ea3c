"""How a claim about scale is judged: what rises along a family's rungs, and what has a peak inside."""

from __future__ import annotations

from itertools import pairwise

from experiments.constellation.view import View
from experiments.measures import Measure, difference
from experiments.verdicts import Found, Outcome, side


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
        status[f"family {view.family(names[0])}"] = side(all(sign > 0 for sign in signs), any(sign < 0 for sign in signs))
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
            status[f"family {view.family(names[0])}"] = side(any(min(top) > 0 for top in tops), all(min(top) < 0 for top in tops))
    return status


def _sign(a: Measure, b: Measure) -> int:
    """+1 where b surely lies above a, -1 where below, 0 where that is open, as with a single seed."""
    if a.over == "seeds":
        if min(a.n, b.n) < 2:
            return 0
        return (b.low > a.high) - (b.high < a.low)
    change = difference(b, a)
    return (change.low > 0) - (change.high < 0)
