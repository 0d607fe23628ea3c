"""A constellation that reads texts with the engine's own weights: no specialist's model is loaded beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from asterism.constellation.index import Constellation
from asterism.models.types import PreTrainedModel
from asterism.serve.local.execution import Executor


@dataclass(frozen=True, eq=False)
class OwnWeights(Constellation):
    """Asked for one text at a time, in the engine's turns."""

    executor: Any = field(default=None, repr=False)
    pause: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called before each use of the model."""

    @classmethod
    def over(cls, constellation: Constellation, executor: Executor, pause: Callable[[], None]) -> OwnWeights:
        """The same index."""
        same = {each.name: getattr(constellation, each.name) for each in fields(Constellation)}
        return cls(**same, executor=executor, pause=pause)

    def _model(self, name: str | None) -> PreTrainedModel:
        self.pause()
        self.executor.under([None if name is None else self.executor.composition_of(name)], phase="prefill")
        return self.executor.model
