"""What a training run leaves beside its output while it is unfinished, and how a run is known again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asterism.core.errors import StaleError, StorageError
from asterism.core.storage import digest_of, read_json, write_json
from asterism.models.settings import TrainingSettings

RECORD = "training.json"
MARK = "origin.json"


def origin_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], settings: TrainingSettings
) -> dict[str, Any]:
    """What a run is made from: settings, and digests of texts, starting weights and tokenizer; `origin` sums up the first three."""
    start, routing = _start(model), getattr(model.config, "routing", None)
    if routing is not None:  # gates of equal weights may be used in many ways
        start = digest_of(start, routing)
    return {
        "origin": digest_of(settings.model_dump(mode="json"), list(texts), start, model.config.model_type),
        "settings": settings.model_dump(mode="json"),
        "texts": digest_of(list(texts)),
        "start": start,
        "tokenizer": digest_of(tokenizer.get_vocab(), tokenizer.eos_token_id),
    }


def state_folder(out: Path) -> Path:
    """Where a run that leads to `out` keeps the states it resumes from."""
    return out.parent / f".training-{out.name}"


def is_finished(out: Path, origin: Mapping[str, Any]) -> bool:
    """Whether `out` holds this very run's result; StorageError when it holds something else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if (out / RECORD).exists():
        made = read_json(out / RECORD)
        if all(made.get(part, origin[part]) == origin[part] for part in ("origin", "tokenizer")):
            return True
    raise StorageError("The output place holds something else.", met=out, mend="choose another place, or remove it to train again")


def claim(state: Path, origin: Mapping[str, Any]) -> None:
    """Make the state folder this run's; StaleError, naming what differs, when an unfinished run of another origin lies there."""
    mark = state / MARK
    if not mark.exists():
        write_json(mark, origin)
        return
    lying = read_json(mark)
    if different := _differences(lying if isinstance(lying, dict) else {}, origin):
        mend = f"go on with the same settings, texts and start, or remove {state}"
        raise StaleError("An unfinished run of another origin lies there.", met=f"{state}: {', '.join(different)}", mend=mend)


def last_state(state: Path) -> str | None:
    """The newest saved state that is whole: the Trainer writes `trainer_state.json` after everything else."""
    whole = [folder for folder in saved_states(state) if _is_whole(folder)]
    return str(whole[-1]) if whole else None


def saved_states(state: Path) -> list[Path]:
    """The Trainer's `checkpoint-N` folders, by step."""
    found = [path for path in state.glob("checkpoint-*") if path.name.rsplit("-", 1)[1].isdigit()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """N of `checkpoint-N`."""
    return int(folder.name.rsplit("-", 1)[1])


SAMPLES = 256
"""Values of each parameter that tell one start from another; a sum would depend on the number of threads."""


def _start(model: PreTrainedModel) -> str:
    """What the run starts from: a cheap digest over values spread evenly through every parameter."""

    def spread(parameter: Tensor) -> list[float]:
        flat = parameter.detach().flatten()
        return flat[:: max(1, flat.numel() // SAMPLES)].float().tolist()

    return digest_of([[name, list(parameter.shape), spread(parameter)] for name, parameter in model.named_parameters()])


def _differences(lying: Mapping[str, Any], origin: Mapping[str, Any]) -> list[str]:
    was, now = lying.get("settings", {}), origin["settings"]
    fields = [f"{name} was {was.get(name)!r}, is {now.get(name)!r}" for name in {**was, **now} if was.get(name) != now.get(name)]
    parts = {"texts": "other texts", "start": "other starting weights", "tokenizer": "another tokenizer"}
    return fields + [told for part, told in parts.items() if lying.get(part) != origin[part]]


def _is_whole(folder: Path) -> bool:
    try:
        return isinstance(read_json(folder / "trainer_state.json"), dict)
    except StorageError:
        return False
