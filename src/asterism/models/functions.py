"""What every linear weight of a block does (q, k, v, o, gate, up, down), also where one weight holds several: fused q, k, v or gate, up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from asterism.core.errors import UnsupportedError
from asterism.models.anatomy import Anatomy, anatomy_of, skeleton

Function = Literal["q", "k", "v", "o", "gate", "up", "down"]
FUNCTIONS: tuple[Function, ...] = get_args(Function)
Rows = None | slice | Tensor
"""Output rows of a weight: all of them, a run of them, or those of an index [n] int64."""


@dataclass(frozen=True)
class Slot:
    """One function of one block: a parameter, or some output rows of it where projections are fused.

    Two slots are equal where block, function and parameter are, so a slot is a key.
    """

    block: int
    function: Function
    parameter: str
    rows: Rows = field(default=None, compare=False, repr=False)
    """Rows of the weight seen as [out, in] (a Conv1D's weight is stored the other way round)."""
    outputs: int = field(default=0, compare=False)
    """How many rows: what the function gives."""
    inputs: int = field(default=0, compare=False)
    """What the function takes: columns of the weight seen as [out, in]."""

    def of(self, whole: Tensor) -> Tensor:
        """The slot's rows of something that has a row an output of the parameter: [out, ...] -> [outputs, ...]."""
        return whole if self.rows is None else whole[self.rows]

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """`whole` [out, ...] with the slot's rows replaced by `part` [outputs, ...]; a new tensor, through which gradients pass."""
        if self.rows is None:
            return part
        places = torch.arange(len(whole))[self.rows].to(whole.device)
        return whole.index_copy(0, places, part)


def slots_of(model: PreTrainedModel | PreTrainedConfig) -> list[Slot]:
    """Every slot of a model's blocks, in model order; of a config, or of a model whose weights may lie on the meta device.

    Knows the ten families of `models.anatomy`: GPT-2's c_attn (thirds), GPT-NeoX's query_key_value (each head's q, k, v together), Phi-3's
    qkv_proj (unequal parts) and gate_up_proj, separate projections elsewhere. An MLP without a gate has `up` and `down`.
    Raises UnsupportedError, by name, for a linear weight in a block that is none of these, or whose size is not what its parts add up to.
    """
    model = skeleton(model) if isinstance(model, PreTrainedConfig) else model
    anatomy = anatomy_of(model)
    found = []
    for parameter, shape in anatomy.shapes.items():
        block = anatomy.block_of(parameter)
        if block is not None and len(shape) == 2:
            inputs = shape[1 - anatomy.output_axes[parameter]]
            for function, rows, outputs in _parts(parameter, anatomy, model.config):
                found.append(Slot(block, function, parameter, rows, outputs, inputs))
    return found


Part = tuple[Function, Rows, int]
_WHOLE: Mapping[str, Mapping[str, Function]] = {
    "attention": {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "c_proj": "o", "dense": "o"},
    "mlp": {
        "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "c_fc": "up", "c_proj": "down",
        "dense_h_to_4h": "up", "dense_4h_to_h": "down",
    },
}  # fmt: skip


def _parts(parameter: str, anatomy: Anatomy, config: Any) -> list[Part]:
    """The functions that a block's linear weight holds, each with its rows and their number."""
    own, role, outputs = parameter.split(".")[-2], anatomy.role_of(parameter), anatomy.output_size(parameter)
    if role in _WHOLE and own in _WHOLE[role]:
        return [(_WHOLE[role][own], None, outputs)]
    split = _FUSED.get((role, own))
    parts = split(config, outputs) if split else []
    if not parts or sum(size for *_, size in parts) != outputs:
        met = f"{parameter} [{outputs} outputs] of {anatomy.model_type!r}"
        mend = "use a family that the README names, or say in asterism/models/functions.py what this weight does"
        raise UnsupportedError("What a linear weight of a block does is not known.", met=met, mend=mend)
    return parts


def _thirds(config: Any, outputs: int) -> list[Part]:
    return _runs(("q", "k", "v"), [outputs // 3] * 3)


def _unequal(config: Any, outputs: int) -> list[Part]:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared = (getattr(config, "num_key_value_heads", None) or heads) * width
    return _runs(("q", "k", "v"), [heads * width, shared, shared])


def _halves(config: Any, outputs: int) -> list[Part]:
    return _runs(("gate", "up"), [outputs // 2] * 2)


def _interleaved(config: Any, outputs: int) -> list[Part]:
    """GPT-NeoX: rows run head by head, and in a head q, k, v."""
    heads = config.num_attention_heads
    if outputs % (3 * heads):
        return []
    places = torch.arange(outputs).view(heads, 3, outputs // (3 * heads))
    functions: tuple[Function, ...] = ("q", "k", "v")
    return [(function, places[:, part].reshape(-1), outputs // 3) for part, function in enumerate(functions)]


def _runs(functions: tuple[Function, ...], sizes: list[int]) -> list[Part]:
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [(function, slice(start, start + size), size) for function, start, size in zip(functions, starts, sizes, strict=True)]


_FUSED: Mapping[tuple[str, str], Callable[[Any, int], list[Part]]] = {
    ("attention", "c_attn"): _thirds,
    ("attention", "query_key_value"): _interleaved,
    ("attention", "qkv_proj"): _unequal,
    ("mlp", "gate_up_proj"): _halves,
}
