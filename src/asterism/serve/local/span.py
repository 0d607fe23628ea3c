"""Run a part of a model's blocks: begin above known states, end below the top, keep what each block gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from asterism.core.errors import UnsupportedError
from asterism.models.anatomy import Anatomy
from asterism.models.types import PreTrainedModel


class Span:
    """The model's own forward runs, but only its blocks `first` to `stop`. The blocks' instances are patched for good."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self.blocks = anatomy.n_blocks
        self.whole()
        for index in range(self.blocks):
            block = model.get_submodule(anatomy.block_path(index))
            block.forward = self._gated(index, block)

    def whole(self) -> None:
        """All blocks run, nothing is kept."""
        self.over(0)

    def over(self, first: int, *, stop: int | None = None, given: Tensor | None = None, seen: list[Tensor] | None = None) -> None:
        """Blocks first to stop run. `given` [B, T, d]: what block first - 1 gave, where first > 0. `seen` gets what every block gives."""
        self.first, self.stop, self.given, self.seen = first, self.blocks if stop is None else stop, given, seen

    def _gated(self, index: int, block: nn.Module) -> Callable[..., Any]:
        original = block.forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if index < self.first:
                return self.given if index == self.first - 1 else hidden_states
            if index >= self.stop:
                return hidden_states
            out = original(hidden_states, *args, **kwargs)
            if self.seen is not None:
                if not isinstance(out, Tensor):
                    mend = "use a family whose blocks give hidden states alone"
                    raise UnsupportedError("A block gives more than its states.", met=type(block).__name__, mend=mend)
                self.seen.append(out)
            return out

        return forward
