"""Refine a mixture on the query itself: a gradient step of the composed model's loss with respect to the mixture's weights.

Evidence tells how good each candidate is alone; the gradient tells what the composition still lacks. A step costs a forward and a
backward pass of the composed model over the query, about three forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.constellation.mixture import Mixture
from asterism.models.changes import Dense
from asterism.models.likelihood import logits_of, token_losses

RATE = 0.3
"""Step on the delta weights for a gradient of 1 nat a token. Set by hand; its gain is measured (experiments/constellation/ideas.json)."""


def refined(composer: Composer, mixture: Mixture, ids: Sequence[int], *, steps: int = 1, rate: float = RATE) -> Mixture:
    """The mixture after `steps` steps of gradient descent on the composed model's mean loss over `ids`, tokens of the query.

    One number a specialist moves, the same at every node; it does not fall below zero. Leaves the composer's model composed.
    """
    for _ in range(steps):
        gradient = weight_gradient(composer, mixture, ids)
        mixture = moved(mixture, -rate * gradient)
    return mixture


def moved(mixture: Mixture, step: Tensor) -> Mixture:
    """The mixture with `step` [K] added to its effective delta weights (scale x weight), none of them below zero."""
    factor = mixture.scale or 1.0
    added = step[:, None].to(mixture.weights) / factor
    weights = (mixture.weights + added).clamp_min(0)
    modules = {path: (own + added).clamp_min(0) for path, own in mixture.modules.items()}
    return replace(mixture, weights=weights, modules=modules, generalist=1 - float(weights.mean(dim=1).sum()), scale=factor)


def weight_gradient(composer: Composer, mixture: Mixture, ids: Sequence[int]) -> Tensor:
    """[K] derivative of the mean loss over `ids` by each specialist's effective delta weight: <d loss / d theta, theta_i - theta_G>."""
    model, placed = composer.materialise(mixture), torch.tensor([list(ids)], device=composer.library.device)
    with torch.inference_mode(False), torch.enable_grad():
        model.requires_grad_(True)
        try:
            token_losses(logits_of(model, placed.clone()), placed).mean().backward()
            return torch.tensor([_along(composer, name) for name in mixture.specialists])
        finally:
            model.zero_grad(set_to_none=True)
            model.requires_grad_(False)


@torch.no_grad()
def _along(composer: Composer, specialist: str) -> float:
    """Inner product of the model's gradient with one specialist's delta, over the parameters that are composed."""
    total, library = 0.0, composer.library
    for name, change in composer.changes(specialist).items():
        gradient = composer.gradient(name)
        if gradient is None:
            continue
        if isinstance(change, Dense):
            total += float((gradient * (change.tensor - library.tensor(name))).sum(dtype=torch.float64))
        else:
            own = gradient if library.anatomy.output_axes[name] == 0 else gradient.T
            total += float(((change.up.to(own.dtype).T @ own) * change.down).sum(dtype=torch.float64))
    return total
