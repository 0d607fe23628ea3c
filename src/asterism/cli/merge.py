"""`asterism merge RECIPE OUT`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asterism.cli.options import Given, command
from asterism.core.errors import SettingsError


@command(omit=("dtype",))
def app(
    recipe: Annotated[Path, typer.Argument(help="YAML in mergekit's schema.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier merge that lies there is replaced whole.")],
    shard_size: Annotated[float, typer.Option(min=0.001, help="Most gigabytes of tensors a file.")] = 5.0,
    push: Annotated[str | None, typer.Option(help="Hub repository to upload the merge to, owner/name.", show_default=False)] = None,
    *,
    given: Given,
):
    """Merge models as a recipe says, one tensor at a time, and write a checkpoint that `transformers` loads."""
    if push is not None and push.count("/") != 1:
        raise SettingsError("That names no repository of the Hub.", met=push, mend="--push owner/name")
    from asterism.merge.run import merge_recipe

    told = merge_recipe(recipe, out, seed=given.seed, device=given.device, shard_bytes=int(shard_size * 1e9))
    address = None
    if push is not None:
        from asterism.models.sources import pushed

        address = pushed(out, push)

    def show() -> None:
        from asterism.cli.output import line, table

        rows = [
            (source["model"], str(source["tensors"]), "" if source["distance"] is None else f"{source['distance']:.2%}")
            for source in told["sources"]
        ]
        table(f"{told['method']['title']}: {out}", ("model", "tensors", "distance of the merge"), rows)
        if address:
            line(f"uploaded: {address}")

    return {"out": out, **told, "uploaded": address}, show
