"""Merges that look at every entry: plain torch on a float stack [K, *shape], all of the tensor at once."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from asterism.core.sifting import largest
from asterism.merge.methods.method import Told

_NEAR = 1e-6  # differences below this count as this
_SOFT = 1e-8  # added to probabilities
_BLOCK = 1 << 20  # entries at a time of what is computed in float64


def nearswap(stack: Tensor, *, t: Annotated[float, Told("how far a weight goes towards the other model's", 0)]) -> Tensor:
    """Swap weights that are nearly equal for the other model's; all others go a step towards them.

    `min(1, t / max(|d|, 1e-6)) * d`, of the one delta d.

    stack: deltas [1, *shape] -> [*shape].

    Source: huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001.
    """
    (delta,) = stack
    return delta * (t / delta.abs().clamp_min(_NEAR)).clamp(0, 1)


def arcee_fusion(stack: Tensor) -> Tensor:
    """The other model's weight where it is important, else the base's.

    Importance of an entry: `|difference|` times its row's KL divergence, of the softmax of the other's row from the base's, 1e-8 added to
    probabilities. Important: at least `median + 1.5 (upper - lower quartile)`, quantile q being the entry `floor(q (n - 1))` in order.

    stack: models [2, *shape], base first -> [*shape].

    Differs from mergekit: its quartiles are of a million entries drawn at random, where there are more, and its divergence is in the
    weights' dtype, in which that of a usual fine-tuning is rounding; here it is float64.

    Source: mergekit's arcee_fusion (arcee.ai).
    """
    base, other = stack
    delta = other - base
    weight = (delta.abs() * _divergence(other, base).to(delta.dtype)).reshape(-1)
    low, middle, high = (weight.kthvalue(1 + (len(weight) - 1) * quarter // 4).values for quarter in (1, 2, 3))
    return base + delta.where((weight >= middle + 1.5 * (high - low)).view(delta.shape), 0.0)


def _divergence(x: Tensor, y: Tensor) -> Tensor:
    """KL(softmax x || softmax y) along the last axis, [..., m] -> [..., 1] float64, in blocks of rows."""
    rows_x, rows_y = (one.reshape(-1, one.shape[-1] if one.ndim else 1) for one in (x, y))
    some = max(1, _BLOCK // rows_x.shape[1])
    sums = []
    for a, b in zip(rows_x.split(some), rows_y.split(some), strict=True):
        p, q = a.double().softmax(-1) + _SOFT, b.double().softmax(-1) + _SOFT
        sums.append((p * (p / q).log()).sum(-1))
    return torch.cat(sums).view(*x.shape[:-1], 1) if x.ndim else sums[0].view(())


def sce(stack: Tensor, *, select_topk: Annotated[float, Told("share of the entries that is kept, by variance", 0, 1)] = 1.0) -> Tensor:
    """Select the entries that vary most over the models, calculate a weight a model, erase minority signs.

    Kept are `int(select_topk v)` entries, v the number whose variance is not 0, of equal ones the first in memory. A model's weight is its
    share of the kept deltas' sum of squares, equal shares where that is 0. An entry is the weighted mean of those of the sign of their
    plain sum, 0 counting as +.

    stack: deltas [K, *shape] -> [*shape].

    Differs from mergekit: its weights are equal where the mean squares sum to less than 1e-6, as those of most fine-tunings do; here
    they do not depend on the deltas' scale.

    Source: FuseChat, Wan et al. 2024, arXiv:2408.07990.
    """
    if select_topk < 1:
        variance = stack.var(dim=0, correction=0)
        stack = stack.where(largest(variance, int(select_topk * int(variance.count_nonzero()))), 0.0)
    energy = stack.reshape(len(stack), -1).square().sum(1, dtype=torch.float64)
    share = energy / energy.sum() if energy.sum() > 0 else torch.full_like(energy, 1 / len(stack))
    upward = stack.sum(dim=0) >= 0
    merged, divisor = torch.zeros_like(stack[0]), torch.zeros_like(stack[0])
    for delta, weight in zip(stack, share.to(stack.dtype), strict=True):
        agrees = torch.where(upward, delta > 0, delta < 0)
        merged += weight * delta.where(agrees, 0.0)
        divisor += weight * agrees
    return merged / divisor.where(divisor > 0, 1.0)


Epsilon = Annotated[float, Told("a delta no larger than this counts as no change", 0)]


def ram(stack: Tensor, *, epsilon: Epsilon = 1e-5) -> Tensor:
    """The mean of each entry over the models that changed it.

    `sum_i d_i / n` over the n models with `|d_i| > epsilon`, 0 where there is none.

    stack: deltas [K, *shape] -> [*shape].

    Source: Reinforced Agent Merging, arXiv:2601.13572.
    """
    changed = stack.abs() > epsilon
    return stack.where(changed, 0.0).sum(dim=0) / changed.sum(dim=0).clamp_min(1)


def ramplus_tl(
    stack: Tensor,
    *,
    r: Annotated[float, Told("how strongly a model's own entries are raised")] = 0.1,
    alpha: Annotated[float, Told("the most that the ratio of shared to own entries counts", 0)] = 0.2,
    epsilon: Epsilon = 1e-5,
) -> Tensor:
    """As `ram`, but entries that one model alone changed are raised, tensor by tensor.

    Raised by `1 + r min(shared / own, alpha)`: how many entries the model changed with others, and alone; with none of its own the factor
    does not matter.

    stack: deltas [K, *shape] -> [*shape].

    Source: Reinforced Agent Merging, arXiv:2601.13572.
    """
    changed = stack.abs() > epsilon
    number = changed.sum(dim=0)
    merged = torch.zeros_like(stack[0])
    for delta, mine in zip(stack, changed, strict=True):
        own, shared = int((mine & (number == 1)).sum()), int((mine & (number > 1)).sum())
        raised = 1 + r * min(shared / max(own, 1), alpha)
        part = delta.where(mine, 0.0) / number.clamp_min(1)
        merged += torch.where(number == 1, raised * part, part)
    return merged
