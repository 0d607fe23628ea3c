"""`asterism extract-lora SPECIALIST OUT --base BASE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asterism.cli.options import Given, command


@command(omit=("dtype", "seed"))
def app(
    specialist: Annotated[str, typer.Argument(help="The tuned model: a folder, or a Hub id such as org/name or org/name@revision.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier extraction that lies there alone is replaced whole.")],
    base: Annotated[str, typer.Option(help="The model that it was tuned from; the adapter is put on it.", show_default=False)],
    rank: Annotated[int | None, typer.Option(min=1, help="The most that every matrix gets.", show_default=False)] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Instead: share of each change's squared norm to keep, e.g. 0.9; each matrix gets its own rank.", show_default=False
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse where something changed that no LoRA can hold.")] = False,
    *,
    given: Given,
):
    """Cut a LoRA adapter out of a model that was tuned in full, and say what it loses. `peft` loads it onto the base."""
    from asterism.cli.output import adapter_table
    from asterism.core.storage import read_json
    from asterism.merge.extract import RECORD, extract

    report = extract(base, specialist, out, rank=rank, energy=energy, strict=strict, device=given.device)
    return {"out": out, **read_json(out / RECORD)}, lambda: adapter_table(f"LoRA of {specialist}: {out}", report)
