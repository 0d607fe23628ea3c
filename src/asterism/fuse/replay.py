"""Replay data of a fusion and of its control: which examples both learn from, which are held out, and the target they start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asterism.core.errors import DataError, MismatchError, StorageError
from asterism.core.storage import read_json
from asterism.fuse.recipe import Data
from asterism.models.adapters import check_base, read_adapter
from asterism.models.examples import Example, example_of, held_apart, read_examples
from asterism.models.runs import state_folder
from asterism.models.settings import TrainingSettings
from asterism.models.sources import located, recorded
from asterism.models.starts import pretrained
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

Rows = str | Path | Data | Sequence[str | Path | Data | Example | Mapping[str, Any]]
"""A file, a folder or a Hub id; examples or rows themselves; or a list of any of these."""
HeldOut = float | Rows


@dataclass(frozen=True, eq=False)
class Target:
    """The backbone, its tokenizer and where the adapter lies."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_at: Path
    adapter_at: Path


def replay(rows: Rows) -> list[Example]:
    """The examples of replay data, in the order given. DataError where there are none."""
    if isinstance(rows, str | Path | Data):
        rows = [rows]
    found = [example for number, part in enumerate(rows, 1) for example in _read(part, number)]
    if not found:
        raise DataError("The replay data is empty.", met="no examples", mend="give rows with a prompt and a response")
    return found


def learnt_and_held_out(rows: Rows, held_out: HeldOut, seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to learn from, and those held out: a share of the different ones drawn by `seed` (0 for none), or rows of their own."""
    examples = replay(rows)
    if isinstance(held_out, int | float):
        return held_apart(examples, held_out, seed)
    return examples, replay(held_out)


def open_target(target: tuple[str | Path, str | Path], out: Path, training: TrainingSettings) -> Target:
    """Load the target's backbone and look at its adapter's place; nothing there is written to.

    The backbone is in float32, or as it is stored where training computes in bfloat16. Raises StorageError for an `out` that is the
    adapter or the model or lies in them, MismatchError for an adapter of another base or one that was saved with another chat template.
    """
    here = Path.cwd()
    names = [recorded(place, here) for place in target]
    model_at, adapter_at = (located(name, here) for name in names)
    check_apart(out, model_at, adapter_at)
    check_base(read_adapter(adapter_at), names[0], model_at, state_folder(out))
    model, tokenizer = backbone(model_at, training)
    check_template(tokenizer, model_at, adapter_at)
    return Target(model, tokenizer, model_at, adapter_at)


def backbone(model: str | Path, training: TrainingSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A target's model in float32, or as it is stored where training computes in bfloat16, and its tokenizer."""
    return pretrained(str(model), dtype=None if training.bf16 else torch.float32)


def check_apart(out: Path, *places: Path) -> None:
    """StorageError where `out` is one of these places, lies in one or holds one."""
    whole = out.expanduser().resolve()
    for place in (each.resolve() for each in places):
        if whole == place or place in whole.parents or whole in place.parents:
            mend = "choose another place: target and sources are never changed"
            raise StorageError("The output would lie in or over what it is made from.", met=f"{out} and {place}", mend=mend)


def check_template(tokenizer: PreTrainedTokenizerBase, model_at: Path, adapter_at: Path) -> None:
    """MismatchError where the adapter's folder holds a tokenizer with another chat template than the model's: its prompts were others."""
    if not any((adapter_at / name).is_file() for name in ("tokenizer_config.json", "chat_template.jinja")):
        return
    own, other = tokenizer.chat_template, template_at(adapter_at)
    if own != other:
        met = f"{model_at}: {_short(own)}; {adapter_at}: {_short(other)}"
        mend = "copy the chat template that the adapter was trained with (chat_template.jinja) beside both, or take it from both"
        raise MismatchError("The target's model and adapter have unequal chat templates.", met=met, mend=mend)


def template_at(folder: Path) -> Any:
    """The chat template that lies in a folder, several by name, None for none; a file of its own wins over the tokenizer's config."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    found = config.get("chat_template") if isinstance(config, dict) else None
    return {each["name"]: each["template"] for each in found} if isinstance(found, list) else found


def _read(part: Any, number: int) -> Iterable[Example]:
    if isinstance(part, Data):
        return read_examples(part.path, split=part.split, limit=part.limit)
    if isinstance(part, str | Path):
        return read_examples(part)
    return [part if isinstance(part, Example) else example_of(part, f"row {number}")]


def _short(template: Any) -> str:
    return "none" if template is None else repr(template)[:60]
