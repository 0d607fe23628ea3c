"""`asterism train LIBRARY NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asterism.cli.options import LIBRARY, Given, command, is_first_process
from asterism.cli.places import torch_dtype
from asterism.core.errors import SettingsError
from asterism.models.settings import PRESETS, TrainingSettings

if TYPE_CHECKING:
    from asterism.models.examples import Example


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
    on_responses: Annotated[
        bool,
        typer.Option("--on-responses", help="Learn the responses alone, of rows with prompts."),
    ] = False,
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="With --on-responses: share of the rows by whose loss the best state is chosen; 0 for none.")
    ] = 0.0,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="With --on-responses: ask in the tokenizer's chat template, where it has one.")
    ] = True,
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
    if held_out and not on_responses:
        raise SettingsError("Rows are held out of examples.", met=f"--held-out {held_out:g}", mend="add --on-responses, or leave it out")
    from asterism.models.library import check_name
    from asterism.models.starts import from_nothing, pretrained, training_examples, training_texts

    if name != "generalist":
        check_name(name)
    if on_responses:
        rows = _Rows(examples=training_examples(data, name), held_out=held_out, chat=chat)
    else:
        rows = _Rows(training_texts(data, name, share=share, seed=settings.seed))
    if name == "generalist":
        if start:
            model, tokenizer = pretrained(start)
        else:
            model, tokenizer = from_nothing(
                rows.whole,
                shape,
                hidden=hidden,
                blocks=blocks,
                vocabulary=vocabulary,
                positions=max(512, settings.max_length),
                seed=settings.seed,
            )
        out = rows.learn(model, tokenizer, library / name, settings, given)
        _register_generalist(library)
    else:
        out = _specialist(library, name, rows, settings, given)

    def show() -> None:
        from asterism.cli.output import line

        line(f"{name}: {out}")

    counted = {"examples" if on_responses else "texts": len(rows.examples or rows.texts)}
    return {"name": name, "path": out, **counted, "settings": settings.model_dump(mode="json")}, show


@dataclass(frozen=True)
class _Rows:
    """What is learnt: texts, or the responses of examples."""

    texts: Sequence[str] = ()
    examples: Sequence[Example] = ()
    held_out: float = 0.0
    chat: bool = True

    @property
    def whole(self) -> list[str]:
        """All of it as texts, for a tokenizer to be learnt from."""
        return [*self.texts, *(f"{example.prompt}\n{example.response}" for example in self.examples)]

    def learn(self, model: Any, tokenizer: Any, out: Path, settings: TrainingSettings, given: Given, base: str | None = None) -> Path:
        from asterism.models.examples import held_apart
        from asterism.models.training import train, tune

        if not self.examples:
            return train(model, tokenizer, self.texts, out, settings, base=base, device=given.device)
        learnt, apart = held_apart(self.examples, self.held_out, settings.seed)
        return tune(model, tokenizer, learnt, out, settings, held_out=apart, chat=self.chat, base=base, device=given.device)


def _register_generalist(root: Path) -> None:
    from asterism.models.library import Library

    if is_first_process() and not (root / "library.json").exists():
        Library.create(root, "generalist", {})


def _specialist(root: Path, name: str, rows: _Rows, settings: TrainingSettings, given: Given) -> Path:
    from asterism.models.library import Library

    library = Library.open(root, dtype=torch_dtype(given.dtype or "float32"))  # trained in float32 whatever it is stored in
    out = rows.learn(library.fresh_model(), library.tokenizer, root / name, settings, given, str(root / "generalist"))
    if is_first_process() and name not in library.names:
        library.add(name, name)
    return out
