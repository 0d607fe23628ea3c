"""The control of a fusion: the target adapter fine-tuned on the same replay data, steps and batches, with no sources."""

from __future__ import annotations

from pathlib import Path

from asterism.fuse.recipe import HELD_OUT
from asterism.fuse.replay import HeldOut, Rows, learnt_and_held_out, open_target
from asterism.models.adapters import Adapter, read_adapter
from asterism.models.settings import PRESETS, TrainingSettings
from asterism.models.training import tune


def control(
    target: tuple[str | Path, str | Path],
    data: Rows,
    out: str | Path,
    training: TrainingSettings | None = None,
    *,
    held_out: HeldOut = HELD_OUT,
    up_only: bool = False,
    chat: bool = True,
    device: str | None = None,
) -> Adapter:
    """Fine-tune a target's adapter as `fuse` would with the same arguments, but for the sources: what a fusion gains over it is theirs.

    Same examples, held-out examples, order, steps, schedule and choice of the best state. A and B train; up_only: B alone, the part that a
    fusion may change. The adapter is written at `out`, whole or absent. Raises what `fuse` raises of target and data.
    """
    training, out = training or TrainingSettings(**PRESETS["fusion"]), Path(out)
    learnt, apart = learnt_and_held_out(data, held_out, training.seed)
    opened = open_target(target, out, training)
    model, adapter = opened.model, opened.adapter_at
    options = dict(held_out=apart, adapter=adapter, up_only=up_only, chat=chat, device=device)
    tune(model, opened.tokenizer, learnt, out, training.changed(method="lora"), **options)  # pyright: ignore[reportArgumentType]
    return read_adapter(out)
