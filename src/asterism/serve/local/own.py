"""A constellation that reads texts with the engine's own weights: no specialist's model is loaded beside them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from asterism.constellation.index import Constellation
from asterism.models.types import PreTrainedModel
from asterism.serve.local.execution import Executor


@dataclass(frozen=True, eq=False)
class OwnWeights(Constellation):
    """Asked for one text at a time, on the engine's thread."""

    executor: Any = field(default=None, repr=False)

    @classmethod
    def over(cls, constellation: Constellation, executor: Executor) -> OwnWeights:
        """The same index."""
        return cls(**{each.name: getattr(constellation, each.name) for each in fields(Constellation)}, executor=executor)

    def _model(self, name: str | None) -> PreTrainedModel:
        self.executor.under([None if name is None else self.executor.composition_of(name)], phase="prefill")
        return self.executor.model
