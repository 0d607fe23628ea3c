"""What each position may look at, for models whose layers look at all before it, at a window, or some at one and some at the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import UnsupportedError

FULL, SLIDING = "full_attention", "sliding_attention"
Mask = Tensor | dict[str, Tensor]
"""[B or 1, 1, queries, keys], 0 or the lowest number, to be added to scores; by kind of layer where there are two."""


class Masks:
    """The masks of one model, made once a pass and shared by all its layers."""

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device) -> None:
        """UnsupportedError for kinds of layers that are not known here, naming them."""
        kinds = set(getattr(config, "layer_types", None) or ())
        self.window: int | None = getattr(config, "sliding_window", None)
        if unknown := kinds - {FULL, SLIDING}:
            mend = "use a model with full or sliding attention, or another engine"
            raise UnsupportedError("The local engine cannot serve these layers.", met=", ".join(sorted(unknown)), mend=mend)
        if not kinds:  # a family without kinds has one, and its window is every layer's
            kinds = {SLIDING if self.window else FULL}
        self.kinds = tuple(sorted(kinds))
        self._device = device
        self._no = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=device)
        self._yes = torch.zeros((), dtype=dtype, device=device)
        self._columns = torch.arange(0, device=device)

    def step(self, positions: Tensor, width: int) -> Mask:
        """Of one new token a row, at positions [B], over `width` keys."""
        return self._made(lambda: positions[:, None, None, None], width)

    def chunk(self, start: int, stop: int) -> Mask:
        """Of positions start to stop, the same in every row, over the keys up to stop."""
        return self._made(lambda: self.columns(stop)[start:, None], stop)

    def columns(self, width: int) -> Tensor:
        """[width] 0, 1, 2, ..."""
        if len(self._columns) < width:
            self._columns = torch.arange(2 * width, device=self._device)
        return self._columns[:width]

    def _made(self, positions: Callable[[], Tensor], width: int) -> Mask:
        keys, at = self.columns(width), positions()
        allowed = keys <= at
        made = {}
        for kind in self.kinds:
            own = allowed if kind == FULL else allowed & (keys > at - (self.window or 0))
            mask = torch.where(own, self._yes, self._no)
            made[kind] = mask if mask.ndim == 4 else mask[None, None]
        return made if len(made) > 1 else made[self.kinds[0]]
