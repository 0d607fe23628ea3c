"""How a router spreads its tokens: how sure each gate is, and how much of the text each expert gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.core.weights import entropy_bits
from asterism.models.batching import hidden_states, placed_batches
from asterism.models.routed import RoutedForCausalLM, recording
from asterism.models.types import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BlockLoad:
    """One gate over all tokens of some texts."""

    block: int
    experts: tuple[tuple[str, int], ...]
    """(model, block) of each expert that the gate weighs."""
    entropy: float
    """Of a token's probabilities, in bits, the mean over tokens: 0 where every token has one expert, log2(experts) where it has all."""
    mass: tuple[float, ...]
    """Mean probability of each expert; sums to 1."""
    chosen: tuple[float, ...]
    """Share of the tokens whose most probable expert it is; sums to 1."""
    effective: float
    """2 to the entropy of `mass`: how many experts carry the text, 1 to all of them."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        experts = [{"model": model, "block": block} for model, block in self.experts]
        numbers = {"entropy": self.entropy, "effective": self.effective, "mass": list(self.mass), "chosen": list(self.chosen)}
        return {"block": self.block, "experts": experts, **numbers}


def load(
    model: RoutedForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int = 256,
    max_tokens: int = 4096,
) -> list[BlockLoad]:
    """The load of every block's gate over the texts' tokens, padding left out; before any top-k. One forward pass without logits.

    Raises DataError for no list of texts, or one without tokens.
    """
    totals: list[dict[str, Tensor]] = []
    count = 0
    with recording(model) as seen:
        for batch, _ in placed_batches(model, tokenizer, texts, max_length, max_tokens):
            hidden_states(model, batch)
            found = [_sums(probabilities[batch.mask]) for probabilities in seen]
            totals = [{key: old[key] + new[key] for key in old} for old, new in zip(totals, found, strict=True)] if totals else found
            count += batch.tokens
    return [_load(model, block, {key: total / count for key, total in own.items()}) for block, own in enumerate(totals)]


def _sums(probabilities: Tensor) -> dict[str, Tensor]:
    """Over the tokens of [N, E]."""
    wide = probabilities.double()
    chosen = torch.bincount(wide.argmax(dim=1), minlength=wide.shape[1]).double()
    return {"entropy": entropy_bits(wide.mT).sum(), "mass": wide.sum(dim=0), "chosen": chosen}


def _load(model: RoutedForCausalLM, block: int, means: dict[str, Tensor]) -> BlockLoad:
    mass, chosen = (tuple(means[key].tolist()) for key in ("mass", "chosen"))
    effective = float(2 ** entropy_bits(means["mass"][:, None]))
    return BlockLoad(block, tuple(model.reach_of(block)), float(means["entropy"]), mass, chosen, effective)
