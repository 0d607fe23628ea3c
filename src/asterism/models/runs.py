"""What a training run leaves beside its output while it is unfinished, and how a run is known again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asterism.core.errors import StaleError, StorageError
from asterism.core.storage import digest_of, read_json, write_json
from asterism.models.settings import LATER, TrainingSettings

RECORD = "training.json"
MARK = "origin.json"


def origin_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Any],
    settings: TrainingSettings,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a run is made from: settings, and digests of texts, starting weights and tokenizer; `origin` sums up the first three.

    Of a routed model also what it was made from, which tells where two starts differ. texts: JSON-able. more: what else the run depends
    on, by the words that tell it.
    """
    start, routing = _start(model), getattr(model.config, "routing", None)
    if routing is not None:  # gates of equal weights may be used in many ways
        start = digest_of(start, routing)
    routed = {} if routing is None else {"routed": model.config.origin}
    return {
        "origin": digest_of(settings.model_dump(mode="json"), list(texts), start, model.config.model_type, *([dict(more)] if more else [])),
        "settings": settings.model_dump(mode="json"),
        "texts": digest_of(list(texts)),
        "start": start,
        "tokenizer": digest_of(tokenizer.get_vocab(), tokenizer.eos_token_id),
        **routed,
        **({"more": dict(more)} if more else {}),
    }


def state_folder(out: Path) -> Path:
    """Where a run that leads to `out` keeps the states it resumes from."""
    return out.parent / f".training-{out.name}"


def is_finished(out: Path, origin: Mapping[str, Any]) -> bool:
    """Whether `out` holds this very run's result; StorageError when it holds something else, naming what differs in another run's."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    different: list[str] = []
    if (out / RECORD).exists():
        made = read_json(out / RECORD)
        made = made if isinstance(made, dict) else {"origin": None}
        if all(made.get(part, origin[part]) == origin[part] for part in ("origin", "tokenizer")):
            return True
        different = _differences(made, origin) if "settings" in made else []
    met = f"{out}, trained otherwise: {', '.join(different)}" if different else out
    raise StorageError("The output place holds something else.", met=met, mend="choose another place, or remove it to train again")


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
    """What a user would call different: fields of the settings, the texts, what the run starts from, the tokenizer."""
    plain = {name: TrainingSettings.model_fields[name].default for name in LATER}
    fields = _changed(plain | lying.get("settings", {}), plain | origin["settings"])
    parts = {"texts": ["other texts"], "start": _starts(lying, origin), "tokenizer": ["another tokenizer"]}
    told = [each for part, told in parts.items() if lying.get(part) != origin[part] for each in told if each not in fields]
    was, now = lying.get("more") or {}, origin.get("more") or {}
    return fields + told + [f"other {name}" for name in {**was, **now} if was.get(name) != now.get(name)]


def _starts(lying: Mapping[str, Any], origin: Mapping[str, Any]) -> list[str]:
    """How two starts differ: of routed models in the library, in what is taken of its attention, in the router's settings."""
    was, now = lying.get("routed") or {}, origin.get("routed") or {}
    if not was or not now:
        return ["other starting weights"]
    models = [{"the generalist": own["generalist"], **own["specialists"]} for own in (was, now)]
    other = [name for name in models[0] if name in models[1] and models[0][name] != models[1][name]]
    told = [f"another library ({', '.join(other)} differ{'s' if len(other) == 1 else ''})"] if other else []
    rest = [{"experts": list(own["specialists"]), "attention": own["attention"]} for own in (was, now)]
    told += _changed(*({**own["settings"], **more} for own, more in zip((was, now), rest, strict=True)))
    return told or ["other starting weights"]


def _changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{name} was {was.get(name)!r}, is {now.get(name)!r}" for name in {**was, **now} if was.get(name) != now.get(name)]


def _is_whole(folder: Path) -> bool:
    try:
        return isinstance(read_json(folder / "trainer_state.json"), dict)
    except StorageError:
        return False
