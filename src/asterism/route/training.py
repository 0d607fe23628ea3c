"""Training of a router: the gates of a routed model alone, on texts of the task that the experts are to be combined for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from torch import Tensor

from asterism.core.errors import DataError, SettingsError
from asterism.core.storage import read_tensors
from asterism.models.routed import RoutedForCausalLM
from asterism.models.settings import PRESETS, TrainingSettings
from asterism.models.training import gates_of, train
from asterism.models.types import PreTrainedTokenizerBase
from asterism.route.build import TENSORS, write_router


def train_router(
    model: RoutedForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    out: str | Path,
    settings: TrainingSettings | None = None,
    *,
    device: str | None = None,
) -> Path:
    """Train the gates of a routed model, in place, and leave them as a router at `out` (see `load_router`), whole or absent.

    The experts, attention, norms and embeddings stay as they are. An interrupted run resumes, a finished one is not repeated: the model
    then gets its gates. The default settings are the paper's (PRESETS["router"]: 1739 steps of 92 windows of 1024 tokens).
    Raises as `asterism.models.training.train`, and SettingsError for another method than `router`, DataError for an empty text.
    """
    settings = settings or TrainingSettings(**PRESETS["router"])
    if settings.method != "router":
        raise SettingsError("A router trains its gates alone.", met=f"method {settings.method!r}", mend='method "router"')
    check_texts(texts)
    gates_of(model)
    origin = model.config.origin

    def save(folder: Path, gates: Mapping[str, Tensor]) -> None:
        write_router(folder, gates, origin)

    folder = train(model, tokenizer, texts, out, settings, device=device, save=save)
    model.load_state_dict(read_tensors(folder / TENSORS), strict=False)
    model.eval()
    return folder


def split(texts: Sequence[str], held_out: float = 0.1, seed: int = 42) -> tuple[list[str], list[str]]:
    """Texts to train on and texts held out, a share of all drawn by `seed`; each in the order given.

    Raises SettingsError for a share outside (0, 1), DataError for an empty text or where either part would be empty.
    """
    if not 0 < held_out < 1:
        raise SettingsError("What is held out is a share of the texts.", met=held_out, mend="e.g. 0.1 for a tenth")
    check_texts(texts)
    count = round(held_out * len(texts))
    if not 0 < count < len(texts):
        met = f"{len(texts)} texts, {held_out:g} of them held out"
        raise DataError("Too few texts to hold some out.", met=met, mend="give more texts or another share")
    chosen = set(Random(seed).sample(range(len(texts)), count))
    return [text for row, text in enumerate(texts) if row not in chosen], [texts[row] for row in sorted(chosen)]


def check_texts(texts: Sequence[str]) -> None:
    """DataError for one text in the place of a list, or naming the first that is empty."""
    if isinstance(texts, str):
        raise DataError("A router learns from a list of texts.", met=repr(texts)[:60], mend='e.g. ["one text", "another"]')
    for row, text in enumerate(texts):
        if not text.strip():
            raise DataError("A text is empty.", met=f"text {row}: {text!r}", mend="leave it out or give it some words")
