"""A routed model on disk: as a mixture-of-experts architecture that inference engines know, with the same logits, or as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from asterism.core.errors import UnsupportedError
from asterism.core.storage import replacing, vacant, write_json
from asterism.models.moe import KEEP, build_moe, moe_config
from asterism.models.routed import RoutedForCausalLM
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

RECORD = "export.json"
FORMAT_VERSION = 1


@torch.no_grad()
def as_moe(model: RoutedForCausalLM) -> PreTrainedModel:
    """The same model as a Mixtral (Llama, Mistral), Qwen2-MoE, Qwen3-MoE or FlexOlmo (OLMo 2), in memory; see `models.moe`.

    The experts are copied, all else is shared with `model`. At a depth above 1 every block gets copies of all the experts that it weighs.
    Raises UnsupportedError, by name, for what these architectures cannot say: other families, one gate for all blocks, two-layer or fixed
    gates, gates of absolute products or cosines, biases that they have no place for.
    """
    config: Any = model.config
    _check(config.scope == "layer", "One gate for all blocks", f"scope {config.scope}")
    _check(config.gate == "linear", "A gate that is not linear", f"gate {config.gate}")
    _check(config.mode == "softmax", "A gate of anything but plain products", f"mode {config.mode}")
    top_k = config.num_experts_per_tok or config.weighed
    target = moe_config(config.text_config, experts=config.weighed, top_k=top_k, normalise=config.normalise)
    inside = {id(parameter) for mlp in model.routed for parameter in mlp.parameters()}
    outside = {name: parameter.detach() for name, parameter in model.named_parameters() if id(parameter) not in inside}
    experts = [[dict(expert.named_parameters()) for expert in mlp.reach] for mlp in model.routed]
    made = build_moe(target, outside, experts, [gate.weight * config.scale for gate in model.gates])  # pyright: ignore[reportOperatorIssue]
    made.generation_config = model.generation_config
    return made


def export_moe(model: RoutedForCausalLM, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Write a routed model in such an architecture, with its tokenizer if given: a folder that loads without asterism; whole or absent.

    Raises what `as_moe` raises, StorageError when `folder` holds something other than an earlier export.
    """
    folder = vacant(folder, RECORD, "export")
    return _written(as_moe(model), model, folder, tokenizer)


def export_routed(model: RoutedForCausalLM, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Write a routed model as it is, whatever its gates, with its code: without asterism it loads with trust_remote_code=True.

    Whole or absent, in the library's dtype. StorageError when `folder` holds something other than an earlier export.
    """
    return _written(model, model, vacant(folder, RECORD, "export"), tokenizer)


def _written(made: PreTrainedModel, model: RoutedForCausalLM, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> Path:
    with replacing(folder) as temporary:
        made.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        told = {"experts": model.config.experts, "depth": model.config.depth, "origin": model.config.origin}
        write_json(temporary / RECORD, {"format_version": FORMAT_VERSION, **told})
    return folder


def _check(fits: bool, what: str, met: str) -> None:
    if not fits:
        raise UnsupportedError(f"{what} has no place in a mixture-of-experts architecture.", met=met, mend=KEEP)
