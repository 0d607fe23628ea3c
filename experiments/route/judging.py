"""The rules of this register: each makes the figures and the verdict of one kind of claim.

A gain is "sure" where its 95 % bootstrap interval over texts (each text's mean over seeds) excludes zero and no seed disagrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from asterism.constellation.diagnosis import CLOSE
from asterism.core.corpus import GENERAL
from experiments.measures import Measure
from experiments.route.view import Row, View, measure, seeds
from experiments.verdicts import Outcome, Verdict, everywhere, side, unmeasured

Rule = Callable[[View], Verdict]


def sure(found: Row, bound: float = 0.0) -> Outcome:
    """Held where the gain surely reaches the bound, not held where it surely stays below."""
    return side(
        found["low"] > bound and min(found["by_seed"]) > bound,
        found["high"] < bound and max(found["by_seed"]) < bound,
    )


def beats(candidate: str, rival: str, *targets: str) -> Rule:
    """The candidate surely loses less than the rival on every target (or those named)."""

    def judge(view: View) -> Verdict:
        found = {name: row for name in targets or view.targets if (row := view.gain(name, candidate, rival))}
        if not found:
            return unmeasured(f"{candidate} and {rival}")
        status: dict[str, Outcome] = {view.called(name): sure(row) for name, row in found.items()}
        return everywhere(status, {"gain": {view.called(name): measure(row) for name, row in found.items()}}, places="targets")

    return judge


def no_better(candidate: str, rival: str, target: str = "cross") -> Rule:
    """The candidate is not better than the rival by more than CLOSE."""

    def judge(view: View) -> Verdict:
        found = view.gain(target, candidate, rival)
        if not found:
            return unmeasured(f"{candidate} and {rival}")
        name = view.called(target)
        return everywhere({name: side(found["high"] < CLOSE, found["low"] > CLOSE)}, {"gain": {name: measure(found)}}, places="targets")

    return judge


def each_rung(view: View) -> Verdict:
    """Every rung of Fig. 4 surely above the one before, on every target."""
    rungs = (("single", "interpolation"), ("layer", "single"), ("with_generalist", "layer"))
    found = {(view.called(name), pair[0]): row for name, pair in product(view.targets, rungs) if (row := view.gain(name, *pair))}
    status: dict[str, Outcome] = {f"{name} ({rung})": sure(row) for (name, rung), row in found.items()}
    figures = {rung: {name: measure(row) for (name, own), row in found.items() if own == rung} for rung, _ in rungs}
    return everywhere(status, figures)


def flattens(view: View) -> Verdict:
    """The third layer surely gains less than the second did, on every target."""
    found = {view.called(row["target"]): row for row in view.rows("plateau")}
    status: dict[str, Outcome] = {name: sure(row) for name, row in found.items()}
    return everywhere(status, {"second layer's gain − third's": {name: measure(row) for name, row in found.items()}}, places="targets")


def specialise(view: View) -> Verdict:
    """Each expert's loss on its own domain surely falls over all, and never surely rises from one checkpoint to the next."""
    status: dict[str, Outcome] = {}
    figures: dict[str, dict[str, object]] = {"first checkpoint to last": {}}
    for name in dict.fromkeys(row["expert"] for row in view.rows("own")):
        steps = [row["over_before"] for row in view.rows("own", expert=name)[1:]]
        gained = sum(step["gain"] for step in steps)
        rises = any(sure(step) == "not held" for step in steps)
        status[view.called(name)] = side(not rises and gained > 0 and sure(steps[0]) == "held", rises)
        figures["first checkpoint to last"][view.called(name)] = f"{gained:.3f} nats gained"
    return everywhere(status, figures, places="experts")


def turns(candidate: str) -> Rule:
    """The curve surely falls from the generalist to its lowest point, and surely rises from there to its end."""

    def judge(view: View) -> Verdict:
        found = view.turn(candidate)
        if not found:
            return unmeasured("the curve")
        fall, rise = found["fall"], found["rise"]
        status: dict[str, Outcome] = {"fall (to the lowest)": sure(fall), "rise (from it)": sure(rise)}
        told = {"fall": measure(fall), "rise": measure(rise), "lowest at step": _listed(found["steps"]), "last step": found["last"]}
        if all(step == found["last"] for step in found["steps"]):
            status["rise (from it)"] = "not held"  # the end itself is lowest
        if not any(found["steps"]):
            status["fall (to the lowest)"] = "not held"  # the generalist is
        return everywhere(status, {"": told})

    return judge


def grows_apart(texts: str) -> Rule:
    """CKA at the middle block surely falls from the first checkpoint to the last, the paper's way and debiased."""

    def judge(view: View) -> Verdict:
        found = {mode: rows for mode in ("paper", "debiased") if len(rows := view.similar(texts, mode)) > 1}
        change = {mode: _change(rows[0], rows[-1]) for mode, rows in found.items()}
        figures: dict[str, dict[str, Any]] = {
            "first": {mode: seeds(rows[0]["by_seed"]) for mode, rows in found.items()},
            "last": {mode: seeds(rows[-1]["by_seed"]) for mode, rows in found.items()},
        }
        return everywhere({mode: _below(own) for mode, own in change.items()}, figures, places="estimators")

    return judge


def valley(texts: str, candidate: str = "activation") -> Rule:
    """The loss has its turning point where the experts are less alike than at first and more than at last."""

    def judge(view: View) -> Verdict:
        found, rows = view.turn(candidate), {row["step"]: row["by_seed"] for row in view.similar(texts, "paper")}
        if not found or not rows:
            return unmeasured("the curve")
        first, last = rows[min(rows)], rows[max(rows)]
        inside = [step in rows and last[i] < rows[step][i] < first[i] for i, step in enumerate(found["steps"])]
        turned = turns(candidate)(view).outcome
        status: Outcome = side(all(inside) and turned == "held", not any(inside) or turned == "not held")
        at = [rows[step][i] if step in rows else 1.0 for i, step in enumerate(found["steps"])]
        return everywhere({"CKA at the lowest loss": status}, {"": {"first": seeds(first), "lowest": seeds(at), "last": seeds(last)}})

    return judge


def neighbours(view: View) -> Verdict:
    """Within an expert neighbouring layers are surely more alike than distant ones, on every text."""
    found = {f"{view.called(row['left'])}, {_text(view, row)}": row for row in view.rows("maps") if row["left"] == row["right"]}
    return _nearer({name: (row["near"], row["far"]) for name, row in found.items()}, ("neighbours", "far apart"))


def counterparts(view: View) -> Verdict:
    """Between experts layers of the same place are surely more alike than distant ones, on every text."""
    rows = [row for row in view.rows("maps") if row["left"] != row["right"]]
    found = {f"{view.called(row['left'])} and {view.called(row['right'])}, {_text(view, row)}": row for row in rows}
    return _nearer({name: (row["same"], row["far"]) for name, row in found.items()}, ("same place", "far apart"))


def _nearer(found: Mapping[str, tuple[list[float], list[float]]], called: tuple[str, str]) -> Verdict:
    status: dict[str, Outcome] = {name: _below(seeds([b - a for a, b in zip(*pair, strict=True)])) for name, pair in found.items()}
    figures = {what: {name: seeds(pair[side]) for name, pair in found.items()} for side, what in enumerate(called)}
    return everywhere(status, figures, places="maps")


def _text(view: View, row: Row) -> str:
    """Whose text a map was taken on; general text is the same for every target."""
    return f"{view.called(GENERAL if row['texts'] == GENERAL else row['target'])} text"


def _change(first: Row, last: Row) -> Measure:
    return seeds([b - a for a, b in zip(first["by_seed"], last["by_seed"], strict=True)])


def _below(found: Measure) -> Outcome:
    """Of a change over seeds: held where every seed falls, not held where every seed rises; a single seed leaves it open."""
    return side(found.high < 0, found.low > 0) if found.n > 1 else "undecided"


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps))
