"""The distribution regulariser: embeddings are drawn to a rectified normal distribution by their sliced Wasserstein distance from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asterism.core.errors import MismatchError


def sliced_wasserstein(one: Tensor, other: Tensor, directions: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of two samples of equal size along each direction, and the mean over directions: a scalar.

    one, other [n, d]; directions [d, P] of length 1. In one dimension the optimal plan pairs sorted values, so it is the mean square
    difference of these; the plan is held fixed in the gradient, which reaches `one` alone. Source: Deshpande, Zhang & Schwing 2018,
    equation 3. Raises MismatchError for samples of unequal size.
    """
    if one.shape != other.shape:
        met = f"{list(one.shape)} and {list(other.shape)}"
        raise MismatchError("Samples to compare are of one size.", met=met, mend="draw as many of each")
    values = directions.mT @ one.mT  # [P, n]
    with torch.no_grad():
        goals = matched(values, directions.mT @ other.mT)
    return (values - goals).square().mean()


def matched(values: Tensor, others: Tensor) -> Tensor:
    """[P, n] twice -> `others` of every row in the order of `values`: the smallest where the smallest stands, and so on.

    On the CPU by NumPy, whose sort takes an eighth of the time of PyTorch's.
    """
    if values.device.type != "cpu":
        return torch.empty_like(others).scatter_(1, values.argsort(dim=1), others.sort(dim=1).values)
    found = np.empty_like(others.numpy())
    np.put_along_axis(found, np.argsort(values.numpy(), axis=1), np.sort(others.numpy(), axis=1), axis=1)
    return torch.from_numpy(found)


def unit_directions(width: int, count: int, generator: torch.Generator) -> Tensor:
    """[width, count] float32: random directions, uniform on the sphere."""
    drawn = torch.randn(width, count, generator=generator)
    return drawn / drawn.norm(dim=0).clamp_min(1e-12)


def from_rectified_normal(embeddings: Tensor, directions: Tensor, mean: float, sigma: float, generator: torch.Generator) -> Tensor:
    """How far relu(embeddings) [n, d] is from relu(N(mean, sigma^2)), as `sliced_wasserstein` with n drawn rows.

    Drawn on the CPU, so that every device meets the same numbers. Source: HeteroFusion's distribution regulariser.
    """
    normal = torch.randn(embeddings.shape, generator=generator).mul_(sigma).add_(mean).to(embeddings)
    return sliced_wasserstein(embeddings.relu(), normal.relu_(), directions)
