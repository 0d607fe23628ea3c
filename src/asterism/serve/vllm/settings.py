"""Settings of the vLLM engine; importing them loads neither vLLM nor a model library."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from asterism.core.settings import Settings

OURS = (
    "model",
    "tokenizer",
    "worker_cls",
    "additional_config",
    "skip_tokenizer_init",
    "max_logprobs",
    "quantization",
    "speculative_config",
    "load_format",
)
"""vLLM's arguments that asterism sets itself, or that mixtures cannot go with."""


class VllmSettings(Settings):
    """How vLLM is started. What is not here can be given as vLLM's own argument in `arguments`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the models; `auto` is the generalist's own."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Answers that run at one time; the others wait for a place."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Positions for prompt and answer together; the model's own where nothing is given."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Part of a GPU's memory that vLLM takes for weights and keys; the specialists' tails lie within it."""
    kv_cache_gb: float | None = Field(default=None, gt=0)
    """Memory for keys and values in GB: what is left of a GPU's unless given, 1 on a CPU."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share each layer."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Groups of GPUs that each hold some of the layers."""
    enforce_eager: bool = False
    """Run without compiled graphs: slower on a GPU. Needed to add specialists while serving, and for weights that differ by node."""
    prefix_caching: bool = True
    """Keep keys of prompts and serve them to later prompts that begin the same, under the same mixture only."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs, by their names there."""

    @field_validator("arguments")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(value.keys() & {*OURS, *(name for name in cls.model_fields if name != "arguments")}):
            raise ValueError(f"{', '.join(taken)}: settings of their own, or set by asterism")
        return value
