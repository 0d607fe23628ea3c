"""Held-out examples of a training run: their loss on the way, the best state by it, and the end where it gains no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import TrainerCallback

from asterism.core.storage import read_tensors, write_tensors
from asterism.models.settings import TrainingSettings

Collate = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]
BEST = "best.safetensors"


class Diverged(Exception):  # noqa: N818
    """A loss or a weight is not finite."""


@torch.no_grad()
def held_out_loss(model: Any, data: Dataset, collate: Collate | None, batch_size: int, device: torch.device | str) -> float:
    """Nats a token over all tokens that are answers (labels other than -100); the model is left in the mode it was in."""
    was, total, count = model.training, 0.0, 0
    model.eval()
    try:
        for batch in DataLoader(data, batch_size=batch_size, collate_fn=collate, generator=torch.Generator()):
            placed = {name: tensor.to(device) for name, tensor in batch.items()}
            tokens = int((placed["labels"][..., 1:] != -100).sum())
            if tokens:
                total += float(model(**placed)["loss"]) * tokens
                count += tokens
    finally:
        model.train(was)
    return total / max(count, 1)


class HeldOut(TrainerCallback):
    """Measures the held-out examples before the first step, every so many and at the last; keeps the best state, ends without gain.

    What was measured lies in the Trainer's history, which its states hold, so a resumed run knows it.
    """

    def __init__(self, data: Dataset, collate: Collate | None, state: Path, settings: TrainingSettings, parts: set[str]) -> None:
        self.data, self.collate, self.file, self.settings, self.parts = data, collate, state / BEST, settings, parts

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 0:
            self._measure(args, state, model)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        every = self.settings.evaluate_every or 1
        if state.global_step % every and state.global_step < state.max_steps:
            return
        since = self._measure(args, state, model)
        if self.settings.patience and since >= self.settings.patience:
            control.should_training_stop = True

    def take(self, model: Any) -> None:
        """Give the model its best state."""
        model.load_state_dict(read_tensors(self.file), strict=False)

    def told(self, state: Any) -> dict[str, Any]:
        """For the record: the best state's step and loss."""
        best = min(self._measured(state), key=lambda entry: entry["held_out_loss"])
        return {"best_step": best["step"], "held_out_loss": best["held_out_loss"]}

    def _measure(self, args: Any, state: Any, model: Any) -> int:
        """Measurements since the best one, this one included; 0 when this is the best."""
        before = [entry["held_out_loss"] for entry in self._measured(state)]
        loss = held_out_loss(model, self.data, self.collate, self.settings.batch_size, args.device)
        if not math.isfinite(loss):
            raise Diverged(f"the held-out loss is {loss} at step {state.global_step}")
        state.log_history.append({"held_out_loss": loss, "step": state.global_step})
        if before and loss >= min(before):
            return len(before) - before.index(min(before))
        if state.is_world_process_zero:
            write_tensors(self.file, only(model.state_dict(), self.parts))
        return 0

    def _measured(self, state: Any) -> list[dict[str, Any]]:
        return [entry for entry in state.log_history if "held_out_loss" in entry]


def only(weights: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """Those of the weights that bear one of the names."""
    return {name: tensor for name, tensor in weights.items() if name in names}
