"""One self-contained HTML page from the results; sections without rows are left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asterism.constellation.diagnosis import CLOSE
from asterism.report.pages import written
from experiments.pages import rendered
from experiments.route import panels, summaries
from experiments.route.claims import judged
from experiments.route.gather import MERGING
from experiments.route.tuned import FINETUNED
from experiments.route.view import View
from experiments.verdicts import by_theme, counted

TITLE = "Compatible specialization, tested"


def write(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report to the file `path`; returns it. StorageError where it cannot be written."""
    return written(html(results), path)


def html(results: Mapping[str, Any]) -> str:
    """The page as a string; equal results give equal text."""
    view, register = View(results), judged(results)
    lead, *more = lines(view)
    return rendered(
        Path(__file__).with_name("route.html.j2"),
        title=TITLE,
        lead=lead,
        more=more,
        view=view,
        curves=panels.curve_panels(view),
        similar=panels.similarity_panels(view),
        turning=summaries.turning(view),
        ladders=panels.ladder_panels(view),
        paths=panels.path_panels(view),
        trained=summaries.trained(view),
        ablations=summaries.ablations(view),
        everyone=panels.everyone_panels(view),
        tables=summaries.tables(view),
        maps={view.called(target): found for target in view.targets if (found := panels.map_panels(view, target))},
        loads=panels.load_panels(view),
        advisers=summaries.advisers(view),
        close=CLOSE,
        themes=by_theme(register),
        counted=counted(register),
    )


def lines(view: View) -> list[str]:
    """The findings in words: the best of the ladder against interpolation and fine-tuning, the curve, and the size of it all."""
    said = []
    for target in view.targets:
        best, tuned = view.gain(target, MERGING, "interpolation"), view.gain(target, FINETUNED, MERGING)
        if best and tuned:
            told = f"On {view.called(target)} the best of the ladder saves {best['gain']:.3f} nats a token against the best interpolation"
            sure = "saves another" if tuned["low"] > 0 else "loses" if tuned["high"] < 0 else ""
            other = f"{sure} {abs(tuned['gain']):.3f}" if sure else "is level with it"
            said.append(f"{told}; fine-tuning on the same windows {other}.")
    if turn := view.turn("activation"):
        rise = turn["rise"]
        steps = ", ".join(map(str, turn["steps"]))
        back = (
            f"from there to step {turn['last']} the loss rises by {rise['gain']:.3f}"
            if rise["low"] > 0
            else "it does not surely rise again"
        )
        said.append(f"Along the experts' training their interpolation is best at step {steps} (seed by seed); {back}.")
    model = view.results["model"]
    count = f"{len(view.seeds)} seed{'s' if len(view.seeds) > 1 else ''}"
    size = f"{model['parameters'] / 1e6:.2g} million parameters, {model['blocks']} blocks of width {model['hidden']}"
    return [*said, f"Measured on generalists of {size}; {count}."]
