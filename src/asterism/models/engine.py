"""The one engine of all training: `transformers.Trainer` with our progress, checkpoints, held-out examples and end.

What it trains is any module whose forward takes a batch and returns {"loss": ...}. One that has a method `carry_back` is told when all
gradients of a step are there, before they are clipped.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from asterism.core.errors import DataError, SettingsError, UnsupportedError
from asterism.core.progress import counting
from asterism.core.storage import read_tensors, replacing, told_as_storage_error, write_json
from asterism.models.held_out import Collate, Diverged, HeldOut, only
from asterism.models.runs import RECORD, claim, last_state, saved_states, state_folder, step_of
from asterism.models.settings import TrainingSettings
from asterism.models.silence import silent

Write = Callable[[Path, Mapping[str, Tensor], Mapping[str, Any]], None]
"""(folder, weights by name, the run's record) -> None: writes what a run leaves into a folder that may not exist yet."""
_SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine_to_tenth": {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}}
}


@dataclass(frozen=True, eq=False)
class Work:
    """What a run is made of."""

    trained: Any
    """The module; its parameters that ask for gradients train."""
    data: Dataset
    write: Write
    """Writes the result and each state kept for good; weights are all of the module's, or with `parts_alone` those that trained."""
    parts_alone: bool = False
    """Whether states on the way hold the trained parameters alone; frozen ones are then the start's, and resuming leaves them."""
    decay_all: bool = False
    """Whether weight decay reaches biases and norms, too."""
    collate: Collate | None = None
    held_out: Dataset | None = None
    """Measured on the way; the best state by it is what is written."""


def settled(settings: TrainingSettings, rows: int, held_out: bool) -> TrainingSettings:
    """The settings of a run over `rows` windows or examples: `epochs` as steps, `evaluate_every` as a number where any are held out.

    SettingsError for early stopping without held-out examples.
    """
    if settings.epochs is not None:
        batches = math.ceil(rows / settings.batch_size)
        whole = math.ceil(batches / settings.accumulation)
        settings = settings.changed(steps=max(1, math.ceil(settings.epochs * whole)), epochs=None)
    if held_out and settings.evaluate_every is None:
        settings = settings.changed(evaluate_every=max(1, round(settings.steps / 10)))
    if settings.patience and not held_out:
        raise SettingsError("Early stopping needs held-out examples.", met=f"patience {settings.patience}", mend="hold some examples out")
    return settings


def work_out(work: Work, out: Path, settings: TrainingSettings, origin: Mapping[str, Any], device: str | None = None) -> Path:
    """Train, resuming an interrupted run of this origin, and leave the result at `out`, whole or absent, with its record.

    Raises StaleError when an unfinished run of another origin lies there, DataError when training diverges (nothing is left behind then).
    """
    state = state_folder(out)
    claim(state, origin)
    with silent(), told_as_storage_error(state):
        parts = {name for name, parameter in work.trained.named_parameters() if parameter.requires_grad}
        trainer = _trainer(work, state, settings, device, parts | _buffers(work.trained) if work.parts_alone else None)
        best = HeldOut(work.held_out, work.collate, state, settings, parts) if work.held_out is not None else None
        try:
            _run(trainer, state, settings, best)
            if best:
                trainer.accelerator.wait_for_everyone()  # the first process writes the best state
                best.take(trainer.model)
            weights = only(_whole_weights(trainer), parts) if work.parts_alone else _whole_weights(trainer)
            if trainer.is_world_process_zero():
                record = {**origin, "history": [entry for entry in trainer.state.log_history if {"loss", "held_out_loss"} & entry.keys()]}
                _save(work, weights, parts, out, settings, record | (best.told(trainer.state) if best else {}))
                shutil.rmtree(state, ignore_errors=True)
        except Diverged as error:
            if trainer.is_world_process_zero():
                shutil.rmtree(state, ignore_errors=True)
            raise DataError("Training diverged.", met=str(error), mend="lower the learning rate; nothing was saved") from None
        trainer.accelerator.wait_for_everyone()
    return out


class _Trainer(Trainer):
    """The Trainer, which tells a module when a step's gradients are there, and saves and decays what `Work` says."""

    saved: set[str] | None = None
    """The names that a state holds, if not all."""
    decay_all = False

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        carry_back = getattr(model, "carry_back", None)
        if carry_back and self.accelerator.sync_gradients:
            carry_back()
        return loss

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        if self.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """None: that a state of parts lacks the rest is meant, and of a plain module the Trainer cannot tell."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.saved is not None:
            model: Any = self.model
            whole = model.state_dict() if state_dict is None else state_dict
            state_dict = only(whole, self.saved)
        super()._save(output_dir, state_dict)


def _trainer(work: Work, state: Path, settings: TrainingSettings, device: str | None, parts: set[str] | None) -> Trainer:
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    if on_cpu and device not in (None, "cpu"):
        raise SettingsError("No such device here.", met=device, mend="use cpu")
    arguments = TrainingArguments(
        output_dir=str(state),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
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
        remove_unused_columns=work.collate is None,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
    )
    if hasattr(work.trained, "carry_back"):
        _check_single(arguments)
    trainer = _Trainer(model=work.trained, args=arguments, train_dataset=work.data, data_collator=work.collate, callbacks=[_Watch()])
    trainer.saved, trainer.decay_all = parts, work.decay_all
    if work.collate is not None:
        trainer.model_accepts_loss_kwargs = False  # batches of unequal length count alike, whatever module is trained on them
    if settings.keep_every:
        trainer.add_callback(_Keep(settings.keep_every, state))
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))
    return trainer


def _check_single(arguments: TrainingArguments) -> None:
    """A module whose gradients are carried back by hand trains on one device."""
    if arguments.world_size > 1:
        raise UnsupportedError("A fusion trains on one device.", met=f"{arguments.world_size} processes", mend="run it without a launcher")
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def _run(trainer: Trainer, state: Path, settings: TrainingSettings, best: HeldOut | None = None) -> None:
    """Train from the last whole state to the end under the project's progress bar."""
    shown = counting("training", settings.steps) if trainer.is_world_process_zero() else nullcontext(lambda amount=1: None)
    with shown as advance:
        if best:
            trainer.add_callback(best)
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
            raise Diverged(f"the loss is {loss} at step {state.global_step}")


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


def _save(work: Work, weights: dict[str, Tensor], parts: set[str], out: Path, settings: TrainingSettings, record: dict) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise Diverged(f"{name} is not finite")
    with replacing(out) as temporary:
        work.write(temporary, weights, record)
        if settings.keep_every:
            for state in saved_states(state_folder(out)):
                if step_of(state) % settings.keep_every == 0:
                    kept = temporary / "checkpoints" / state.name
                    whole = state / "model.safetensors"
                    work.write(kept, only(read_tensors(whole), parts), record) if work.parts_alone else _copy_model(state, kept)
        write_json(temporary / RECORD, record)


def _buffers(module: nn.Module) -> set[str]:
    """The buffers that belong to a module's state, e.g. a count of steps."""
    return module.state_dict().keys() - {name for name, _ in module.named_parameters(remove_duplicate=False)}


def _copy_model(state: Path, target: Path) -> None:
    """The weights and configs of a saved state, without the Trainer's own files."""
    target.mkdir(parents=True)
    for file in state.iterdir():
        if file.suffix in {".safetensors", ".json"} and not file.name.startswith("trainer"):
            shutil.copy2(file, target)
