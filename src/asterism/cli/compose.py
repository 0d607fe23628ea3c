"""`asterism compose LIBRARY TEXT --out DIR`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from asterism.cli.explain import PAPER, QUERY
from asterism.cli.options import LIBRARY, Given, command
from asterism.cli.places import open_both, query_settings, text_of
from asterism.compose.settings import CompositionSettings
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import SettingsError

Form = Literal["checkpoint", "adapter"]
FORM = Annotated[Form, typer.Option("--as", help="A whole model, or a PEFT LoRA adapter of the generalist.")]
RANK = Annotated[int | None, typer.Option(min=1, help="Rank of the adapter; needed unless all are LoRA adapters.", show_default=False)]


@command(MixtureSettings, CompositionSettings, omit=("per_module",))
def app(
    library: LIBRARY,
    text: QUERY,
    out: Annotated[Path, typer.Option(help="Folder to write; what lies there is replaced whole.")],
    form: FORM = "checkpoint",
    rank: RANK = None,
    paper: PAPER = False,
    *,
    given: Given,
):
    """Write the model that a text needs. `transformers` loads the checkpoint, `peft` the adapter."""
    check_rank(form, rank)
    query = text_of(text)
    opened, constellation = open_both(library, given, paper=paper)
    settings, composition = query_settings(given, constellation, paper=paper)
    from asterism.compose.export import save_adapter, save_checkpoint

    mixture = constellation.mixture(query, settings)
    kept: dict[str, Any] = {}
    if form == "adapter":
        kept = asdict(save_adapter(opened, mixture, out, composition, rank=rank))
    else:
        save_checkpoint(opened, mixture, out, composition)

    def show() -> None:
        from asterism.cli.output import written_lines

        written_lines(mixture, form, out, kept)

    answer = {"out": out, "as": form, "specialists": list(mixture.specialists), "shares": mixture.shares}
    answer |= {"generalist": mixture.generalist, "delta_scale": mixture.scale, "adapter": kept or None}
    return {**answer, "settings": composition.model_dump(mode="json")}, show


def check_rank(form: Form, rank: int | None) -> None:
    """SettingsError for the rank of something that is no adapter."""
    if rank and form != "adapter":
        raise SettingsError("Only an adapter has a rank.", met=f"--rank {rank} --as {form}", mend="add --as adapter, or leave --rank out")
