"""What a router does with a text, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.models.batching import hidden_states, placed_batches
from asterism.models.routed import RoutedForCausalLM, recording, strongest


@dataclass(frozen=True, eq=False)
class Trace:
    """The weights that every token of a text gives to the experts of every block."""

    tokens: tuple[str, ...]
    """The text of each token; of a character of several tokens, the last one has it."""
    weights: Tensor
    """[blocks, T, E] float32 on the CPU, as they are applied: 0 for experts that do not run under a top-k."""
    experts: tuple[tuple[tuple[str, int], ...], ...]
    """For each block the (model, block) of each expert that its gate weighs."""
    models: tuple[str, ...]
    left_out: int = 0
    """Tokens of the text that were not read."""

    def shares(self) -> dict[str, Tensor]:
        """For each model [blocks, T]: the weights of all its experts."""
        own = {name: torch.tensor([[model == name for model, _ in experts] for experts in self.experts]) for name in self.models}
        return {name: (self.weights * mask[:, None]).sum(dim=-1) for name, mask in own.items()}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "tokens": list(self.tokens),
            "models": list(self.models),
            "left_out": self.left_out,
            "shares": {name: own.tolist() for name, own in self.shares().items()},
            "weights": self.weights.tolist(),
        }


def trace(model: RoutedForCausalLM, tokenizer: Any, text: str, *, max_length: int = 256) -> Trace:
    """One forward pass over a text, cut at `max_length` tokens. DataError for a text without tokens."""
    ((batch, _),) = placed_batches(model, tokenizer, [text], max_length, max_length)
    with recording(model) as seen:
        hidden_states(model, batch)
    weights = torch.stack([_applied(model, probabilities[0]).float().cpu() for probabilities in seen])
    experts = tuple(tuple(model.reach_of(block)) for block in range(len(seen)))
    left_out = len(tokenizer(text, verbose=False)["input_ids"]) - batch.tokens
    return Trace(tuple(pieces(tokenizer, batch.ids[0].tolist())), weights, experts, tuple(model.config.experts), left_out)


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text that each token adds to those before it; together they are the text."""
    found, shown = [], ""
    for stop in range(1, len(ids) + 1):
        now = tokenizer.decode(ids[:stop], clean_up_tokenization_spaces=False)
        whole = not now.endswith("\N{REPLACEMENT CHARACTER}")  # else the character goes on in the next token
        found.append(now[len(shown) :] if whole else "")
        shown = now if whole else shown
    return found


def _applied(model: RoutedForCausalLM, probabilities: Tensor) -> Tensor:
    """[T, E]: what the experts' outputs are multiplied by."""
    k = model.config.num_experts_per_tok
    if k is None or k == model.config.weighed:
        return probabilities
    shares, chosen = strongest(probabilities, k, model.config.normalise)
    return torch.zeros_like(probabilities).scatter(-1, chosen, shares)
