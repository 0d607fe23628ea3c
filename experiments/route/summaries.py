"""The results as tables: the ladder, training against merging, everyone side by side, the curve, and the advice."""

from __future__ import annotations

from typing import Any

from asterism.core.corpus import GENERAL
from experiments.measures import Measure
from experiments.route.advice import WAYS
from experiments.route.compared import INTERPOLATION, KINDS
from experiments.route.gather import BEST_EXPERT, MERGING
from experiments.route.ladder import BESIDE, RUNGS
from experiments.route.tuned import FINETUNED, FINETUNED_EXPERT, MIX
from experiments.route.view import View, measure
from experiments.tables import Table

LABELS = {
    "generalist": "generalist", BEST_EXPERT: "better expert", "best_single": "best expert a text (oracle)",
    "lerp": "weights, LERP", "slerp": "weights, SLERP", "activation": "activations", INTERPOLATION: "best interpolation",
    "single": "single router", "layer": "router a layer", "with_generalist": "with base model",
    "depth2": "2 layers", "depth3": "3 layers", "top1": "top-1", "balanced": "load-balanced",
    "two_layer": "two-layer gates", MIX: "experts of the data mix", MERGING: "best of the ladder",
    FINETUNED: "fine-tuned generalist", FINETUNED_EXPERT: "fine-tuned expert",
    "default": "composition", "fast": "composition, fast", "ensemble": "logit ensemble, weighted",
    "ensemble_uniform": "logit ensemble", "linear": "mean of the weights", "task_arithmetic": "task arithmetic", "ties": "TIES",
    "untrained:prompts": "gates by prompts", "untrained:average": "gates by mean activation", "untrained:arrow": "gates by Arrow",
}  # fmt: skip
"""Candidates in words."""
LADDER = ((INTERPOLATION, None), ("single", INTERPOLATION), ("layer", "single"), ("with_generalist", "layer"))
DEEPER = (("layer", None), ("depth2", "layer"), ("depth3", "depth2"))
"""(rung, the one before): Fig. 4 and Fig. 5."""
TRAINED = (*RUNGS, *BESIDE, MIX, MERGING, FINETUNED, FINETUNED_EXPERT)
CHOSEN = (*KINDS, INTERPOLATION, "task_arithmetic", "ties", BEST_EXPERT)


def label(view: View, candidate: str) -> str:
    """A candidate in words; an expert by its data."""
    kind, _, name = candidate.partition(":")
    return f"expert {view.called(name)}" if kind == "expert" else LABELS.get(candidate, candidate)


def sees(candidate: str) -> str:
    """What of the target's adaptation set a candidate has seen."""
    return "trained on it" if candidate in TRAINED else "texts that choose" if candidate in CHOSEN else "nothing"


def shown(view: View, target: str) -> list[str]:
    """The candidates of a table of everyone, lowest mean loss first: without those that only led to another."""
    names = [name for name in view.candidates(target) if name not in (MERGING, BEST_EXPERT)]
    return sorted(names, key=lambda name: loss.value if (loss := view.loss(target, name)) else 0.0)


def rungs(view: View, steps: tuple[tuple[str, str | None], ...], name: str, title: str) -> Table:
    """Loss of each rung on every target, and what it gains over the one before."""
    rows = []
    for rung, before in steps:
        cells: list[Any] = [label(view, rung)]
        for target in view.targets:
            gain = view.gain(target, rung, before) if before else None
            cells += [_number(view.loss(target, rung)), measure(gain) if gain else None]
        rows.append(tuple(cells))
    columns = [part for target in view.targets for part in (view.called(target), "gain over the one before")]
    return Table(name, title, ("way", *columns), tuple(rows), "Held-out texts, nats a token; gains with 95 % intervals over texts, paired.")


def ladders(view: View) -> list[Table]:
    """Figures 4 and 5 as tables."""
    return [
        rungs(view, LADDER, "Figure 4", "Degrees of freedom: from one share for all layers to a gate in each"),
        rungs(view, DEEPER, "Figure 5", "Degrees of freedom: the MLPs of further layers"),
    ]


def trained(view: View) -> Table:
    """Table 1: the best of the ladder against fine-tuning on the same windows."""
    rows = []
    for target in view.targets:
        row, gain = view.row(target, MERGING), view.gain(target, FINETUNED, MERGING)
        picked = ", ".join(dict.fromkeys(label(view, name) for name in row["picked"])) if row else None
        names = (MERGING, FINETUNED, FINETUNED_EXPERT)
        losses = [_number(view.loss(target, name)) for name in names]
        rows.append((view.called(target), *losses, measure(gain) if gain else None, picked))
    columns = ("target", *(LABELS[name] for name in (MERGING, FINETUNED, FINETUNED_EXPERT)), "gain of fine-tuning over it", "best rung")
    return Table("Table 1", "Merging against fine-tuning on the target", columns, tuple(rows), "Nats a token; the same windows for all.")


def ablations(view: View, target: str = "cross") -> Table:
    """Table 3 and what stands beside it: variants of the full-layer router."""
    rows = []
    for name in ("layer", "two_layer", MIX, "top1", "balanced"):
        gain = view.gain(target, name, "layer")
        rows.append((label(view, name), view.loss(target, name), measure(gain) if gain else None))
    return Table("Table 3", f"Variants of the router, {view.called(target)}", ("router", "loss", "gain over a router a layer"), tuple(rows))


def everyone(view: View) -> list[Table]:
    """Everyone on each target: whole texts and second halves, and what they have seen of it."""
    made = []
    for target in view.targets:
        rows = []
        for name in shown(view, target):
            gain = view.gain(target, name, "generalist")
            losses = [_number(view.loss(target, name, protocol)) for protocol in ("whole", "continuation")]
            rows.append((label(view, name), *losses, measure(gain) if gain else None, sees(name)))
        columns = ("way", "loss", "second halves", "gain over the generalist", "sees of the adaptation set")
        left, right = map(view.called, view.pair(target))
        made.append(Table("Everyone", f"{view.called(target)}, by {left} and {right}", columns, tuple(rows)))
    return made


def along(view: View) -> Table:
    """The curve: losses and CKA by step."""
    experts = list(dict.fromkeys(row["expert"] for row in view.rows("own")))
    own = {(row["expert"], row["step"]): row["loss"] for row in view.rows("own")}
    losses = {(row["candidate"], row["step"]): row["loss"] for row in view.rows("curve")}
    cka = {(row["texts"], row["mode"], row["step"]): row["cka"] for row in view.rows("similar")}
    ways = ("lerp", "activation", "layer", "default")
    kinds = [(texts, mode) for texts in ("target", GENERAL) for mode in ("paper", "debiased")]
    rows = []
    for step in sorted({row["step"] for row in view.rows("curve")}):
        merged = [_figure(losses.get((way, step), losses.get(("generalist", step)))) for way in ways]
        alike = [_figure(cka.get((*kind, step))) for kind in kinds]
        rows.append((step, *(_figure(own.get((name, step))) for name in experts), *merged, *alike))
    columns = ("step", *(f"{view.called(name)}, own text" for name in experts), *(LABELS[way] for way in ways))
    note = "Losses in nats a token, means over seeds; step 0 is the generalist. CKA of the two experts at the middle block."
    return Table("Figure 3", "Along specialisation", (*columns, *(f"CKA, {a} text, {b}" for a, b in kinds)), tuple(rows), note)


def turning(view: View) -> Table:
    """Whether there is a critical point."""
    rows = [
        (label(view, row["candidate"]), ", ".join(map(str, row["steps"])), row["last"], measure(row["fall"]), measure(row["rise"]))
        for row in view.rows("turns")
    ]
    columns = ("way", "lowest at step, seed by seed", "last step", "fall from the generalist", "rise to the last step")
    return Table("Critical point", "Where the curve turns, by texts that choose", columns, tuple(rows), "Nats a token on held-out texts.")


def advisers(view: View) -> Table:
    """How often each adviser is right."""
    rows = [(row["adviser"], f"{row['right']} of {row['cases']}", _figure(row["missed"])) for row in view.rows("advisers")]
    return Table(
        "Advice",
        "Is the advice of `asterism compat` right?",
        ("adviser", "right", "nats missed"),
        tuple(rows),
        "Among ways that train nothing.",
    )


def advice(view: View) -> Table:
    """Case by case: what was advised and what each way loses."""
    rows = []
    for row in view.rows("advice"):
        case = view.called(row["case"]) if row["step"] is None else f"{view.called(row['case'])}, step {row['step']}"
        losses = [_figure(row["measured"][way]) for way in WAYS]
        numbers = (_figure(row["trained"]), _figure(row["barrier"]), _figure(row["similar"]))
        rows.append((row["seed"], case, row["advice"], "yes" if row["right"] else "no", *losses, *numbers))
    columns = ("seed", "case", "advice", "right", *WAYS, "trained gates", "barrier", "CKA")
    note = "Losses of second halves, held-out texts. route: gates that nothing trains; trained gates: a router a layer."
    return Table("Advice", "Case by case", columns, tuple(rows), note)


def tables(view: View) -> list[Table]:
    """All of them that hold something."""
    made = [*ladders(view), trained(view), ablations(view), *everyone(view), along(view), turning(view), advisers(view), advice(view)]
    return [table for table in made if table.rows and not table.empty]


def _number(found: Measure | None) -> str | None:
    return None if found is None else _figure(found.value)


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}".replace("-", "−")
