"""`asterism train LIBRARY NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from asterism.cli.options import LIBRARY, Given, command, is_first_process
from asterism.cli.places import torch_dtype
from asterism.core.errors import SettingsError
from asterism.models.settings import PRESETS, TrainingSettings


@command(TrainingSettings)
def app(
    library: LIBRARY,
    name: Annotated[str, typer.Argument(help="`generalist`, or the name of a specialist: its domain.", show_default=False)],
    data: Annotated[str, typer.Option(help="A JSON-lines file, a folder of <domain>.train.jsonl files, or a dataset's Hub id.")],
    preset: Annotated[Literal["paper", "mlp", "target"], typer.Option(help="Named settings that the options below change.")] = "paper",
    start: Annotated[str | None, typer.Option("--from", help="Folder or Hub id that the generalist starts from.")] = None,
    shape: Annotated[Literal["gpt2", "qwen2", "llama"], typer.Option(help="Architecture of a generalist from nothing.")] = "gpt2",
    hidden: Annotated[int, typer.Option(min=2, help="Its hidden size.")] = 192,
    blocks: Annotated[int, typer.Option(min=1, help="Its transformer blocks.")] = 6,
    vocabulary: Annotated[int, typer.Option(min=257, help="Tokens of its tokenizer.")] = 8192,
    share: Annotated[float, typer.Option(min=0, max=1, help="Part of each domain's texts in a folder that the generalist sees.")] = 0.15,
    *,
    given: Given,
):
    """Train a generalist, or a specialist from it, and add it to the library.

    Interrupted, the same command goes on where it stopped. A finished run with the same settings and texts is not repeated.
    `accelerate launch -m asterism train ...` trains on several devices.
    """
    settings = given.settings(TrainingSettings, TrainingSettings(**PRESETS[preset]))
    if name != "generalist" and start:
        raise SettingsError("A specialist starts from the library's generalist.", met=f"--from {start}", mend="leave --from out")
    from asterism.models.library import check_name
    from asterism.models.starts import from_nothing, pretrained, training_texts
    from asterism.models.training import train

    if name != "generalist":
        check_name(name)
    texts = training_texts(data, name, share=share, seed=settings.seed)
    if name == "generalist":
        if start:
            model, tokenizer = pretrained(start)
        else:
            model, tokenizer = from_nothing(
                texts,
                shape,
                hidden=hidden,
                blocks=blocks,
                vocabulary=vocabulary,
                positions=max(512, settings.max_length),
                seed=settings.seed,
            )
        out = train(model, tokenizer, texts, library / name, settings, device=given.device)
        _register_generalist(library)
    else:
        out = _specialist(library, name, texts, settings, given)

    def show() -> None:
        from asterism.cli.output import line

        line(f"{name}: {out}")

    return {"name": name, "path": out, "texts": len(texts), "settings": settings.model_dump(mode="json")}, show


def _register_generalist(root: Path) -> None:
    from asterism.models.library import Library

    if is_first_process() and not (root / "library.json").exists():
        Library.create(root, "generalist", {})


def _specialist(root: Path, name: str, texts: list[str], settings: TrainingSettings, given: Given) -> Path:
    from asterism.models.library import Library
    from asterism.models.training import train

    library = Library.open(root, dtype=torch_dtype(given.dtype or "float32"))  # trained in float32 whatever it is stored in
    out = train(library.fresh_model(), library.tokenizer, texts, root / name, settings, base=str(root / "generalist"), device=given.device)
    if is_first_process() and name not in library.names:
        library.add(name, name)
    return out
