"""The page of a comparison of two models: the advice first, then what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asterism.report.curves import Point, loss_by_similarity, loss_curves, path_curves
from asterism.report.figures import Dot, loss_dots
from asterism.report.maps import similarity_map
from asterism.report.pages import rendered, written

KINDS = {"lerp": "weights, on a line", "slerp": "weights, on an arc", "activation": "MLP outputs"}
ADVICE = {
    "merge": "Merge them: one model for all texts.",
    "compose": "Compose them: a mixture for each text.",
    "route": "Route between them: gates weigh their MLPs token by token.",
    "neither": "Neither merge, compose nor route: one model alone does as well.",
}


def write_compat(found: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of `Compatibility.to_dict()` to the file `out`; StorageError where it cannot be written."""
    return written(compat_html(found), out)


def compat_html(found: Mapping[str, Any]) -> str:
    """The page as a string; equal measurements give equal text."""
    left, right = found["left"], found["right"]
    lows = [value for own in (*found["similarity"].values(), *found["within"].values()) for row in own["map"] for value in row]
    low = min(0.0, *lows) if min(lows) < -0.05 else 0.0
    return rendered(
        "compat.html.j2",
        title=f"{left} and {right}: do they fit together?",
        lead=ADVICE[found["advice"]],
        found=found,
        losses=loss_dots(_bars(found["losses"]), found["texts"], [left, right]),
        ways=_ways(found),
        path=_path(found),
        across={name: similarity_map(own, low=low) for name, own in found["similarity"].items()},
        within={name: similarity_map(own, low=low) for name, own in found["within"].items()},
        kinds=KINDS,
        along=_along(found) if "along" in found else {},
    )


def _along(found: Mapping[str, Any]) -> dict[str, str]:
    """Losses by the step of training, and the loss of the mean by how alike the two are then."""
    rows, n = found["along"], found["texts"]
    series: dict[str, list[Point]] = {}
    for row in rows:
        for name, own in (*row["losses"].items(), ("their mean", row["mean"])):
            series.setdefault(name, []).append((row["step"], own["loss"], own["low"], own["high"]))
    alike = {f"{name} texts": [(row["step"], row["similar"][name], row["mean"]["loss"]) for row in rows] for name in rows[0]["similar"]}
    return {
        "Losses by step": loss_curves(series, n, title="Losses along training"),
        "Loss of the mean by CKA": loss_by_similarity(alike, n, title="Loss of the mean by similarity"),
    }


def _bars(rows: Mapping[str, Mapping[str, Any]]) -> list[Dot]:
    return [(name, own["loss"], own["low"], own["high"]) for name, own in rows.items()]


def _ways(found: Mapping[str, Any]) -> str:
    """What each way loses on the texts' second halves; the advised one is told from the others."""
    bars = sorted(_bars(found["ways"]), key=lambda bar: bar[1])
    return loss_dots(bars, found["texts"], [found["advice"]])


def _path(found: Mapping[str, Any]) -> str:
    paths: dict[str, list[Point]] = {}
    for row in found["paths"]:
        paths.setdefault(KINDS[row["kind"]], []).append((row["share"], row["loss"], row["low"], row["high"]))
    own = found["barriers"]["lerp"]
    levels = {name: row["loss"] for name, row in found["losses"].items() if name not in (found["left"], found["right"])}
    return path_curves(paths, (found["right"], found["left"]), found["texts"], levels=levels, barrier=(own["share"], own["height"]))
