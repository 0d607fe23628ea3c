"""Training of generalists, specialists and routers: full, MLP-only, LoRA or gates alone, on texts or on examples, resumable.

`accelerate launch -m asterism train ...` runs the same code on several devices, FSDP included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asterism.core.errors import DataError, MismatchError, SettingsError
from asterism.core.storage import digest_of
from asterism.models.anatomy import anatomy_of
from asterism.models.batching import room_of
from asterism.models.engine import Work, Write, settled, work_out
from asterism.models.examples import Example, Examples, padded
from asterism.models.runs import is_finished, origin_of
from asterism.models.settings import TrainingSettings
from asterism.models.windows import Windows

Save = Callable[[Path, Mapping[str, Tensor]], None]
"""(folder, trained parameters by name) -> None: writes what a run leaves into a folder that may not exist yet."""


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    out: str | Path,
    settings: TrainingSettings | None = None,
    *,
    base: str | None = None,
    device: str | None = None,
    save: Save | None = None,
) -> Path:
    """Train `model`, in place, on `texts` and leave a checkpoint (for LoRA: a PEFT adapter) at `out`, whole or absent.

    An interrupted run resumes from its last saved state when called again with the same settings, texts and start. A finished
    run of the same origin is not repeated. `base` names the generalist in an adapter's config. With `save`, which writes the result
    in the checkpoint's stead, states on the way hold the trained parameters alone.
    Raises StorageError when `out` holds something else, StaleError when an unfinished run there had another origin,
    DataError when there is too little text or the training diverges (nothing is left behind then).
    """
    settings = settings or TrainingSettings()
    out, windows = Path(out), None
    if settings.epochs is not None or settings.patience:
        windows = Windows(tokenizer, texts, settings.max_length)
        settings = settled(settings, len(windows), held_out=False)
    origin = origin_of(model, tokenizer, texts, settings)
    if is_finished(out, origin):
        return out
    windows = windows or Windows(tokenizer, texts, settings.max_length)
    _check_fit(model, windows.windows.shape[1], int(windows.windows.max()))
    if settings.method == "router":
        gates_of(model)
    torch.manual_seed(settings.seed)
    trained = _prepared(model, settings, base)
    work = Work(
        trained, windows, _saving(save) if save else _writer(trained, tokenizer), save is not None, settings.method in ("mlp", "router")
    )
    return work_out(work, out, settings, origin, device)


def tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    out: str | Path,
    settings: TrainingSettings | None = None,
    *,
    held_out: Sequence[Example] = (),
    adapter: str | Path | None = None,
    up_only: bool = False,
    chat: bool = True,
    base: str | None = None,
    device: str | None = None,
) -> Path:
    """Fine-tune `model`, in place, on the responses of examples and leave a checkpoint (for LoRA: a PEFT adapter) at `out`.

    Batches count alike, each the mean over its response tokens. adapter: folder of the LoRA that goes on training, instead of a new one;
    its files are not touched. up_only: of a LoRA, B alone trains. Where examples are `held_out`, their loss (nats a response token) is
    measured before the first step and every `evaluate_every`, and the best state is written, which may be the start's. chat, max_length:
    see `asterism.models.examples`. Interruption and refusals as `train`; SettingsError for an adapter under another method than `lora`.
    """
    settings = settings or TrainingSettings()
    out = Path(out)
    if settings.method != "lora" and (adapter is not None or up_only):
        met = f"method {settings.method!r} with {'an adapter' if adapter is not None else 'up_only'}"
        raise SettingsError("Only LoRA trains an adapter.", met=met, mend='method "lora"')
    if settings.method == "router":
        raise SettingsError("A router learns from texts.", met='method "router"', mend="use `asterism route train`")
    check_examples(examples, held_out)
    settings = settled(settings, len(examples), bool(held_out))
    origin = origin_of(model, tokenizer, told(examples), settings, facts(tokenizer, held_out, chat, adapter, up_only))
    if is_finished(out, origin):
        return out
    data, measured, collate = batched(model, tokenizer, examples, held_out, settings.max_length, chat)
    torch.manual_seed(settings.seed)
    trained = _prepared(model, settings, base, adapter, up_only)
    work = Work(trained, data, _writer(trained, tokenizer), decay_all=settings.method == "mlp", collate=collate, held_out=measured)
    return work_out(work, out, settings, origin, device)


def check_examples(examples: Sequence[Example], held_out: Sequence[Example]) -> None:
    """DataError where there is nothing to learn from, or an example is both learnt from and held out."""
    if not examples:
        raise DataError("There are no examples to train on.", met="an empty list", mend="give rows with a prompt and a response")
    if both := set(held_out) & set(examples):
        met = f"{len(both)} of them, e.g. {min(example.prompt + example.response for example in both)[:60]!r}"
        raise DataError("Held-out examples are among the training examples.", met=met, mend="take them out of either")


def told(examples: Sequence[Example]) -> list[list[str]]:
    """Examples as JSON-able values, for digests."""
    return [[example.prompt, example.response] for example in examples]


def facts(
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[Example] = (),
    chat: bool = True,
    adapter: str | Path | None = None,
    up_only: bool = False,
) -> dict[str, Any]:
    """What a run on examples depends on beside settings, examples and start, by the words that tell it."""
    found: dict[str, Any] = {"chat template": digest_of(tokenizer.chat_template) if chat and tokenizer.chat_template else None}
    if held_out:
        found["held-out examples"] = digest_of(told(held_out))
    if adapter is not None:
        from asterism.models.adapters import read_adapter

        found["adapter"] = read_adapter(adapter).digest
    if up_only:
        found["trained factors"] = "B alone"
    return found


def batched(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    max_length: int,
    chat: bool = True,
) -> tuple[Examples, Examples | None, Callable[..., Any]]:
    """The examples to train on, those held out (None for none) and how batches are made of both.

    Cut at `max_length`, or at the model's positions where those are fewer. MismatchError for a token that the model does not know.
    """
    max_length = room_of(model, max_length)
    data = Examples(tokenizer, examples, max_length, chat=chat)
    measured = Examples(tokenizer, held_out, max_length, chat=chat) if held_out else None
    for part in filter(None, (data, measured)):
        _check_fit(model, part.longest, part.highest)
    return data, measured, padded(tokenizer)


def freeze_all_but_mlp(model: PreTrainedModel) -> int:
    """Leave only the MLPs of every block trainable; returns how many parameters train. FACTS.md section 2."""
    anatomy = anatomy_of(model)
    count = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(anatomy.role_of(name) == "mlp")
        count += parameter.requires_grad * parameter.numel()
    return count


def freeze_all_but_gates(model: PreTrainedModel) -> int:
    """Leave only the gates of a routed model trainable; returns how many parameters train. SettingsError where there are none."""
    gates = gates_of(model)
    model.requires_grad_(False)
    for gate in gates:
        gate.requires_grad_(True)
    return sum(gate.numel() for gate in gates)


def gates_of(model: Any) -> list[torch.nn.Parameter]:
    """The parameters of a routed model's gates; SettingsError where there are none."""
    found = [parameter for gate in getattr(model, "gates", ()) for parameter in gate.parameters()]
    if not found:
        mend = "give a model that `route` made, its gates linear or mlp"
        raise SettingsError("There are no gates to train.", met=type(model).__name__, mend=mend)
    return found


def _check_fit(model: PreTrainedModel, length: int, highest: int) -> None:
    """Whether the model has a position for every token of the longest row, and an embedding for its highest token."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise SettingsError("Windows are longer than the model's positions.", met=f"max_length {length}", mend=f"at most {limit}")
    embeddings: Any = model.get_input_embeddings()
    vocabulary = embeddings.weight.shape[0]
    if highest >= vocabulary:
        met = f"token {highest}, {vocabulary} embeddings"
        raise MismatchError("The tokenizer has tokens that the model does not know.", met=met, mend="use the model's own tokenizer")


def _prepared(
    model: PreTrainedModel, settings: TrainingSettings, base: str | None, adapter: str | Path | None = None, up_only: bool = False
) -> Any:
    model.requires_grad_(True)  # a library's models ask for no gradients
    if settings.method == "mlp":
        freeze_all_but_mlp(model)
    if settings.method == "router":
        freeze_all_but_gates(model)
    if settings.method == "lora":
        from asterism.models.adapters import with_adapter, with_lora

        if adapter is not None:
            return with_adapter(model, adapter, up_only=up_only, base=base)
        return with_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha, base=base, up_only=up_only)
    return model


def _saving(save: Save) -> Write:
    return lambda folder, weights, _record: save(folder, weights)


def _writer(trained: Any, tokenizer: PreTrainedTokenizerBase) -> Write:
    """Writes a checkpoint or an adapter, and the tokenizer beside it."""

    def write(folder: Path, weights: Mapping[str, Tensor], _record: Mapping[str, Any]) -> None:
        trained.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)

    return write
