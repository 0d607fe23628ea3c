"""What a specialist holds for one parameter of the generalist: a dense tensor, or two thin factors to add."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.core.errors import MismatchError


@dataclass(frozen=True, eq=False)
class Dense:
    """The specialist's whole parameter, in the generalist's layout."""

    tensor: Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """up @ down, to be added to the generalist's parameter: up [out, r] holds LoRA's scale, down [r, in]."""

    up: Tensor
    down: Tensor

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            met = f"up {list(self.up.shape)}, down {list(self.down.shape)}"
            raise MismatchError("Low-rank factors do not fit each other.", met=met, mend="up is [out, r] and down [r, in]")

    @property
    def rank(self) -> int:
        """Columns of `up`."""
        return self.up.shape[1]

    def shape(self, axis: int) -> tuple[int, int]:
        """Shape of the parameter it changes: [out, in] when the output axis is 0, [in, out] when it is 1."""
        outputs, inputs = self.up.shape[0], self.down.shape[1]
        return (outputs, inputs) if axis == 0 else (inputs, outputs)

    def delta(self, axis: int) -> Tensor:
        """The change in the parameter's own layout: up @ down [out, in] for output axis 0, its transpose for 1.

        Computed in float32, or in float64 when a factor is float64.
        """
        wide = torch.promote_types(torch.promote_types(self.up.dtype, self.down.dtype), torch.float32)
        up, down = self.up.to(wide), self.down.to(wide)
        return up @ down if axis == 0 else down.mT @ up.mT


Change = Dense | LowRank


def applied(base: Tensor, change: Change | None, axis: int) -> Tensor:
    """The specialist's parameter: `base` itself for None; low-rank changes are added in float32 or wider, then cast to base's dtype."""
    if change is None:
        return base
    if isinstance(change, Dense):
        return change.tensor
    delta = change.delta(axis)
    return (base.to(delta.dtype) + delta).to(base.dtype)
