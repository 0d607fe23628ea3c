"""`asterism demo`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from asterism.cli.options import Given, command
from asterism.cli.places import torch_dtype
from asterism.core.progress import is_quiet


@command()
def app(
    out: Annotated[Path, typer.Option(help="Folder for models, index, results and report; a second run reuses it.")] = Path(
        "asterism-demo"
    ),
    data: Annotated[
        list[Path] | None, typer.Option(help="Your own text instead: a folder of <domain>.train.jsonl files; may be repeated.")
    ] = None,
    *,
    given: Given,
):
    """The whole story, offline, in about four minutes on two cores.

    A small generalist and four specialists are trained on text made here from a seed (or on yours), indexed, diagnosed,
    evaluated beside their rivals, and then answer a few questions, each with its mixture.
    """
    from asterism.demo.road import run_demo

    say = (lambda text: None) if is_quiet() else (lambda text: print(text, file=sys.stderr, flush=True))
    made = run_demo(out, tuple(data or ()), seed=given.seed, device=given.device, dtype=torch_dtype(given.dtype), say=say)

    def show() -> None:
        from asterism.cli.output import answers_table, line
        from asterism.report.terminal import print_results

        print_results(made.results)
        answers_table(made.answers)
        line(f"report: {made.report}")

    return {"out": out, "report": made.report, "answers": made.answers, "results": made.results}, show
