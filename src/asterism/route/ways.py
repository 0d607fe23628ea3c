"""Untrained gates by the name of their way, each from the files that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from asterism.core.corpus import GENERAL, read_corpus
from asterism.core.errors import AsterismError, DataError, SettingsError, StorageError
from asterism.core.settings import read_mapping
from asterism.models.library import Library
from asterism.route.arrow import arrow_gates
from asterism.route.build import specialists_of
from asterism.route.experts import GENERALIST
from asterism.route.settings import RouterSettings
from asterism.route.untrained import Gates, average_activation_gates, only, prompt_gates

Way = Literal["prompts", "average", "arrow"]
_PROMPTS = "`expert: ['a prompt', 'another']`, or `expert: {prompts: [...], negative: [...]}`"
_FOLDER = "a folder of <expert>.train.jsonl files"
TEXTS = 200
"""Training texts of each expert that average activations are taken of."""


def gates_by(
    library: Library, way: Way, settings: RouterSettings, *, data: str | Path | None = None, prompts: str | Path | None = None
) -> tuple[Gates, list[str]]:
    """The gates, with the settings' experts and scale, and the texts that were read for them.

    `prompts` needs a YAML or JSON file of prompts, see `read_prompts`, whose experts are taken where the settings name none; `average`
    a folder of `<expert>.train.jsonl` files (`general` for the generalist); `arrow` nothing. Raises SettingsError where that is
    missing or the settings give the gates another mode, and what the gates' own functions raise.
    """
    if settings.mode != "softmax":
        raise SettingsError("Untrained gates have a mode of their own.", met=f"mode {settings.mode}", mend="leave the mode out")
    names = [*specialists_of(library, settings), *([GENERALIST] if settings.with_generalist else [])]
    if way == "arrow":
        gates, read = only(arrow_gates(library, with_generalist=settings.with_generalist), names), []
    elif way == "average":
        folder = Path(_needed(data, way, f"{_FOLDER} as --data"))
        if not folder.is_dir():
            raise DataError("Average activations are of each expert's own training texts.", met=folder, mend=f"give {_FOLDER}")
        train = read_corpus(folder).train
        texts = {name: train.get(GENERAL if name == GENERALIST else name, [])[:TEXTS] for name in names}
        gates, read = average_activation_gates(library, texts), [text for own in texts.values() for text in own]
    else:
        wanted, negative = read_prompts(_needed(prompts, way, "a YAML file of prompts for each expert as --prompts"))
        if settings.experts is not None or settings.with_generalist:
            wanted = {name: wanted.get(name, []) for name in names}
        gates, read = prompt_gates(library, wanted, {name: own for name, own in negative.items() if name in wanted}), []
    return replace(gates, scale=settings.scale), read


def read_prompts(path: str | Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """(prompts, negative prompts) by expert: `math: ['a prompt', 'another']`, or `math: {prompts: [...], negative: [...]}`.

    Raises StorageError for a file that cannot be read, DataError for another form.
    """
    try:
        rows = read_mapping(path)
    except AsterismError as error:
        raise StorageError("The file of prompts cannot be read.", met=error.met, mend=f"{_PROMPTS}, in YAML or JSON") from None
    wanted, negative = {}, {}
    for name, given in rows.items():
        parts = given if isinstance(given, dict) else {"prompts": given}
        if not set(parts) <= {"prompts", "negative"} or not all(_are_texts(part) for part in parts.values()):
            raise DataError("Prompts are lists of texts.", met=f"{name}: {given!r}"[:100], mend=_PROMPTS)
        wanted[name] = list(parts.get("prompts", []))
        if parts.get("negative"):
            negative[name] = list(parts["negative"])
    return wanted, negative


def _are_texts(given: Any) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str) and all(isinstance(text, str) for text in given)


def _needed(given: str | Path | None, way: Way, what: str) -> str | Path:
    if given is None:
        raise SettingsError(f"Gates by {way} need something to read.", met="nothing", mend=f"give {what}")
    return given
