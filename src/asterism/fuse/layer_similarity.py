"""Which layers of two backbones are alike: centred kernel alignment of what both make of the same texts, each with its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asterism.core.kernel_cka import kernel_grams
from asterism.models.anatomy import anatomy_of
from asterism.models.batching import finite, hidden_states, masked_mean, placed_batches
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

MAX_TOKENS = 4096
Side = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@torch.no_grad()
def layer_similarity(target: Side, source: Side, texts: Sequence[str], *, max_length: int = 256) -> Tensor:
    """CKA of every block of `target` with every block of `source`, [L_t, L_s] float64, for `align` with layers: cka.

    One sample is one text: the mean of a block's output over the text's positions, which does not ask that both cut it into the same
    tokens. Linear kernel, debiased, so unrelated layers are near 0. Needs both models' weights; nothing else in a fusion needs a source's.
    Raises DataError for fewer than 4 texts, an empty one, or states that are not finite. Source: Kornblith et al. 2019.
    """
    return kernel_grams(text_means(*target, texts, max_length), text_means(*source, texts, max_length)).similarity("debiased")


@torch.no_grad()
def text_means(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int = 256) -> list[Tensor]:
    """The mean output of every block over each text's positions: [n, d] a block, float32 or wider, texts in the order given."""
    anatomy = anatomy_of(model)
    paths = [anatomy.block_path(block) for block in range(anatomy.n_blocks)]
    means: list[Tensor] = []
    seen: list[Tensor] = []

    def watch(_module: Any, _given: Any, output: Any) -> None:
        seen.append(output if isinstance(output, Tensor) else output[0])

    handles = [model.get_submodule(path).register_forward_hook(watch) for path in paths]
    try:
        for batch, rows in placed_batches(model, tokenizer, texts, max_length, MAX_TOKENS):
            seen.clear()
            hidden_states(model, batch)
            pooled = [masked_mean(states, batch.lengths).cpu() for states in seen]
            means = means or [each.new_empty(len(texts), each.shape[1]) for each in pooled]
            for whole, each in zip(means, pooled, strict=True):
                whole[rows] = each
    finally:
        for handle in handles:
            handle.remove()
    return [finite(each, texts) for each in means]
