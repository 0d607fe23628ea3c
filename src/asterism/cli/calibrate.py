"""`asterism calibrate LIBRARY --data DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import CONSTELLATION, open_both
from asterism.evaluate.settings import EvaluationSettings

STATE = ".calibration"
"""Folder in the library where finished passes of an unfinished fit are kept."""


@command(EvaluationSettings, omit=("protocols", "ensembles", "example", "scale", "paper_layers", "refine"))
def app(
    library: LIBRARY,
    data: Annotated[
        list[Path],
        typer.Option(help="Folder of <domain>.heldout and cross.<a>-<b> files, or a file of rows with `domains`; may be repeated."),
    ],
    per_group: Annotated[int, typer.Option(min=1, help="Validation probes of each domain and pair, of those that no test draws.")] = 6,
    *,
    given: Given,
):
    """Fit how evidence and prior are weighed, on held-out probes that `evaluate` with the same seed and counts never scores.

    The numbers are kept with the constellation, and the probes' digests beside them: an evaluation on these probes is refused.
    """
    settings = given.settings(EvaluationSettings)
    opened, constellation = open_both(library, given)
    from asterism.core.corpus import read_corpus
    from asterism.evaluate.calibrate import calibrate
    from asterism.evaluate.probes import validation_probes

    probes = validation_probes(read_corpus(*data), opened.names, settings, per_group)
    fitted = calibrate(opened, constellation, probes, settings, state=opened.root / STATE)
    place = fitted.save(opened.root / CONSTELLATION)
    numbers = fitted.calibration.model_dump(mode="json", exclude={"losses", "probes", "specialists"})

    def show() -> None:
        from asterism.cli.output import line, table

        table(f"fitted on {len(probes)} probes", ["number", "value"], [[name, f"{value:g}"] for name, value in numbers.items()])
        rows = sorted(fitted.calibration.losses.items(), key=lambda pair: pair[1])
        table("mean loss on them, nats a token", ["way to answer", "loss"], [[name, f"{loss:.4f}"] for name, loss in rows])
        line(str(place))

    return {"constellation": place, "probes": len(probes), **numbers, "losses": fitted.calibration.losses}, show
