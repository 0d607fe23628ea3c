"""Merges that are weighted sums: coefficients c [..., K] from the Gram matrix [..., K, K] of the K stacked tensors; merge = sum_i c_i x_i.

Lengths and angles are all that these methods see of the tensors. Leading axes of the matrix are rows, each merged by itself.
Everything is float64.
"""

from __future__ import annotations

from math import pi
from typing import Annotated, Literal

import torch
from torch import Tensor

from asterism.core.errors import SettingsError
from asterism.merge.methods.method import PerModel, Told, spread

Split = Literal["whole", "rows", "columns"]
"""What is merged by itself: a whole tensor, each vector along its last axis, or each along its first."""

_STRAIGHT = 0.9995  # |cosine| from which SLERP is linear
_PARALLEL = 1e-12  # squared sine below which NuSLERP is linear
_VANISHED = 1e-7  # length of a mean of unit vectors that is rounding alone
_SINGULAR = 1e-6
_NO_WEIGHT = 1e-8  # a sum of weights below this does not divide

_WEIGHT = "the model's share; any number, also negative"


# Plain sums: nothing of the tensors is looked at.


def passthrough(gram: Tensor, *, scale: Annotated[PerModel, Told("factor of the tensor")] = 1.0) -> Tensor:
    """The one model's tensor, by a factor.

    `c = scale`.
    """
    return _given(gram, scale)


def uniform(gram: Tensor) -> Tensor:
    """The plain mean of all models.

    `c_i = 1 / K`.

    Source: Wortsman et al. 2022, arXiv:2203.05482, the uniform soup.
    """
    return torch.full_like(gram[..., 0], 1 / gram.shape[-1])


def linear(
    gram: Tensor,
    *,
    weight: Annotated[PerModel, Told(_WEIGHT)],
    normalize: Annotated[bool, Told("divide by the sum of the weights")] = True,
) -> Tensor:
    """The weighted mean of all models, or their weighted sum.

    `c_i = w_i / sum_j w_j`, without normalize `c_i = w_i`. Raises SettingsError for weights to normalise that sum to 0.

    Differs from mergekit: such weights give NaN or Inf there.

    Source: model soups, Wortsman et al. 2022, arXiv:2203.05482.
    """
    return _shares(gram, weight, "linear") if normalize else _given(gram, weight)


def lerp(gram: Tensor, *, t: Annotated[float, Told("place between the two: 0 is the first (the base), 1 the other", 0, 1)]) -> Tensor:
    """The point between two models on a straight line.

    `c = (1 - t, t)`.
    """
    return _given(gram, (1 - t, t))


def task_arithmetic(
    gram: Tensor,
    *,
    weight: Annotated[PerModel, Told(_WEIGHT)],
    normalize: Annotated[bool, Told("divide by the sum of the weights")] = False,
    lambda_: Annotated[float, Told("factor of the merged delta")] = 1.0,
) -> Tensor:
    """The base plus the weighted deltas.

    `c_i = lambda w_i`, with normalize `lambda w_i / sum_j w_j`; a sum of weights below 1e-8 does not divide, as in mergekit.

    Source: Ilharco et al. 2023, arXiv:2212.04089.
    """
    weights = _given(gram, weight)
    divisor = weights.sum(-1, keepdim=True)
    return lambda_ * (weights / divisor.where(divisor.abs() >= _NO_WEIGHT, 1.0) if normalize else weights)


# Arcs.


def slerp(gram: Tensor, *, t: Annotated[float, Told("place on the arc: 0 is the base, 1 the other model", 0, 1)]) -> Tensor:
    """A point on the arc from the base to the other model.

    `c = (sin((1 - t) a), sin(t a)) / sin(a)`, a the angle of the two tensors, the base first. Linear, `(1 - t, t)`, where
    `|cos a| > 0.9995`: parallel and antiparallel tensors. A zero tensor counts as orthogonal to every other.

    Source: Shoemake 1985.
    """
    cosine = _cosines(gram)[..., 0, 1]
    return _arc(cosine, t, straight=cosine.abs() > _STRAIGHT)


def nuslerp(gram: Tensor, *, weight: Annotated[PerModel, Told("the model's share; the two are divided by their sum")]) -> Tensor:
    """A point on the arc between two weighted models, or with a base between their deltas: of whole tensors, rows or columns.

    SLERP with `t = w_2 / (w_1 + w_2)`, 1/2 where the weights sum to less than 1e-6 in size. Linear where `sin^2 a <= 1e-12`.

    Differs from mergekit: its bound, 1e-16, lies below what its float32 resolves, and whether two antiparallel tensors blow up there is a
    matter of rounding.

    Source: mergekit.
    """
    first, second = spread(weight, 2)
    total = first + second
    cosine = _cosines(gram)[..., 0, 1]
    return _arc(cosine, 0.5 if abs(total) < 1e-6 else second / total, straight=1 - cosine**2 <= _PARALLEL)


def multislerp(
    gram: Tensor,
    *,
    weight: Annotated[PerModel, Told(_WEIGHT)],
    normalize_weights: Annotated[bool, Told("divide by the sum of the weights")] = True,
    eps: Annotated[float, Told("added to lengths before dividing by them", 0)] = 1e-8,
) -> Tensor:
    """The weighted mean direction of the models, or with a base of their deltas, at their weighted mean length.

    `sum_j w_j |x_j| * m / |m|` with `m = sum_i w_i x_i / (|x_i| + eps)`, the weights divided by their sum with normalize_weights; where m
    vanishes, `sum_i w_i x_i`. A single model is itself. Raises SettingsError for weights to normalise that sum to 0.

    Differs from the source: its step in the tangent space at m / |m| is the zero vector, whatever the tensors, for m is their mean; so it
    is left out.

    Differs from mergekit: where m vanishes it stops, unless K = 2; weights that sum to 0 give NaN there.

    Source: goddard.blog/posts/multislerp-wow-what-a-cool-idea.
    """
    if gram.shape[-1] == 1:
        return torch.ones_like(gram[..., 0])
    weights = _shares(gram, weight, "multislerp") if normalize_weights else _given(gram, weight)
    norms = _norms(gram)
    unit = (weights / (norms + eps)).where(norms > 0, 0.0)  # [..., K]: m in terms of the tensors
    length = _length(unit, gram)
    gone = length <= max(eps, _VANISHED)
    return torch.where(gone, weights, unit * (weights * norms).sum(-1, keepdim=True) / length.where(~gone, 1.0))


def karcher(
    gram: Tensor,
    *,
    max_iter: Annotated[int, Told("most steps", 0)] = 10,
    tol: Annotated[float, Told("angle and length of a step, below which it is done", 0)] = 1e-5,
) -> Tensor:
    """The point of the sphere that is nearest to all models' directions, at their mean length.

    Nearest: of the least sum of squared angles. Steps along the sphere by the mean of the logarithms, from the normalised mean direction;
    from the first tensor that is not zero where that mean is shorter than tol. Zero tensors count for the length alone. A tensor within
    tol of the antipode gives no direction.

    Differs from mergekit: it takes all tensors shorter than tol for zero, so that the scale of the weights matters; near the antipode
    rounding gives a direction there.

    Source: arXiv:2603.04972.
    """
    count = gram.shape[-1]
    if count == 1:
        return torch.ones_like(gram[..., 0])
    norms, cosines = _norms(gram), _cosines(gram)
    there = (norms > 0).double()
    share = there / there.sum(-1, keepdim=True).clamp_min(1)
    first = there * (there.cumsum(-1) == 1)
    length = _length(share, cosines)
    mean = torch.where(length < max(tol, _VANISHED), first, share / length.where(length > 0, 1.0))  # [..., K] in terms of unit tensors
    for _ in range(max_iter):
        along = (cosines @ mean[..., None])[..., 0].clamp(-1, 1)
        angle = along.acos()
        near = (angle < tol) | (pi - angle < max(tol, _VANISHED)) | (angle == 0)
        pull = (share * angle / angle.sin().where(~near, 1.0)).where(~near, 0.0)
        step = pull - (pull * along).sum(-1, keepdim=True) * mean
        size = _length(step, cosines)
        moving = size >= max(tol, _VANISHED)
        if not moving.any():
            break
        moved = size.cos() * mean + size.sin() / size.where(moving, 1.0) * step
        mean = torch.where(moving, moved / _length(moved, cosines).where(moving, 1.0), mean)
    return norms.mean(-1, keepdim=True) * mean / norms.where(norms > 0, 1.0)


# Geometry of the deltas.


def model_stock(gram: Tensor) -> Tensor:
    """The base plus a share of the deltas' mean, the larger the more alike they are.

    `c_i = t / K` with `t = K cos a / (1 + (K - 1) cos a)`, cos a the mean cosine of two deltas, K >= 2. The base, t = 0, where
    `|1 + (K - 1) cos a| < 1e-6`. Cosines are true ones, so the scale of the deltas does not matter; a zero delta counts as orthogonal.

    Differs from mergekit: it divides by 1e-6 at least, and finds deltas shorter than 1e-3 too little alike.

    Source: Jang et al. 2024, arXiv:2403.19522.
    """
    count = gram.shape[-1]
    cosines = _cosines(gram)
    cosine = (cosines.sum((-2, -1)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)) / (count * (count - 1))
    bottom = 1 + (count - 1) * cosine
    singular = bottom.abs() < _SINGULAR
    share = (cosine / bottom.where(~singular, 1.0)).where(~singular, 0.0)
    return share[..., None].expand(gram.shape[:-1])


# What is merged by itself.


def filters(*, filter_wise: Annotated[bool, Told("each row of a weight by itself, with its own angle")] = False) -> Split:
    """Model Stock's switch."""
    return "rows" if filter_wise else "whole"


def vectors(
    *,
    nuslerp_row_wise: Annotated[bool, Told("without flatten: vectors along the first axis, not the last")] = False,
    nuslerp_flatten: Annotated[bool, Told("the whole tensor as one vector")] = True,
) -> Split:
    """NuSLERP's switches, as mergekit reads them: row_wise takes the vectors W[:, j], else W[i, :]."""
    if nuslerp_flatten:
        return "whole"
    return "columns" if nuslerp_row_wise else "rows"


def _given(gram: Tensor, values: PerModel) -> Tensor:
    """One number a model -> [..., K]."""
    count = gram.shape[-1]
    return torch.tensor(spread(values, count), dtype=gram.dtype, device=gram.device).expand(gram.shape[:-1])


def _shares(gram: Tensor, weight: PerModel, method: str) -> Tensor:
    weights = _given(gram, weight)
    total = weights.sum(-1, keepdim=True)
    if (total.abs() <= _NO_WEIGHT * weights.abs().sum(-1, keepdim=True)).any():
        met = list(spread(weight, gram.shape[-1]))
        raise SettingsError(f"{method}'s weights sum to 0: they cannot be normalised.", met=met, mend="other weights, or no normalising")
    return weights / total


def _norms(gram: Tensor) -> Tensor:
    return gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def _cosines(gram: Tensor) -> Tensor:
    """[..., K, K]; of a zero tensor 0, with itself too."""
    norms = _norms(gram)
    norms = norms.where(norms > 0, 1.0)
    return (gram / norms[..., :, None] / norms[..., None, :]).clamp(-1, 1)


def _length(coefficients: Tensor, gram: Tensor) -> Tensor:
    """|sum_i c_i x_i|: [..., K], [..., K, K] -> [..., 1]."""
    return (coefficients * (gram @ coefficients[..., None])[..., 0]).sum(-1, keepdim=True).clamp_min(0).sqrt()


def _arc(cosine: Tensor, t: float, *, straight: Tensor) -> Tensor:
    """[...] -> [..., 2]."""
    angle = cosine.where(~straight, 0.0).acos()
    bent = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()], dim=-1) / angle.sin()[..., None]
    return torch.where(straight[..., None], torch.tensor([1 - t, t], dtype=bent.dtype, device=bent.device), bent)
