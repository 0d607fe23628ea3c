"""Which compositions of a batch run on a materialised tail, and which are mixed from their specialists' outputs.

A step of a few rows is bound by reading matrices: mixed rows read those of all specialists that any of them asks, each once; materialised
ones read a tail for each composition. So one live composition is materialised, many are mixed, and the crossover lies where there are about
as many compositions as matrices to be read. A prompt is worth a tail (from about 32 tokens on) where its answer's steps will use it; the
prompts of mixed answers are read with matrices built for the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from asterism.core.settings import Settings

if TYPE_CHECKING:
    from asterism.serve.local.bound import Bound

Phase = Literal["prefill", "decode"]
ROW = 0.09
"""What another row costs a product in float32 or wider on a CPU, in parts of reading its matrix. It puts the crossover where it was met: of
compositions of 3 of 4 specialists between 4 and 5 rows, with a share for the generalist between 6 and 8. Half precision and other devices
read for as long as they compute: at as many compositions as matrices."""
PATIENCE = 2
"""Steps for which a tail must have been the better choice before it is built amid an answer: what building one costs."""


class ExecutionSettings(Settings):
    """How the local engine runs compositions."""

    execution: Literal["auto", "mixed", "materialised"] = "auto"
    """Build each composition's parameters, mix specialists' outputs, or whichever is cheaper at the time."""
    tails_gb: Annotated[float, Field(ge=0)] = 2.0
    """Memory for the built parameters of compositions, in GB; those used longest ago go first."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many singular directions of what a full specialist changed in each matrix: nearly as fast as the generalist alone, and
    not exact. None: all; `serve.local.lowrank.least_rank` finds the rank that a library needs."""


class Policy:
    """Chooses for each batch."""

    def __init__(self, settings: ExecutionSettings, size: Callable[[Bound], int], known: Callable[[Bound], bool], row: float = ROW) -> None:
        """`size`: bytes of a composition's tail; `known`: whether it has one already; `row`: see ROW."""
        self._row = row
        self.settings, self._size, self._known = settings, size, known
        self._limit = int(settings.tails_gb * 1e9)
        self._wanted: WeakKeyDictionary[Bound, int] = WeakKeyDictionary()
        self._last: tuple[dict[Bound, int], list[Bound]] = {}, []

    def prefill(self, live: Mapping[Bound, int], decoding: Mapping[Bound, int]) -> set[Bound]:
        """Those of the prompts' compositions, {composition: rows}, that run on a tail, given those that answers run under meanwhile."""
        if self.settings.execution != "auto":
            return self._always(live)
        together = dict(decoding)
        for bound, rows in live.items():
            together[bound] = together.get(bound, 0) + rows
        wanted = self._cheapest(together)
        return {bound for bound in live if bound in wanted or self._known(bound)}

    def decode(self, live: Mapping[Bound, int]) -> set[Bound]:
        """Those that run on a tail in the next step; at most one of them has none yet."""
        if self.settings.execution != "auto":
            return self._always(live)
        if self._last[0] != live:
            self._last = dict(live), self._cheapest(live)
        chosen: set[Bound] = set()
        new: Bound | None = None
        for bound in self._last[1]:
            if self._known(bound):
                chosen.add(bound)
            elif new is None:
                self._wanted[bound] = self._wanted.get(bound, 0) + 1
                if self._wanted[bound] > PATIENCE:
                    new = bound
        return chosen if new is None else chosen | {new}

    def forget(self) -> None:
        """Hold on to no composition."""
        self._last = {}, []

    def _always(self, live: Mapping[Bound, int]) -> set[Bound]:
        return set(live) if self.settings.execution == "materialised" else set()

    def _cheapest(self, live: Mapping[Bound, int]) -> list[Bound]:
        """The compositions whose tails make a step cheapest, those of most rows first; mixed where it is all the same."""
        order = sorted(live, key=lambda bound: -live[bound])
        best, count, tails, built = self._mixed(live, order), 0, 0.0, 0
        for place, bound in enumerate(order, 1):
            size = self._size(bound)
            built += size
            if built > self._limit:
                break
            tails += size * (1 + self._row * live[bound])
            cost = tails + self._mixed(live, order[place:])
            if cost < best:
                best, count = cost, place
        return order[:count]

    def _mixed(self, live: Mapping[Bound, int], bounds: list[Bound]) -> float:
        """Bytes read by the mixed rows, with what their number adds."""
        read: dict[str, float] = {}
        rows = 0.0
        for bound in bounds:
            for name, size in bound.reads.items():
                read[name] = max(read.get(name, 0.0), size)
                rows += self._row * live[bound] * size
        return sum(read.values()) + rows
