"""`asterism evaluate LIBRARY --data DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from asterism.cli.merge import TEXTS
from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import named, open_both
from asterism.evaluate.settings import EvaluationSettings

if TYPE_CHECKING:
    from asterism.core.corpus import Corpus
    from asterism.evaluate.merges import Merged
    from asterism.models.library import Library

PROTOCOLS = {"whole": ("whole",), "continuation": ("continuation",), "both": ("whole", "continuation")}


@command(EvaluationSettings, omit=("protocols",))
def app(
    library: LIBRARY,
    data: Annotated[
        list[Path],
        typer.Option(help="Folder of <domain>.heldout and cross.<a>-<b> files, or a file of rows with `domains`; may be repeated."),
    ],
    protocol: Annotated[
        Literal["whole", "continuation", "both"], typer.Option(help="Where weights come from and what is scored.")
    ] = "both",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results.json, rows.parquet and report.html.  [default: LIBRARY/evaluation]", show_default=False),
    ] = None,
    merges: Annotated[
        str | None,
        typer.Option(
            help="Merge methods to compare too, e.g. ties,dare_ties or all; each takes the setting of its usual grid that is best on "
            "held-out texts that no probe is drawn from.",
            show_default=False,
        ),
    ] = None,
    routers: Annotated[
        str | None,
        typer.Option(help="Routers to compare too, NAME=FOLDER,... as `asterism route train` writes them.", show_default=False),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's index and protocol for every candidate (`paper` itself is always among them).")
    ] = False,
    *,
    given: Given,
):
    """Compare the composition with its rivals on held-out probes: generalist, specialists, merges, ensembles, routers."""
    base = EvaluationSettings(protocols=PROTOCOLS["whole" if paper else protocol])
    settings = given.settings(EvaluationSettings, base)
    opened, constellation = open_both(library, given, paper=paper)
    from asterism.constellation.probes import draw_index_probes
    from asterism.core.corpus import read_corpus
    from asterism.evaluate.probes import draw
    from asterism.evaluate.routers import open_routers
    from asterism.evaluate.run import evaluate
    from asterism.evaluate.tuning import possible

    methods = possible(opened, [name.strip() for name in merges.split(",")]) if merges else []
    routed = open_routers(opened, named("router", routers.split(",") if routers else (), "--routers full=routers/full"))
    corpus = read_corpus(*data)
    probes = draw(corpus, opened.names, settings)
    known = draw_index_probes(corpus, opened.names, seed=settings.seed) if all(corpus.train.get(name) for name in opened.names) else None
    place = out or opened.root / "evaluation"
    best = _tuned(opened, corpus, methods, settings, place) if methods else []
    results = evaluate(opened, constellation, probes, settings, out=place, index_probes=known, merges=best, routers=routed)
    from asterism.report.html import write_report

    report = place / "report.html"
    write_report(results, report)

    def show() -> None:
        from asterism.cli.output import line
        from asterism.report.terminal import print_results

        print_results(results)
        line(f"report: {report}")

    return {"out": place, "report": report, "probes": len(probes), "table": results["table"], "losses": results["losses"]}, show


def _tuned(library: Library, corpus: Corpus, methods: Sequence[str], settings: EvaluationSettings, place: Path) -> list[Merged]:
    """The methods asked for, tuned on texts that the draw of test probes leaves over."""
    from asterism.evaluate.probes import validation_probes
    from asterism.evaluate.tuning import tuned

    validation = validation_probes(corpus, library.names, settings)
    texts = {name: corpus.train[name][:TEXTS] for name in library.names if corpus.train.get(name)}
    return tuned(library, methods, validation, settings, texts=texts, state=place / ".merges")
