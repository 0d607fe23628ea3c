"""Settings of the models layer; importing them loads no model library."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from asterism.core.settings import Settings


class TrainingSettings(Settings):
    """How a generalist or a specialist is trained; the defaults are the paper's specialist settings (section 4.1)."""

    method: Literal["full", "mlp", "lora", "router"] = "full"
    """What trains: every parameter, the MLPs alone (attention and norms frozen), a LoRA adapter, or a routed model's gates."""
    steps: int = Field(default=2000, ge=1)
    """Optimiser steps."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the data, in the place of `steps`."""
    batch_size: int = Field(default=4, ge=1)
    """Windows or examples at once, on each device."""
    accumulation: int = Field(default=1, ge=1)
    """Batches whose gradients make one step."""
    max_length: int = Field(default=256, ge=2)
    """Tokens a window, or at most an example."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Peak learning rate of AdamW."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    schedule: Literal["linear", "cosine", "cosine_to_tenth", "constant"] = "linear"
    """How the learning rate falls after the rise: to zero, or along a cosine to a tenth of its peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay; biases and norms are spared it where all parameters train."""
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """AdamW's second-moment decay."""
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    bf16: bool = False
    """Compute in bfloat16 (weights and optimiser state stay float32)."""
    lora_rank: int = Field(default=16, ge=1)
    """Rank of a LoRA adapter; read when method is `lora`."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """Scale of a LoRA adapter (alpha / rank multiplies it); read when method is `lora`."""
    save_every: int = Field(default=200, ge=1)
    """Steps between the states that an interrupted run resumes from."""
    keep_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints kept for good under `checkpoints/`; none by default."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between measurements of the held-out examples, the best state of which is written; by default a tenth of all steps."""
    patience: int | None = Field(default=None, ge=1)
    """Measurements of the held-out examples without gain after which training ends; by default it goes on to its last step."""
    seed: int = Field(default=42, ge=0)
    """Seed of initialisation and of the order of the data."""

    @model_validator(mode="after")
    def _kept_steps_are_saved(self) -> TrainingSettings:
        if self.keep_every and self.keep_every % self.save_every:
            raise ValueError("keep_every must be a multiple of save_every")
        return self

    @model_serializer(mode="wrap")
    def _known_again(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields of LATER that are at their default, so that what older runs were made with reads the same today."""
        plain = {name: type(self).model_fields[name].default for name in LATER}
        return {name: value for name, value in handler(self).items() if name not in plain or value != plain[name]}


LATER = ("epochs", "accumulation", "evaluate_every", "patience")
"""Fields that came after the first runs were kept."""
_EXPERT = {
    "method": "mlp", "steps": 2500, "batch_size": 64, "max_length": 1024, "learning_rate": 8e-4,
    "schedule": "cosine_to_tenth", "weight_decay": 0.1, "beta2": 0.99,
}  # fmt: skip
_WARM = {"learning_rate": 5e-5, "schedule": "cosine", "warmup": 0.05}
PRESETS: dict[str, dict] = {
    "paper": {},
    "mlp": _EXPERT,
    "target": _EXPERT | {"learning_rate": 8e-5},
    "router": _EXPERT | {"method": "router", "steps": 1739, "batch_size": 92, "learning_rate": 5e-3},
    "fusion": {"method": "lora", "epochs": 3, "batch_size": 1, "accumulation": 8, "max_length": 1024} | _WARM,
}
"""Named settings: `paper` (constellation, section 4.1); of compatible specialization (arXiv:2411.02207) `mlp`, its experts, `target`, a
model fine-tuned on the task that merges are measured on, and `router`, the gates over its experts; `fusion`, of fusions and their control
(HeteroFusion, arXiv:2604.01674)."""
