"""Two families of different depth, width and rank with an adapter each, and replay rows: what a fusion starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterism.fuse.build import fuse
from asterism.fuse.control import control
from asterism.fuse.settings import FusionSettings
from asterism.models.adapters import Adapter
from asterism.models.examples import Example
from asterism.models.settings import TrainingSettings
from tests import tiny

DATA = [Example(text[: len(text) // 2], text[len(text) // 2 :]) for part in ("medical", "legal") for text in tiny.PROBES[part]]
SETTINGS: dict[str, Any] = dict(bound=1.0, width=16, heads=2, block=16, projections=8)
TRAINING: dict[str, Any] = dict(
    method="lora", steps=6, batch_size=1, accumulation=2, max_length=64, learning_rate=1e-2, save_every=2, evaluate_every=2
)


@dataclass(frozen=True)
class Small:
    """A folder with a target `llama`, its adapter `target`, and sources `gpt2` (3 blocks more than it takes) and `qwen2`."""

    root: Path

    @property
    def target(self) -> tuple[Path, Path]:
        return self.root / "llama", self.root / "target"

    @property
    def sources(self) -> dict[str, tuple[Path, Path]]:
        """Of the backbones the configs alone."""
        return {name: (self.root / f"{name}.json", self.root / name) for name in ("gpt2", "qwen2")}

    def fuse(self, out: str, *, settings: Any = (), sources: Any = None, target: Any = None, data: Any = DATA, **options: Any) -> Adapter:
        """A short fusion; further options by name go to `fuse` or change its training."""
        own = {name: options.pop(name) for name in list(options) if name in TrainingSettings.model_fields}
        return fuse(
            target or self.target,
            self.sources if sources is None else sources,
            data,
            self.root / out,
            FusionSettings(**{**SETTINGS, **dict(settings)}),
            TrainingSettings(**{**TRAINING, **own}),
            **{"device": "cpu", "held_out": 0.25, **options},
        )

    def control(self, out: str, *, data: Any = DATA, **options: Any) -> Adapter:
        """The control of `fuse` with the same options."""
        own = {name: options.pop(name) for name in list(options) if name in TrainingSettings.model_fields}
        training = TrainingSettings(**{**TRAINING, **own})
        return control(self.target, data, self.root / out, training, device="cpu", **{"held_out": 0.25, **options})


def made(root: Path) -> Small:
    """Write it."""
    tiny.save(tiny.tiny_model("llama"), root / "llama")
    tiny.save_lora(tiny.tiny_model("llama"), root / "target", 1, rank=2, base="org/llama")
    for seed, (family, changes) in enumerate({"gpt2": {}, "qwen2": {"hidden_size": 24, "num_hidden_layers": 2}}.items(), 2):
        model = tiny.tiny_model(family, **changes)
        (root / f"{family}.json").write_text(model.config.to_json_string())
        tiny.save_lora(model, root / family, seed, rank=3 + seed, base=f"somewhere/{family}")
    rows = [json.dumps({"prompt": example.prompt, "response": example.response}) + "\n" for example in DATA]
    (root / "rows.jsonl").write_text("".join(rows))
    return Small(root)
