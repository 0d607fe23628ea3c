"""The results as tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asterism.evaluate.answers import ALL
from asterism.report import scores
from experiments.fuse.judging import RIVALS, needed, sure
from experiments.fuse.parts import CLEAN, UNTUNED
from experiments.fuse.rivals import CONTROL, CONTROL_UP, FUSED, SOURCE, TARGET
from experiments.fuse.setting import FEWER, MULTI, SHUFFLED, SINGLE
from experiments.fuse.view import Row, View, measure
from experiments.tables import Table

LABELS = {
    CONTROL_UP: "control, B alone", SOURCE: "source's own model", CLEAN: "fused without the noise",
    UNTUNED: "fused, recipe's settings", "layers by CKA": "layers by CKA",
}  # fmt: skip
TITLES = {
    "single": "A single source", "multi": "Sources of two families", "noisy": "Among noise", "unseen": "A family nothing was chosen by",
    "anchors": "Other anchors", "scarce": "Fewer replay examples", "sensitivity": "Where alpha and the gates start",
    "ablations": "Its pieces",
}  # fmt: skip
"""Parts in words."""
VARIED = ("sensitivity", "ablations")
"""Parts that change one fusion's settings."""
KNOW_MORE = "experts that know what the replay examples do not show"


def label(candidate: str) -> str:
    """A candidate in words."""
    if candidate.startswith(f"{SOURCE} "):
        return f"{LABELS[SOURCE]}, {candidate.removeprefix(f'{SOURCE} ')}"
    return LABELS.get(candidate, scores.called(candidate))


def titled(view: View, part: str) -> str:
    """A part in words, with its seeds where they are not all."""
    own = view.fewer(part)
    return f"{TITLES[part]} (seeds {', '.join(map(str, own))} alone)" if own else TITLES[part]


def headings(view: View, *, seeds: bool = True) -> list[tuple[str, str, str]]:
    """(part, setting, title) of every setting that was measured; seeds: named in the titles of parts that have not all."""
    found = []
    for part in TITLES:
        settings, title = view.measured(part), titled(view, part) if seeds else TITLES[part]
        found += [(part, name, title if len(settings) == 1 else f"{title}: {name}") for name in settings]
    return found


def ranked(view: View, part: str, setting: str) -> list[str]:
    """The candidates of a setting, highest score first."""
    rows = {name: row for name in view.candidates(part, setting) if (row := view.row(part, setting, name))}
    return sorted(rows, key=lambda name: -(rows[name]["score"] or 0.0))


def everyone(view: View, part: str, setting: str, title: str) -> Table:
    """Scores of all candidates in a setting, and what the fused adapter is above each."""
    tasks = view.tasks(part, setting)
    rows = []
    for name in ranked(view, part, setting):
        own = view.gain(part, setting, FUSED, name)
        cells = [_score(view, part, setting, name, task) for task in tasks]
        row = view.row(part, setting, name)
        loss = view.loss(part, setting, name)
        gain = measure(own) if own else None
        rows.append((label(name), *cells, loss and f"{loss.value:.3f}", gain, row and str(row["n"])))
    shown = ["all tasks" if task == ALL else view.called(task) for task in tasks]
    note = (
        "Per cent: accuracy, micro F1, or of tasks that are not marked the loss in brackets; all tasks: their mean. Loss: nats a token of "
        "the response, over the marked tasks. n: held-out examples. Gains with 95 % intervals over examples, paired."
    )
    return Table(title, title, ("candidate", *shown, "loss", "fused above it", "n"), tuple(rows), note)


def beside_control(view: View) -> Table:
    """What the fused adapter is above the target and above the control, in every setting."""
    rows = []
    for part, setting, title in headings(view):
        if part in VARIED:
            continue
        gains = [view.gain(part, setting, FUSED, rival) for rival in (TARGET, CONTROL)]
        told = [measure(row, by) if row else None for by in ("score", "loss") for row in gains]  # pyright: ignore[reportArgumentType]
        enough = needed(gains[1]) if gains[1] else None
        rows.append((title, *told, None if enough is None else f"{enough:,}"))
    columns = ("setting", "over the target", "over the control", "loss saved, target", "loss saved, control", "examples that would tell")
    note = "Examples that would tell: so many held-out ones would tell the gain over the control from none, were it the true one."
    return Table("Control", "What the sources add", columns, tuple(rows), note)


def variants(view: View, part: str, title: str) -> Table:
    """Fusions of the single source by other settings: what each is above the recipe's, and what its gates and B's did."""
    rows = []
    for name in (FUSED, *(name for name in view.candidates(part, SINGLE) if name not in (TARGET, CONTROL, FUSED))):
        gain = view.gain(part, SINGLE, name, FUSED)
        score, loss = view.score(part, SINGLE, name), view.loss(part, SINGLE, name)
        told = (measure(gain), measure(gain, "loss")) if gain else (None, None)
        facts = view.facts(part, SINGLE, name)
        rows.append((label(name), score, loss and f"{loss.value:.3f}", *told, *_behaviour(facts)))
    columns = ("fusion", "score", "loss", "gain over fused", "loss saved", "gates open", "change of B", "growth of condition")
    return Table(title, title, columns, tuple(rows), "Mean over seeds of: open gate entries, |B_new − B| / |B|, median growth of cond(B).")


def gates(view: View) -> Table:
    """Share of open gate entries by source."""
    rows = []
    for part, setting, title in headings(view):
        facts = [fact for fact in view.facts(part, setting) if fact["open"]] if part not in VARIED else []
        if not facts:
            continue
        noise = {own["name"] for own in view.setting(setting)["noise"]}
        for source in facts[0]["open"]:
            values = [fact["open"][source] for fact in facts]
            told = ", ".join(f"{100 * value:.0f}" for value in values)
            rows.append((title, source, "noise" if source in noise else "real", told))
    return Table("Gates", "How far the gates let each source in", ("setting", "source", "kind", "open, % (seed by seed)"), tuple(rows))


def behaviour(view: View) -> Table:
    """What became of the target's B."""
    rows = []
    for part, setting, title in headings(view):
        if part not in VARIED and (facts := view.facts(part, setting)):
            most = [fact["condition_growth_most"] for fact in facts if fact["condition_growth_most"] is not None]
            rows.append((title, *_behaviour(facts), f"{max(most):.3g}" if most else None, _mean(facts, "alpha")))
    columns = ("setting", "gates open", "change of B", "growth of condition", "largest growth", "alpha at the end")
    return Table("Stability", "What became of the target's B", columns, tuple(rows))


def took(view: View) -> Table:
    """Core-minutes of every part."""
    rows = []
    for row in view.rows("minutes"):
        if all(value is not None for value in row["by_seed"]):
            rows.append((titled(view, row["part"]), ", ".join(f"{value:.1f}" for value in row["by_seed"])))
    note = "Of the process that ran the part, what an earlier part had made not counted; of a part that was killed, since then."
    return Table("Time", "Core-minutes", ("part", "seed by seed"), tuple(rows), note)


def tables(view: View) -> list[Table]:
    """All of them that hold something."""
    made = [beside_control(view)]
    for part, setting, title in headings(view):
        if part not in VARIED:
            made.append(everyone(view, part, setting, title))
    made += [variants(view, part, titled(view, part)) for part in VARIED if view.measured(part)]
    made += [gates(view), behaviour(view), took(view)]
    return [table for table in made if table.rows and not table.empty]


def lines(view: View) -> list[str]:
    """The findings in words: over the target, over the control and what that means, over the rivals."""
    said = []
    for part, words in (("single", "With one source of another family"), ("multi", "With sources of two families")):
        setting = SINGLE if part == "single" else MULTI
        row, control = (view.gain(part, setting, FUSED, rival) for rival in (TARGET, CONTROL))
        if row and row["gain"] is not None:
            said.append(f"{words} the fused adapter scores {_points(row)} above the target alone.")
        if control and control["gain"] is not None:
            said.append(_control(view, control, words[0].lower() + words[1:]))
        said += _rivals(view, part, setting, words)
    return said + _fewer(view)


def _control(view: View, row: Row, where: str) -> str:
    """Whether the sources matter, said plainly."""
    told = f"{_points(row)} beside the control, which learnt from the same examples without sources"
    outcome = sure(row)
    if outcome == "held":
        return f"The sources matter {where}: {told}."
    if outcome == "not held":
        return f"The sources cost more than they bring {where}: {told}; {wanted(view)}."
    if (enough := needed(row)) is not None:
        need = f"if that were the true gain, about {enough:,} held-out examples in the place of {row['n']:,} would tell it from none"
    else:
        need = f"more held-out examples would not help; {wanted(view)}"
    return f"The control without sources does as well {where}: {told}; {need}."


def wanted(view: View) -> str:
    """What would be needed for sources to matter where a control without them does as well or better."""
    tried = scarcer(view)
    enough = [name for name, rows in tried.items() if all(sure(row) == "held" for row in rows)]
    if enough:
        return f"it would need fewer examples to replay, {' or '.join(enough)} of these (below, one source), or {KNOW_MORE}"
    if tried:
        told = f"with {' or '.join(tried)} of the examples to replay they do not surely matter either (below, one source)"
        return f"{told}: it would need {KNOW_MORE}"
    return f"it would need tasks of which far fewer examples can be replayed than the sources learnt from, or {KNOW_MORE}"


def scarcer(view: View) -> dict[str, tuple[Row, Row]]:
    """What the fused adapter is above the control and above the source shuffled, by the share of the examples that is replayed."""
    found = {name: tuple(view.gain("scarce", name, FUSED, rival) for rival in (CONTROL, SHUFFLED)) for name in FEWER}
    return {
        name: (control, shuffled) for name, (control, shuffled) in found.items() if control and shuffled and control["gain"] is not None
    }


def _fewer(view: View) -> list[str]:
    """What the sources add where fewer examples are replayed."""
    return [
        f"With {name} of the replay examples and as many steps the fused adapter scores {_points(control)} beside the control that has no "
        f"more, {_points(shuffled)} beside the same source shuffled."
        for name, (control, shuffled) in scarcer(view).items()
    ]


def _rivals(view: View, part: str, setting: str, words: str) -> list[str]:
    rows = {name: row for name in RIVALS if (row := view.gain(part, setting, FUSED, name)) and row["gain"] is not None}
    if not rows:
        return []
    better = [label(name) for name, row in rows.items() if sure(row) == "held"]
    worse = [label(name) for name, row in rows.items() if sure(row) == "not held"]
    told = f"{words} it is surely better than {_listed(better, len(rows))}"
    return [f"{told}, surely worse than {_listed(worse, len(rows))}." if worse else f"{told}."]


def _listed(names: Sequence[str], count: int) -> str:
    return f"{len(names)} of {count} rivals ({', '.join(names)})" if names else f"none of {count} rivals"


def _points(row: Row) -> str:
    told = f"{100 * row['gain']:+.1f} points (95 % interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return told.replace("-", "−")


def _behaviour(facts: Sequence[Row]) -> tuple[str | None, str | None, str | None]:
    opened = [sum(fact["open"].values()) / len(fact["open"]) for fact in facts if fact["open"]]
    return (
        f"{100 * sum(opened) / len(opened):.0f} %" if opened else None,
        _mean(facts, "norm_ratio"),
        _mean(facts, "condition_growth"),
    )


def _mean(facts: Sequence[Row], key: str) -> str | None:
    values = [fact[key] for fact in facts if fact[key] is not None]
    return f"{sum(values) / len(values):.3g}" if values else None


def _score(view: View, part: str, setting: str, name: str, task: str) -> Any:
    score = view.score(part, setting, name, task)
    if score is not None:
        return f"{100 * score.value:.1f}"
    loss = view.loss(part, setting, name, task)
    return loss and f"({loss.value:.3f})"
