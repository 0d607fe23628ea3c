"""Training of generalists, specialists and routers through `transformers.Trainer`: full, MLP-only, LoRA or gates alone, resumable.

`accelerate launch -m asterism train ...` runs the same code on several devices, FSDP included.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from asterism.core.errors import DataError, MismatchError, SettingsError
from asterism.core.progress import counting
from asterism.core.storage import read_tensors, replacing, told_as_storage_error, write_json
from asterism.models.anatomy import anatomy_of
from asterism.models.runs import RECORD, claim, is_finished, last_state, origin_of, saved_states, state_folder, step_of
from asterism.models.settings import TrainingSettings
from asterism.models.windows import Windows

Save = Callable[[Path, Mapping[str, Tensor]], None]
"""(folder, trained parameters by name) -> None: writes what a run leaves into a folder that may not exist yet."""
_SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine_to_tenth": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
}


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
    out = Path(out)
    origin = origin_of(model, tokenizer, texts, settings)
    if is_finished(out, origin):
        return out
    windows = Windows(tokenizer, texts, settings.max_length)
    _check_fit(model, windows)
    if settings.method == "router":
        gates_of(model)
    state = state_folder(out)
    claim(state, origin)
    torch.manual_seed(settings.seed)
    trained = _prepared(model, settings, base)
    with _still(), told_as_storage_error(state):
        parts = {name for name, parameter in trained.named_parameters() if parameter.requires_grad}
        trainer = _trainer(trained, windows, state, settings, device, parts if save else None)
        try:
            _run(trainer, state, settings)
            weights = _whole_weights(trainer)
            if save:
                weights = {name: tensor for name, tensor in weights.items() if name in parts}
            if trainer.is_world_process_zero():
                history = [entry for entry in trainer.state.log_history if "loss" in entry]
                _save(trainer, weights, tokenizer, out, settings, {**origin, "history": history}, save)
                shutil.rmtree(state, ignore_errors=True)
        except _Diverged as error:
            if trainer.is_world_process_zero():
                shutil.rmtree(state, ignore_errors=True)
            raise DataError("Training diverged.", met=str(error), mend="lower the learning rate; nothing was saved") from None
        trainer.accelerator.wait_for_everyone()
    return out


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


class _Diverged(Exception):  # noqa: N818
    """A loss or a weight is not finite."""


def _check_fit(model: PreTrainedModel, windows: Windows) -> None:
    length, limit = windows.windows.shape[1], getattr(model.config, "max_position_embeddings", None)
    if limit is not None and length > limit:
        raise SettingsError("Windows are longer than the model's positions.", met=f"max_length {length}", mend=f"at most {limit}")
    embeddings: Any = model.get_input_embeddings()
    highest, vocabulary = int(windows.windows.max()), embeddings.weight.shape[0]
    if highest >= vocabulary:
        met = f"token {highest}, {vocabulary} embeddings"
        raise MismatchError("The tokenizer has tokens that the model does not know.", met=met, mend="use the model's own tokenizer")


def _prepared(model: PreTrainedModel, settings: TrainingSettings, base: str | None) -> Any:
    model.requires_grad_(True)  # a library's models ask for no gradients
    if settings.method == "mlp":
        freeze_all_but_mlp(model)
    if settings.method == "router":
        freeze_all_but_gates(model)
    if settings.method == "lora":
        from asterism.models.adapters import with_lora

        return with_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha, base=base)
    return model


class _OfParts(Trainer):
    """Where only parts of a model train, weight decay reaches all of them, biases too, as in compatible specialization's own code."""

    saved: set[str] | None = None
    """The parameters that a state holds, if not all: frozen ones are the start's, and resuming leaves them as they are."""

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        return [name for name, _ in model.named_parameters()]

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.saved is not None:
            model: Any = self.model
            whole = model.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor for name, tensor in whole.items() if name in self.saved}
        super()._save(output_dir, state_dict)


def _trainer(model: Any, windows: Windows, state: Path, settings: TrainingSettings, device: str | None, parts: set[str] | None) -> Trainer:
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    if on_cpu and device not in (None, "cpu"):
        raise SettingsError("No such device here.", met=device, mend="use cpu")
    arguments = TrainingArguments(
        output_dir=str(state),
        per_device_train_batch_size=settings.batch_size,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        **_SCHEDULES.get(settings.schedule, {"lr_scheduler_type": settings.schedule}),
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=None if settings.keep_every else 1,
        logging_steps=max(1, settings.steps // 100),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
    )
    kind = _OfParts if settings.method in ("mlp", "router") else Trainer
    trainer = kind(model=model, args=arguments, train_dataset=windows, callbacks=[_Watch()])
    if isinstance(trainer, _OfParts):
        trainer.saved = parts
    if settings.keep_every:
        trainer.add_callback(_Keep(settings.keep_every, state))
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))
    return trainer


def _run(trainer: Trainer, state: Path, settings: TrainingSettings) -> None:
    """Train from the last whole state to the end under the project's progress bar."""
    shown = counting("training", settings.steps) if trainer.is_world_process_zero() else nullcontext(lambda amount=1: None)
    with shown as advance:
        trainer.add_callback(_Steps(advance))
        trainer.train(resume_from_checkpoint=last_state(state))


class _Steps(TrainerCallback):
    """Reports every step to the progress bar."""

    def __init__(self, advance: Callable[..., Any]) -> None:
        self.advance = advance

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.advance(1)


class _Watch(TrainerCallback):
    """Ends a run whose loss is no longer finite."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise _Diverged(f"the loss is {loss} at step {state.global_step}")


class _Keep(TrainerCallback):
    """Removes saved states that are neither the newest nor to be kept."""

    def __init__(self, every: int, state: Path) -> None:
        self.every, self.state = every, state

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            for folder in saved_states(self.state):
                if step_of(folder) != state.global_step and step_of(folder) % self.every:
                    shutil.rmtree(folder, ignore_errors=True)


def _whole_weights(trainer: Trainer) -> dict[str, Tensor]:
    """The state dict, gathered from all devices."""
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")  # pyright: ignore[reportOptionalMemberAccess]
    return trainer.accelerator.get_state_dict(trainer.model)  # pyright: ignore[reportReturnType]


def _save(
    trainer: Trainer,
    weights: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    settings: TrainingSettings,
    record: dict,
    save: Save | None,
) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise _Diverged(f"{name} is not finite")
    with replacing(out) as temporary:
        if save:
            save(temporary, weights)
        else:
            unwrapped: Any = trainer.accelerator.unwrap_model(trainer.model)
            unwrapped.save_pretrained(temporary, state_dict=weights)
            tokenizer.save_pretrained(temporary)
        if settings.keep_every:
            for state in saved_states(Path(str(trainer.args.output_dir))):
                if step_of(state) % settings.keep_every == 0:
                    kept = temporary / "checkpoints" / state.name
                    save(kept, read_tensors(state / "model.safetensors")) if save else _copy_model(state, kept)
        write_json(temporary / RECORD, record)


def _copy_model(state: Path, target: Path) -> None:
    """The weights and configs of a saved state, without the Trainer's own files."""
    target.mkdir(parents=True)
    for file in state.iterdir():
        if file.suffix in {".safetensors", ".json"} and not file.name.startswith("trainer"):
            shutil.copy2(file, target)


@contextmanager
def _still() -> Iterator[None]:
    """No progress bars and messages of transformers' own; as they were afterwards."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
