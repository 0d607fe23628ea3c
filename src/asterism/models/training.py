"""Training of generalists and specialists through `transformers.Trainer`: full, MLP-only or LoRA, resumable.

`accelerate launch -m asterism train ...` runs the same code on several devices, FSDP included.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from asterism.core.errors import DataError, StaleError, StorageError
from asterism.core.progress import counting, is_quiet
from asterism.core.storage import digest_of, read_json, replacing, write_json
from asterism.models.anatomy import anatomy_of
from asterism.models.settings import TrainingSettings

STATE = ".training"


class Windows(torch.utils.data.Dataset):
    """Texts joined by the end token and cut into windows of `max_length` tokens; the rest is dropped."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_length: int) -> None:
        end = tokenizer.eos_token_id
        stream: list[int] = []
        for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
            stream.extend(ids)  # pyright: ignore[reportArgumentType]
            if end is not None:
                stream.append(int(end))  # pyright: ignore[reportArgumentType]
        count = len(stream) // max_length
        if count == 0:
            raise DataError(
                "Too little text to train on.", met=f"{len(stream)} tokens", mend=f"give at least one window of {max_length} tokens"
            )
        self.windows = torch.tensor(stream[: count * max_length]).view(count, max_length)  # [n, max_length]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    out: str | Path,
    settings: TrainingSettings | None = None,
    *,
    base: str | None = None,
    device: str | None = None,
) -> Path:
    """Train `model` on `texts` and leave a checkpoint (for LoRA: a PEFT adapter) at `out`, whole or absent.

    An interrupted run resumes from its last saved state when called again with the same settings and texts. A finished
    run with the same settings, texts and start is not repeated. `base` names the generalist in an adapter's config.
    Raises StorageError when `out` holds something else, StaleError when an unfinished run there had other settings.
    """
    settings = settings or TrainingSettings()
    out = Path(out)
    origin = digest_of(settings.model_dump(mode="json"), list(texts), _start(model), model.config.to_diff_dict().get("model_type"))
    if _finished(out, origin):
        return out
    state = out.parent / f"{STATE}-{out.name}"
    _claim(state, origin)
    windows = Windows(tokenizer, texts, settings.max_length)
    torch.manual_seed(settings.seed)
    trained = _prepared(model, settings, base)
    trainer = _trainer(trained, windows, state, settings, device)
    trainer.train(resume_from_checkpoint=_last(state))
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")  # pyright: ignore[reportOptionalMemberAccess]
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        _save(trainer, weights, tokenizer, out, {"origin": origin, "settings": settings.model_dump(mode="json"), "history": history})
        shutil.rmtree(state, ignore_errors=True)
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


def _prepared(model: PreTrainedModel, settings: TrainingSettings, base: str | None) -> Any:
    model.requires_grad_(True)  # a library's models ask for no gradients
    if settings.method == "mlp":
        freeze_all_but_mlp(model)
    if settings.method == "lora":
        from asterism.models.adapters import with_lora

        return with_lora(model, rank=settings.lora_rank, alpha=settings.lora_alpha, base=base)
    return model


def _trainer(model: Any, windows: Windows, state: Path, settings: TrainingSettings, device: str | None) -> Trainer:
    on_cpu = device == "cpu" or not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(state),
        per_device_train_batch_size=settings.batch_size,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.clip,
        bf16=settings.bf16,
        seed=settings.seed,
        save_steps=settings.save_every,
        save_total_limit=None if settings.keep_every else 1,
        logging_steps=max(1, settings.steps // 100),
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
    )
    callbacks: list[TrainerCallback] = [_Bar(settings.steps)]
    if settings.keep_every:
        callbacks.append(_Keep(settings.keep_every, state))
    trainer = Trainer(model=model, args=arguments, train_dataset=windows, callbacks=callbacks)
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in {"PrinterCallback", "ProgressCallback"}:
            trainer.remove_callback(type(callback))
    return trainer


class _Bar(TrainerCallback):
    """The project's progress bar in place of the Trainer's."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.open = counting("training", self.steps) if state.is_world_process_zero and not is_quiet() else None
        if self.open:
            self.advance = self.open.__enter__()
            self.advance(state.global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.open:
            self.advance(1)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.open:
            self.open.__exit__(None, None, None)


class _Keep(TrainerCallback):
    """Remove saved states that are neither the newest nor to be kept."""

    def __init__(self, every: int, state: Path) -> None:
        self.every, self.state = every, state

    def on_save(self, args, state, control, **kwargs) -> None:
        for folder in self.state.glob("checkpoint-*"):
            step = int(folder.name.rsplit("-", 1)[1])
            if step != state.global_step and step % self.every:
                shutil.rmtree(folder, ignore_errors=True)


def _save(trainer: Trainer, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, out: Path, record: dict) -> None:
    bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if bad:
        mend = "lower the learning rate; nothing was saved"
        raise DataError("Training diverged: weights are not finite.", met=bad[0], mend=mend)
    with replacing(out) as temporary:
        unwrapped: Any = trainer.accelerator.unwrap_model(trainer.model)
        unwrapped.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        for kept in sorted(Path(str(trainer.args.output_dir)).glob("checkpoint-*")) if record["settings"]["keep_every"] else ():
            if int(kept.name.rsplit("-", 1)[1]) % record["settings"]["keep_every"] == 0:
                target = temporary / "checkpoints" / kept.name
                target.mkdir(parents=True)
                for file in kept.iterdir():
                    if file.suffix in {".safetensors", ".json"} and not file.name.startswith("trainer"):
                        shutil.copy2(file, target)
        write_json(temporary / "training.json", record)


def _start(model: PreTrainedModel) -> str:
    """What the run starts from: a cheap digest over every parameter's sum and first values."""
    return digest_of(
        [
            [name, p.shape.numel(), float(p.detach().double().sum()), p.detach().flatten()[:4].tolist()]
            for name, p in model.named_parameters()
        ]
    )


def _finished(out: Path, origin: str) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / "training.json"
    if record.exists() and read_json(record).get("origin") == origin:
        return True
    mend = "choose another place, or remove it to train again"
    raise StorageError("The output place holds something else.", met=out, mend=mend)


def _claim(state: Path, origin: str) -> None:
    mark = state / "origin.json"
    if mark.exists() and read_json(mark) != origin:
        mend = f"go on with the same settings and texts, or remove {state}"
        raise StaleError("An unfinished run lies there, made with other settings or texts.", met=state, mend=mend)
    write_json(mark, origin)


def _last(state: Path) -> str | None:
    """The newest saved state that is whole: the Trainer writes `trainer_state.json` after everything else."""
    whole = [p for p in state.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
    return str(max(whole, key=lambda p: int(p.name.rsplit("-", 1)[1]))) if whole else None
