"""The report's figures, drawn by `asterism.report` from these results: each function gives the panels that have rows."""

from __future__ import annotations

from dataclasses import dataclass

from asterism.core.corpus import GENERAL
from asterism.report.curves import loss_by_similarity, loss_curves, path_curves
from asterism.report.ladders import ladder
from asterism.report.maps import reach_map, similarity_map
from asterism.report.tokens import load_bars
from experiments.route.compared import INTERPOLATION
from experiments.route.summaries import LABELS, label, shown
from experiments.route.tuned import FINETUNED
from experiments.route.view import View

MODES = {"paper": "The paper's CKA", "debiased": "Debiased CKA"}


@dataclass(frozen=True)
class Panel:
    """A figure with its heading."""

    title: str
    svg: str


def curve_panels(view: View) -> list[Panel]:
    """Fig. 3, left: the experts on their own text, and what they are worth together."""
    panels = []
    own = {view.called(name): view.rows("own", expert=name) for name in dict.fromkeys(row["expert"] for row in view.rows("own"))}
    if own:
        title = "Each expert on its own domain"
        series = {name: [(row["step"], row["loss"], row["low"], row["high"]) for row in rows] for name, rows in own.items()}
        panels.append(Panel(title, loss_curves(series, next(iter(own.values()))[0]["n"], title=title)))
    merged = {LABELS[name]: rows for name in ("lerp", "activation", "layer") if len(rows := view.curve(name)) > 1}
    if merged:
        title, found = f"Together on {view.called('cross')}", view.turn("activation")
        series = {name: [(row["step"], row["loss"], row["low"], row["high"]) for row in rows] for name, rows in merged.items()}
        mark = (sum(found["steps"]) / len(found["steps"]), "lowest") if found else None
        panels.append(Panel(title, loss_curves(series, next(iter(merged.values()))[0]["n"], title=title, mark=mark)))
    return panels


def similarity_panels(view: View) -> list[Panel]:
    """Fig. 3, middle and right: loss against CKA, on the target and on general text, in both ways to take it."""
    panels = []
    for texts, told in {"target": view.called("cross"), GENERAL: view.called(GENERAL)}.items():
        for mode, called in MODES.items():
            alike = {row["step"]: row["cka"] for row in view.similar(texts, mode)}
            series = {}
            for name in ("lerp", "activation"):
                rows = [row for row in view.curve(name) if row["step"] in alike]
                series |= {LABELS[name]: [(row["step"], alike[row["step"]], row["loss"]) for row in rows]} if rows else {}
            if series:
                n = view.curve("lerp")[0]["n"]
                panels.append(Panel(f"{called}, {told} text", loss_by_similarity(series, n, title=f"Loss against {called} on {told} text")))
    return panels


def ladder_panels(view: View) -> list[Panel]:
    """Fig. 4 and 5 for each target: the losses, and what each rung saves against the best interpolation, paired."""
    panels = []
    names = ("single", "layer", "with_generalist", "depth2", "depth3")
    for target in view.targets:
        losses = [
            (label(view, name), loss.value, loss.low, loss.high) for name in (INTERPOLATION, *names) if (loss := view.loss(target, name))
        ]
        saved = [
            (label(view, name), row["gain"], row["low"], row["high"]) for name in names if (row := view.gain(target, name, INTERPOLATION))
        ]
        if not losses or not saved:
            continue
        levels = {LABELS[name]: loss.value for name in ("generalist", FINETUNED) if (loss := view.loss(target, name))}
        n = next(row["n"] for row in view.rows("losses", target=target))
        title, apart = view.called(target), (LABELS["depth2"], LABELS["depth3"])
        told = f"Loss against degrees of freedom, {title}"
        panels.append(Panel(title, ladder({"": losses}, title=told, xlabel=f"loss, nats a token (n = {n})", levels=levels, apart=apart)))
        told = f"Saved against the best interpolation, {title}"
        panels.append(Panel(told, ladder({"": saved}, title=told, xlabel=f"nats a token saved (n = {n})", apart=apart)))
    return panels


def path_panels(view: View) -> list[Panel]:
    """The paths between the experts of each target, the first seed's, on the texts that choose."""
    panels = []
    for target in view.results["targets"]:
        rows = view.rows("points", target=target["name"], seed=view.seeds[0])
        paths: dict[str, list[tuple[float, float, float, float]]] = {}
        for row in rows:
            paths.setdefault(LABELS[row["kind"]], []).append((row["share"], row["loss"], row["low"], row["high"]))
        if paths:
            left, right = map(view.called, target["pair"])
            panels.append(Panel(view.called(target["name"]), path_curves(paths, (right, left), target["chosen"])))
    return panels


def everyone_panels(view: View) -> list[Panel]:
    """What everyone gains over the generalist on each target, lowest loss first."""
    panels = []
    for target in view.targets:
        rows = [(label(view, name), row) for name in shown(view, target) if (row := view.gain(target, name, "generalist"))]
        if rows:
            title = view.called(target)
            bars = [(name, row["gain"], row["low"], row["high"]) for name, row in rows]
            apart = [name for name, *_ in bars]
            told = f"Gain over the generalist, {title}"
            panels.append(Panel(title, ladder({"": bars}, title=told, xlabel=f"nats a token saved (n = {rows[0][1]['n']})", apart=apart)))
    return panels


def map_panels(view: View, target: str) -> list[Panel]:
    """Fig. 7 (and 8 for targets inside a domain): each expert's layers among themselves, and across the two."""
    panels = []
    for row in view.rows("maps", target=target):
        left, right = view.called(row["left"]), view.called(row["right"])
        where = view.called(target) if row["texts"] == "target" else view.called(GENERAL)
        who = left if left == right else f"{left} and {right}"
        panels.append(Panel(f"{who}, {where} text", similarity_map({**row, "names": (left, right)})))
    return panels


def load_panels(view: View, target: str = "cross") -> list[Panel]:
    """Where the routers of the first seed send the tokens of the texts that choose."""
    panels = []
    for name in ("layer", "with_generalist", "top1", "balanced"):
        blocks = [_named(view, row) for row in view.rows("loads", target=target, candidate=name)]
        if blocks:
            models = list(dict.fromkeys(expert["model"] for expert in blocks[0]["experts"]))
            panels.append(Panel(LABELS[name], load_bars(blocks, models)))
    if blocks := view.rows("loads", target=target, candidate="depth3"):
        panels.append(Panel(f"{LABELS['depth3']}: where each block's MLPs come from", reach_map(blocks)))
    return panels


def _named(view: View, row) -> dict:
    experts = [{**expert, "model": view.called(expert["model"])} for expert in row["experts"]]
    return {**row, "experts": experts}
