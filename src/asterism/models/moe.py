"""Mixture-of-experts architectures of transformers that hold a routed model exactly: Mixtral, Qwen2-MoE, Qwen3-MoE, FlexOlmo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from asterism.core.errors import UnsupportedError
from asterism.models.loading import build

FORMATS = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe", "olmo2": "flex_olmo"}
"""Model type of the experts -> that of the mixture with the same attention and norms."""
KEEP = "keep the routed model's own format (save_pretrained, or `asterism route export --as routed`), which transformers loads too"
SHARED_WIDTH = 8
"""Width of Qwen2-MoE's shared expert, all zero here; the least that eight devices can split."""
_OWN = {"model_type", "architectures", "transformers_version", "auto_map"}
_PROJECTIONS = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")


def moe_config(config: PreTrainedConfig, *, experts: int, top_k: int, normalise: bool) -> PreTrainedConfig:
    """The config of a mixture of `experts` MLPs in every block of a model of `config`, `top_k` of them run for each token.

    normalise: the probabilities of the `top_k` are made to sum to 1, which Mixtral always does; where it is not wanted, Llama and Mistral
    become Qwen2-MoE without attention biases. With top_k = experts both are the same.
    Raises UnsupportedError, by name, for a family without such a format, or windows of attention that the format cannot tell.
    """
    if config.model_type not in FORMATS:
        mend = f"{KEEP}; experts of {', '.join(FORMATS)} can be exported as a mixture"
        raise UnsupportedError("No mixture-of-experts architecture holds this family.", met=config.model_type, mend=mend)
    name = FORMATS[config.model_type]
    if name == "mixtral" and not normalise and top_k < experts:
        name = "qwen2_moe"
    known = {*AutoConfig.for_model(name).to_dict(), "head_dim"} - _OWN
    values = {field: value for field, value in config.to_dict().items() if field in known}
    return AutoConfig.for_model(name, **values, **_counts(name, config, experts, top_k, normalise), **_attention(name, config))


def build_moe(
    config: PreTrainedConfig, outside: Mapping[str, Tensor], experts: Sequence[Sequence[Mapping[str, Tensor]]], gates: Sequence[Tensor]
) -> PreTrainedModel:
    """A live mixture of a `moe_config`: the parameters `outside` the MLPs are shared with it, the experts' are copied into stacks.

    experts: for each block and expert, the MLP's parameters by its own names; gates: [E, d] for each block, cast to the model's dtype.
    Raises UnsupportedError for a parameter that the architecture has no place for (biases of an MLP, of Llama's attention).
    """
    dtype = next(iter(outside.values())).dtype
    tensors = dict(outside)
    for block, (members, gate) in enumerate(zip(experts, gates, strict=True)):
        stem = f"model.layers.{block}.mlp"
        for odd in (name for member in members for name in member if name not in _PROJECTIONS):
            raise _no_place(config, f"{stem}.{odd}")
        rise, up, down = ([member[name] for member in members] for name in _PROJECTIONS)
        tensors[f"{stem}.gate.weight"] = gate.to(dtype)
        tensors[f"{stem}.experts.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(rise, up, strict=True)])  # [E, 2 i, d]
        tensors[f"{stem}.experts.down_proj"] = torch.stack(down)  # [E, d, i]
        if config.model_type == "qwen2_moe":
            tensors |= _nothing_shared(stem, gate.new_zeros(SHARED_WIDTH, gate.shape[1], dtype=dtype))
    model = build(config, tensors, dtype)
    if dtype == torch.float64:
        model.set_experts_implementation("eager")  # the grouped products that are usual know no float64
    for odd in tensors.keys() - dict(model.named_parameters()).keys():
        raise _no_place(config, odd)
    return model


def _counts(name: str, config: PreTrainedConfig, experts: int, top_k: int, normalise: bool) -> dict[str, Any]:
    counts: dict[str, Any] = {"num_experts_per_tok": top_k, "num_local_experts" if name == "mixtral" else "num_experts": experts}
    if name != "mixtral":
        counts["norm_topk_prob"] = normalise
    if name in ("qwen2_moe", "qwen3_moe"):
        counts |= {"moe_intermediate_size": config.intermediate_size, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return counts | ({"shared_expert_intermediate_size": SHARED_WIDTH} if name == "qwen2_moe" else {})


def _attention(name: str, config: PreTrainedConfig) -> dict[str, Any]:
    """What a format says in other fields than the experts' config."""
    if name == "qwen2_moe" and config.model_type != "qwen2":
        window = getattr(config, "sliding_window", None)
        kind = "full_attention" if window is None else "sliding_attention"
        return {"qkv_bias": False, "use_sliding_window": window is not None, "layer_types": [kind] * config.num_hidden_layers}
    if name == "qwen3_moe" and len(set(config.layer_types)) > 1:
        mend = KEEP
        raise UnsupportedError("Qwen3-MoE has one kind of attention in all blocks.", met="layer_types of two kinds", mend=mend)
    return {}


def _nothing_shared(stem: str, zeros: Tensor) -> dict[str, Tensor]:
    """Qwen2-MoE's shared expert, which adds nothing: zeros [SHARED_WIDTH, d]."""
    shapes = {"gate_proj": zeros, "up_proj": zeros, "down_proj": zeros.mT.contiguous()}
    return {f"{stem}.shared_expert.{name}.weight": tensor.clone() for name, tensor in shapes.items()} | {
        f"{stem}.shared_expert_gate.weight": zeros[:1].clone()
    }


def _no_place(config: PreTrainedConfig, parameter: str) -> UnsupportedError:
    mend = KEEP
    return UnsupportedError(f"The architecture {config.model_type} has no place for a parameter.", met=parameter, mend=mend)
