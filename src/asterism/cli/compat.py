"""`asterism compat LIBRARY A B`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import open_library
from asterism.constellation.settings import SimilaritySettings
from asterism.core.storage import check_writable
from asterism.core.words import counted, span
from asterism.route.settings import CompatSettings

MODEL = Annotated[str, typer.Argument(help="A specialist, or generalist.", show_default=False)]


@command(CompatSettings, SimilaritySettings, omit=("layers",))
def app(
    library: LIBRARY,
    a: MODEL,
    b: MODEL,
    data: Annotated[
        list[Path],
        typer.Option(
            help="Folder of cross.<a>-<b>, <domain>.heldout and general.train (or .heldout) files, or a file of rows with `domains`, or of "
            "rows without, which are texts of a task for both; may be repeated."
        ),
    ],
    texts: Annotated[int, typer.Option(min=4, help="Texts drawn that need both models, and as many general ones.")] = 100,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="Compare layers as compatible specialization does: one mean a text, cut at 1024 tokens, biased CKA."),
    ] = False,
    along: Annotated[
        bool,
        typer.Option("--along", help="Also along their training: CKA, and what their mean loses, at every checkpoint that both have kept."),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Page of HTML to write, with the layers of each model among themselves.")] = None,
    *,
    given: Given,
):
    """Measure whether two models fit together, and say what to do with them: merge, compose, route, or neither.

    How alike their layers are (centred kernel alignment), what they changed and how often against each other, what lies between them: the
    loss along the path from one to the other and its barrier. Texts are the pair's cross-domain probes, or where there are none the
    held-out ones of both; general text, if the folder has some, for a second map of layers.
    """
    if report:
        check_writable(report)
    opened = open_library(library, given)
    from asterism.route.along import along as measured_along
    from asterism.route.along import kept_steps
    from asterism.route.compat import compat, pair_corpus, pair_texts
    from asterism.route.interpolation import check_ends

    check_ends(opened, a, b)
    if along:
        kept_steps(opened, (a, b))  # their absence is told now
    target, general = pair_texts(pair_corpus(data, a, b), a, b, texts, given.seed)
    settings = given.settings(CompatSettings, CompatSettings(within=report is not None))
    comparing = given.settings(SimilaritySettings, SimilaritySettings.paper() if paper else None)
    found = compat(opened, a, b, target, general=general, settings=settings, comparing=comparing).to_dict()
    if along:
        how = dict(max_length=settings.max_length, seed=settings.seed)
        found["along"] = measured_along(opened, a, b, target, general=general, comparing=comparing, **how)
    if report:
        from asterism.report.compat import write_compat

        write_compat(found, report)
    return found | ({"report": report} if report else {}), lambda: _show(found, report)


def _show(found: Mapping[str, Any], report: Path | None) -> None:
    from asterism.cli.output import line, table

    left, right = found["left"], found["right"]
    losses = [[name, f"{own['loss']:.3f}", _interval(own)] for name, own in found["losses"].items()]
    table(f"Losses on {counted(found['texts'], 'text')}, nats a token", ["model", "loss", "95 %"], losses)
    for kind, barrier in found["barriers"].items():
        points = zip((row for row in found["paths"] if row["kind"] == kind), barrier["excess"], strict=True)
        rows = [[f"{row['share']:.0%}", f"{row['loss']:.3f}", _interval(row), f"{excess:+.3f}"] for row, excess in points]
        table(f"The path from {right} to {left}, {kind}", [left, "loss", "95 %", "above the line"], rows)
        line(f"barrier: {barrier['height']:.3f} nats ({_interval(barrier)}), at {barrier['share']:.0%} {left}")
    rows = [
        [part, f"{own['cosine']:.3f}", f"{own['signs']:.1%}", f"{own['mass']:.1%}", *(f"{norm:.3g}" for norm in own["norms"])]
        for part, own in found["deltas"].items()
        if any(own["norms"]) or part == "all"  # of what neither changed there is nothing to say
    ]
    table("Deltas from the generalist", ["part", "cosine", "signs opposed", "by |x y|", f"|{left}|", f"|{right}|"], rows)
    for name, own in found["similarity"].items():
        _show_map(f"CKA on {name} texts: layers of {left} (rows) and of {right}", own)
        line(f"mean of corresponding layers: {found['similar'][name]:.3f}")
    for name, own in found["within"].items():
        _show_map(f"CKA within {name}", own)
    if "along" in found:
        _show_along(found)
    line(f"\nadvice: {found['advice']}\n{found['reason']}")
    for note in found["notes"]:
        line(f"note: {note}")
    if report:
        line(f"report: {report}")


def _show_along(found: Mapping[str, Any]) -> None:
    from asterism.cli.output import table

    first = found["along"][0]
    columns = [
        "step",
        *(f"CKA, {name} texts" for name in first["similar"]),
        *(f"loss of {name}" for name in first["losses"]),
        "of their mean",
    ]
    rows = []
    for row in found["along"]:
        losses = [f"{own['loss']:.3f}" for own in (*row["losses"].values(), row["mean"])]
        rows.append([str(row["step"]), *(f"{own:.3f}" for own in row["similar"].values()), *losses])
    table("Along their training", columns, rows)


def _show_map(title: str, own: Mapping[str, Any]) -> None:
    """All pairs of layers, or where they are many the corresponding ones."""
    from asterism.cli.output import WIDEST, bar, table

    rows, columns = own["layers"]
    if len(rows) <= WIDEST:
        cells = [[str(row), *(f"{value:.2f}" for value in values)] for row, values in zip(rows, own["map"], strict=True)]
        table(title, ["", *map(str, columns)], cells)
    else:
        values = [own["map"][place][place] for place in range(len(rows))]
        cells = [[str(row), f"{value:.3f}", bar(value, 1.0)] for row, value in zip(rows, values, strict=True)]
        table(title, ["block", "CKA", ""], cells)


def _interval(own: Mapping[str, Any]) -> str:
    return span(own["low"], own["high"])
