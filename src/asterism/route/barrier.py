"""The loss barrier on a path between two models: how far the loss rises above the straight line between its ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import DataError
from asterism.core.statistics import mean_interval


@dataclass(frozen=True)
class Barrier:
    """The highest point of the excess over the ends' straight line, in nats a token; 0 where nothing rises above it."""

    height: float
    low: float | None
    high: float | None
    """95 % interval of the excess at that point, over texts; none of one text."""
    share: float
    """Where: the weight of the first model."""
    excess: tuple[float, ...]
    """Mean excess at every point; below 0 where the mixture is better than the line."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"height": self.height, "low": self.low, "high": self.high, "share": self.share, "excess": list(self.excess)}


def barrier(shares: Sequence[float], losses: Tensor, seed: int = 0) -> Barrier:
    """Losses [points, n] of n texts at the shares of a path from 0 to 1, each text's excess paired with its own line.

    excess(s) = loss(s) - (s loss(1) + (1 - s) loss(0)). Source: the error barrier of Frankle et al. 2020 (arXiv:1912.05671), against the
    line and not the mean of the ends (Entezari et al. 2022, arXiv:2110.06296). The interval is that of the highest point; that it
    was picked is not in it. Raises DataError for a path without both ends, or with other than one row of losses a share.
    """
    if not {0.0, 1.0} <= set(shares) or losses.ndim != 2 or len(losses) != len(shares):
        met = f"shares {', '.join(f'{share:g}' for share in shares)}; losses {list(losses.shape)}"
        raise DataError("A barrier needs the losses of a path with both its ends.", met=met, mend="shares from 0 to 1, a row each")
    place = torch.tensor(list(shares), dtype=torch.float64)[:, None]
    wide = losses.double()
    zero, one = (wide[list(shares).index(end)] for end in (0.0, 1.0))
    excess = wide - (place * one + (1 - place) * zero)  # [points, n]
    means = excess.mean(dim=1)
    top = int(means.argmax())
    height, low, high = mean_interval(excess[top].numpy(), seed)
    return Barrier(height, low, high, float(shares[top]), tuple(means.tolist()))
