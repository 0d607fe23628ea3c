"""Where things lie in a Hugging Face causal LM: blocks, attention, MLP, norms, embeddings, head, output axes.

Three module layouts cover GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, Qwen3, Gemma 2/3, Phi-3 and OLMo 2; another
architecture is accepted when one of them accounts for every parameter, and refused by name of what is missing otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from threading import RLock
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from asterism.core.errors import UnsupportedError

Role = Literal["embedding", "attention", "mlp", "norm", "final_norm", "head"]
MAKING = RLock()
"""Held while a model is made without initial values: transformers and accelerate change functions of the whole process for it."""


@dataclass(frozen=True)
class Layout:
    """Module paths of one way to lay out a decoder; block parts are relative to the block."""

    blocks: str
    attention: str
    mlp: str
    final_norm: str
    embeddings: tuple[str, ...]
    head: str


LAYOUTS = (
    Layout("model.layers", "self_attn", "mlp", "model.norm", ("model.embed_tokens",), "lm_head"),
    Layout("transformer.h", "attn", "mlp", "transformer.ln_f", ("transformer.wte", "transformer.wpe"), "lm_head"),
    Layout("gpt_neox.layers", "attention", "mlp", "gpt_neox.final_layer_norm", ("gpt_neox.embed_in",), "lm_head"),
)


@dataclass(frozen=True)
class Anatomy:
    """The parts of one causal LM, by the names of `model.named_parameters()`."""

    model_type: str
    layout: Layout
    n_blocks: int
    hidden_size: int
    vocabulary: int
    tied: bool
    """Whether head and embedding share one tensor (it then goes by the embedding's name)."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every parameter, tied ones once, in model order."""
    output_axes: Mapping[str, int]
    """Axis of every parameter that runs over its module's outputs (0 for Linear, 1 for Conv1D and embeddings)."""
    roles: Mapping[str, Role]

    def role_of(self, parameter: str) -> Role:
        """The part of the model that a parameter belongs to."""
        return self.roles[parameter]

    def is_linear(self, parameter: str) -> bool:
        """Whether it is the weight of a linear module and not (also) an embedding: what a LoRA can change."""
        return len(self.shapes[parameter]) == 2 and self.roles[parameter] != "embedding"

    def block_of(self, parameter: str) -> int | None:
        """Index of the block that holds a parameter; None outside the blocks."""
        found = re.match(rf"{re.escape(self.layout.blocks)}\.(\d+)\.", parameter)
        return int(found[1]) if found else None

    def parameters_of(self, blocks: frozenset[int] | set[int]) -> tuple[str, ...]:
        """Names of all parameters in the given blocks, in model order."""
        return tuple(name for name in self.shapes if self.block_of(name) in blocks)

    def output_size(self, parameter: str) -> int:
        """Length of a parameter's output axis."""
        return self.shapes[parameter][self.output_axes[parameter]]

    def block_path(self, index: int) -> str:
        """Module path of a block."""
        return f"{self.layout.blocks}.{index}"

    def module_of(self, parameter: str) -> str:
        """Module path that owns a parameter."""
        return parameter.rpartition(".")[0]


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config without its weights (meta device): shapes and names only.

    Raises UnsupportedError for a config that is not a causal LM's.
    """
    with MAKING:
        try:
            with torch.device("meta"), no_init_weights():
                model = AutoModelForCausalLM.from_config(config)
        except ValueError as error:
            mend = "give a decoder-only model that AutoModelForCausalLM can load"
            raise UnsupportedError("Not a causal language model.", met=f"{config.model_type!r}: {str(error)[:120]}", mend=mend) from None
        model.tie_weights()
    return model


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Read the anatomy of a model (weights may lie on the meta device).

    Raises UnsupportedError naming the module or parameter that no known layout accounts for.
    """
    missing = {layout: _missing(model, layout) for layout in LAYOUTS}
    layout = min(LAYOUTS, key=lambda candidate: len(missing[candidate]))
    if missing[layout]:
        raise _unknown(model, ", ".join(f"module {name}" for name in missing[layout]))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    axes, roles = {}, {}
    for name, shape in shapes.items():
        axis, role = _output_axis(model, name, shape), _role(layout, name)
        if axis is None or role is None:
            raise _unknown(model, f"the meaning of parameter {name} {list(shape)}")
        axes[name], roles[name] = axis, role
    embedding, head = model.get_submodule(layout.embeddings[0]), model.get_submodule(layout.head)
    vocabulary, hidden_size = shapes[f"{layout.embeddings[0]}.weight"]
    return Anatomy(
        model_type=model.config.model_type,
        layout=layout,
        n_blocks=len(model.get_submodule(layout.blocks)),  # pyright: ignore[reportArgumentType]
        hidden_size=hidden_size,
        vocabulary=vocabulary,
        tied=head.weight is embedding.weight,
        shapes=shapes,
        output_axes=axes,
        roles=roles,
    )


def _missing(model: PreTrainedModel, layout: Layout) -> list[str]:
    wanted = [layout.blocks, layout.final_norm, *layout.embeddings, layout.head]
    wanted += [f"{layout.blocks}.0.{part}" for part in (layout.attention, layout.mlp)]
    present = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return [name for name in wanted if name not in present]


def _role(layout: Layout, parameter: str) -> Role | None:
    if found := re.match(rf"{re.escape(layout.blocks)}\.\d+\.(.+)", parameter):
        part = found[1].split(".")[0]
        if part in (layout.attention, layout.mlp):
            return "attention" if part == layout.attention else "mlp"
        return "norm" if "norm" in part or part.startswith("ln") else None
    owner = parameter.rpartition(".")[0]
    if owner in layout.embeddings:
        return "embedding"
    return {layout.final_norm: "final_norm", layout.head: "head"}.get(owner)  # pyright: ignore[reportReturnType]


def _output_axis(model: PreTrainedModel, parameter: str, shape: tuple[int, ...]) -> int | None:
    path, _, own = parameter.rpartition(".")
    if own not in ("weight", "bias"):
        return None
    if len(shape) == 1:
        return 0
    owner = model.get_submodule(path)
    if isinstance(owner, nn.Linear):
        return 0
    if isinstance(owner, Conv1D | nn.Embedding):
        return 1
    return None


def _unknown(model: PreTrainedModel, what: str) -> UnsupportedError:
    known = "a GPT-2, GPT-NeoX, Llama, Mistral, Qwen2, Qwen3, Gemma 2/3, Phi-3 or OLMo 2 shape"
    mend = f"use {known}, or add a Layout in asterism/models/anatomy.py"
    return UnsupportedError(f"The anatomy of {model.config.model_type!r} models is not known.", met=f"missing: {what}", mend=mend)
