"""`asterism merge RECIPE OUT`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from asterism.cli.options import Given, command
from asterism.core.errors import SettingsError


@command(omit=("dtype",))
def app(
    recipe: Annotated[Path, typer.Argument(help="YAML in mergekit's schema.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier merge that lies there is replaced whole.")],
    shard_size: Annotated[
        float | None, typer.Option(min=0.001, help="Most gigabytes of tensors a file of a checkpoint.  [default: 5]", show_default=False)
    ] = None,
    form: Annotated[
        Literal["checkpoint", "adapter"],
        typer.Option("--as", help="A whole model, or one PEFT LoRA adapter where all models are adapters of one base."),
    ] = "checkpoint",
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the adapter; needed unless the method is a weighted sum.", show_default=False)
    ] = None,
    push: Annotated[str | None, typer.Option(help="Hub repository to upload the merge to, owner/name.", show_default=False)] = None,
    *,
    given: Given,
):
    """Merge models as a recipe says, one tensor at a time, and write a checkpoint that `transformers` loads, or an adapter for `peft`."""
    if rank and form != "adapter":
        raise SettingsError("Only an adapter has a rank.", met=f"--rank {rank} --as {form}", mend="add --as adapter, or leave --rank out")
    if shard_size and form == "adapter":
        raise SettingsError("An adapter is one file.", met=f"--shard-size {shard_size:g} --as adapter", mend="leave --shard-size out")
    if push is not None and push.count("/") != 1:
        raise SettingsError("That names no repository of the Hub.", met=push, mend="--push owner/name")
    if form == "adapter":
        told, shown = _adapter(recipe, out, rank, given)
    else:
        told, shown = _checkpoint(recipe, out, int((shard_size or 5) * 1e9), given)
    address = None
    if push is not None:
        from asterism.models.sources import pushed

        address = pushed(out, push)

    def show() -> None:
        from asterism.cli.output import line

        shown()
        if address:
            line(f"uploaded: {address}")

    return {"out": out, "as": form, **told, "uploaded": address}, show


def _checkpoint(recipe: Path, out: Path, shard_bytes: int, given: Given) -> tuple[dict[str, Any], Callable[[], None]]:
    from asterism.merge.run import merge_recipe

    told = merge_recipe(recipe, out, seed=given.seed, device=given.device, shard_bytes=shard_bytes)

    def show() -> None:
        from asterism.cli.output import table

        rows = [
            (source["model"], str(source["tensors"]), "" if source["distance"] is None else f"{source['distance']:.2%}")
            for source in told["sources"]
        ]
        table(f"{told['method']['title']}: {out}", ("model", "tensors", "distance of the merge"), rows)

    return told, show


def _adapter(recipe: Path, out: Path, rank: int | None, given: Given) -> tuple[dict[str, Any], Callable[[], None]]:
    from asterism.cli.output import adapter_table
    from asterism.core.storage import read_json
    from asterism.merge.lora import RECORD, merge_adapters

    report = merge_adapters(recipe, out, rank=rank, seed=given.seed, device=given.device)
    told = read_json(out / RECORD)
    return told, lambda: adapter_table(f"{told['method']['title']}: {out}", report)
