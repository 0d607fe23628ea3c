"""One self-contained HTML page from the results; sections without rows are left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asterism.report.pages import written
from experiments.fuse import panels, summaries
from experiments.fuse.claims import judged
from experiments.fuse.view import View
from experiments.pages import rendered
from experiments.verdicts import by_theme, counted

TITLE = "Fusing experts of different families, tested"


def write(results: Mapping[str, Any], path: str | Path) -> Path:
    """Write the report to the file `path`; returns it. StorageError where it cannot be written."""
    return written(html(results), path)


def html(results: Mapping[str, Any]) -> str:
    """The page as a string; equal results give equal text."""
    view, register = View(results), judged(results)
    changes, legend = panels.change_panels(view)
    lead, *more = [*summaries.lines(view), size(view)]
    return rendered(
        Path(__file__).with_name("fuse.html.j2"),
        title=TITLE,
        lead=lead,
        more=more,
        view=view,
        settings=view.results["settings"],
        gains=panels.gain_panels(view),
        parts=[
            (summaries.titled(view, part), panels.score_panels(view, part)) for part in summaries.TITLES if part not in summaries.VARIED
        ],
        variants=[(summaries.titled(view, part), panels.variant_panels(view, part)) for part in summaries.VARIED],
        changes=changes,
        legend=legend,
        tables=summaries.tables(view),
        themes=by_theme(register),
        counted=counted(register),
    )


def size(view: View) -> str:
    """What it was measured on."""
    families = [
        f"{view.called(own['name'])} ({own['parameters'] / 1e6:.2g} M parameters, {own['blocks']} x {own['hidden']}, "
        f"{own['vocabulary']:,} tokens, rank {own['rank']})"
        for own in view.results["families"]
        if "parameters" in own
    ]
    count = f"{len(view.seeds)} seed{'s' if len(view.seeds) > 1 else ''}"
    fewer = "".join(f"; {summaries.titled(view, part)}" for part in summaries.TITLES if view.fewer(part))
    return f"Measured on {'; '.join(families) or 'backbones that are not at hand'}; {count}{fewer}."
