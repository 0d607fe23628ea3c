"""The rules of this register: each makes the figures and the verdict of one kind of claim.

A gain is "sure" where its 95 % bootstrap interval over held-out examples (each example's marks averaged over seeds) excludes zero and no
seed disagrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil

from experiments.fuse.setting import ANCHORS, MULTI, NOISY, SINGLE, UNSEEN
from experiments.fuse.view import By, Row, View, measure, seeds
from experiments.verdicts import Outcome, Verdict, everywhere, side, unmeasured

Rule = Callable[[View], Verdict]
RIVALS = ("fusellm", "gac", "unite", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", "emr")
"""The paper's baselines."""
MARGIN = 0.02
"""Of a score: what counts as kept. The paper's own fall under noise is 0.8 points of 71.3."""
WORSE = 10.0
"""Growth of a condition number that counts as badly conditioned."""
_KEYS: dict[By, tuple[str, str, str]] = {"score": ("low", "high", "by_seed"), "loss": ("saved_low", "saved_high", "loss_by_seed")}


def sure(found: Row, bound: float = 0.0, by: By = "score") -> Outcome:
    """Held where the gain surely lies above the bound, not held where it surely lies below."""
    low, high, each = _KEYS[by]
    if found[low] is None:
        return "undecided"
    return side(found[low] > bound and min(found[each]) > bound, found[high] < bound and max(found[each]) < bound)


def beats(part: str, settings: Sequence[str], candidate: str, rivals: Sequence[str], by: By = "score") -> Rule:
    """The candidate is surely better than each rival in each setting of a part."""

    def judge(view: View) -> Verdict:
        found = {(setting, rival): row for setting in settings for rival in rivals if (row := view.gain(part, setting, candidate, rival))}
        if not found:
            return unmeasured(f"{candidate} beside {' and '.join(rivals[:2])}")
        status: dict[str, Outcome] = {_place(view, *pair, settings, rivals): sure(row, by=by) for pair, row in found.items()}
        figures = {_place(view, *pair, settings, rivals): measure(row, by) for pair, row in found.items()}
        return everywhere(status, {"gain": {name: figure for name, figure in figures.items() if figure}}, places="comparisons")

    return judge


def keeps(part: str, settings: Sequence[str], candidate: str, rival: str) -> Rule:
    """The candidate falls at most MARGIN behind the rival in every setting."""

    def judge(view: View) -> Verdict:
        found = {setting: row for setting in settings if (row := view.gain(part, setting, candidate, rival))}
        status: dict[str, Outcome] = {name: sure(row, -MARGIN) for name, row in found.items()}
        return everywhere(status, {"change": {name: _measure(row) for name, row in found.items()}}, places="settings")

    return judge


def silenced(view: View) -> Verdict:
    """With every seed the gates stand less open to each source of noise than to the real one."""
    status: dict[str, Outcome] = {}
    figures: dict[str, dict[str, object]] = {"real": {}, "noise": {}}
    for name in NOISY:
        facts = [fact for fact in view.facts("noisy", name) if fact["open"]]
        if not facts:
            continue
        real, noise = _owners(view, name)
        own = [min(fact["open"][source] for source in real) for fact in facts]
        other = [max(fact["open"][source] for source in noise) for fact in facts]
        apart = [a - b for a, b in zip(own, other, strict=True)]
        status[name] = side(min(apart) > 0, max(apart) < 0) if len(apart) > 1 else "undecided"
        figures["real"][name], figures["noise"][name] = seeds(own), seeds(other)
    return everywhere(status, figures, places="settings")


def steady(view: View) -> Verdict:
    """No start of alpha and no mu_gate that was tried changes the score by more than MARGIN."""
    names = [name for name in view.candidates("sensitivity", SINGLE) if name.startswith(("alpha", "mu_gate"))]
    found = {name: row for name in names if (row := view.gain("sensitivity", SINGLE, name, "fused"))}
    status: dict[str, Outcome] = {
        name: side(row["low"] > -MARGIN and row["high"] < MARGIN, row["high"] < -MARGIN or row["low"] > MARGIN)
        for name, row in found.items()
    }
    return everywhere(status, {"change": {name: _measure(row) for name, row in found.items()}}, places="settings")


def conditioned(view: View) -> Verdict:
    """The condition number of no B grows tenfold, in any setting, with any seed."""
    status: dict[str, Outcome] = {}
    figures: dict[str, dict[str, object]] = {"median growth": {}, "largest": {}, "change of B": {}}
    for part, name in (("single", SINGLE), ("multi", MULTI), *(("noisy", name) for name in NOISY), ("unseen", UNSEEN)):
        facts = [fact for fact in view.facts(part, name) if fact["condition_growth"] is not None]
        if not facts:
            continue
        most, middle = [fact["condition_growth_most"] for fact in facts], [fact["condition_growth"] for fact in facts]
        status[name] = side(max(most) < WORSE, max(middle) >= WORSE)
        figures["median growth"][name], figures["largest"][name] = seeds(middle), seeds(most)
        if ratios := [fact["norm_ratio"] for fact in facts if fact["norm_ratio"] is not None]:
            figures["change of B"][name] = seeds(ratios)
    return everywhere(status, figures, places="settings")


def needed(row: Row, by: By = "score") -> int | None:
    """Held-out examples that would tell the measured gain from none, were it the true one; None where there is no gain."""
    low, high, _ = _KEYS[by]
    gain = row["gain"] if by == "score" else row["saved"]
    if gain is None or gain <= 0 or row[low] > 0:
        return None
    return ceil(row["n"] * ((row[high] - row[low]) / 2 / gain) ** 2)


def _owners(view: View, name: str) -> tuple[list[str], list[str]]:
    setting = view.setting(name)
    return [own["name"] for own in setting["sources"]], [own["name"] for own in setting["noise"]]


def _place(view: View, setting: str, rival: str, settings: Sequence[str], rivals: Sequence[str]) -> str:
    """What names a comparison among those of a claim."""
    from experiments.fuse.summaries import label

    if len(settings) == 1:
        return f"over {label(rival)}"
    return setting if len(rivals) == 1 else f"{setting} (over {label(rival)})"


def _measure(row: Row) -> object:
    return measure(row)


FUSED_IN: Mapping[str, Sequence[str]] = {"anchors": ANCHORS, "noisy": NOISY, "single": (SINGLE,), "multi": (MULTI,), "unseen": (UNSEEN,)}
"""Part -> its settings."""
