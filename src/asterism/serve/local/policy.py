"""Which compositions of a batch run on a materialised tail, and which are mixed from their specialists' outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from asterism.core.settings import Settings
from asterism.serve.local.bound import Bound

Phase = Literal["prefill", "decode"]


class ExecutionSettings(Settings):
    """How the local engine runs compositions."""

    execution: Literal["auto", "mixed", "materialised"] = "auto"
    """Build each composition's parameters, mix specialists' outputs, or whichever is cheaper at the time."""
    tails_gb: Annotated[float, Field(ge=0)] = 2.0
    """Memory for the built parameters of compositions, in GB; those used longest ago go first."""


class Policy:
    """Chooses for each batch; keeps count of nothing but what it was told."""

    def __init__(self, settings: ExecutionSettings) -> None:
        self.settings = settings

    def materialised(self, live: Sequence[Bound], phase: Phase, known: Callable[[Bound], bool]) -> set[Bound]:
        """Those of the distinct compositions `live` that should have a tail; `known` tells which have one already."""
        if self.settings.execution != "auto":
            return set(live) if self.settings.execution == "materialised" else set()
        if phase == "prefill":
            return {bound for bound in live if bound.members > 1}
        return set(live) if len(live) <= max(bound.members for bound in live) else set()
