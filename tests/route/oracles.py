"""Routing written out token by token: weights in NumPy float64, each expert called on one token at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch


def softmax(scores):
    """[E] -> [E]."""
    raised = [np.exp(float(score) - float(np.max(scores))) for score in scores]
    return np.array([each / sum(raised) for each in raised])


def kept(weights, k, normalise):
    """[E] -> [E] with all but the k largest set to zero."""
    chosen = sorted(range(len(weights)), key=lambda e: -weights[e])[:k]
    total = sum(weights[e] for e in chosen) if normalise else 1.0
    return np.array([weights[e] / total if e in chosen else 0.0 for e in range(len(weights))])


def blocks_reached(block, depth, blocks):
    """Its own block, then upward; past the last block, downward from its own."""
    found, above, below = [block], block + 1, block - 1
    while len(found) < depth:
        if above < blocks:
            found.append(above)
            above += 1
        else:
            found.append(below)
            below -= 1
    return found


def logits(
    generalist: Any, experts: Sequence[Any], ids: torch.Tensor, weigh: Callable[[int, np.ndarray], np.ndarray], *, depth=1, single=False
) -> torch.Tensor:
    """Logits of the generalist where every block's MLP gives sum_e w_e E_e(x), token by token.

    experts: whole models whose MLPs are meant. weigh: (block, x [d]) -> weights [depth * experts], block by block.
    """
    generalist = copy.deepcopy(generalist)  # it is hooked, and an expert perhaps
    blocks, theirs = _blocks(generalist), [_blocks(expert) for expert in experts]
    first: dict[tuple[int, int], np.ndarray] = {}

    def hook(block: int):
        def replace(module, inputs, output):
            x = inputs[0]
            result = torch.zeros_like(x)
            for row in range(x.shape[0]):
                for place in range(x.shape[1]):
                    if single and block:
                        weights = first[row, place]
                    else:
                        weights = first[row, place] = weigh(block, x[row, place].numpy())
                    mlps = [own[source].mlp for source in blocks_reached(block, depth, len(blocks)) for own in theirs]
                    for weight, mlp in zip(weights, mlps, strict=True):
                        if weight:
                            result[row, place] += float(weight) * mlp(x[row : row + 1, place : place + 1])[0, 0]
            return result

        return replace

    for index, block in enumerate(blocks):
        block.mlp.register_forward_hook(hook(index))
    with torch.no_grad():
        return generalist(input_ids=ids).logits


def _blocks(model: Any) -> Any:
    base = getattr(model, model.base_model_prefix)
    return base.h if hasattr(base, "h") else base.layers
