"""The one interface of all engines. Whoever asks lives on an event loop; an engine works on a thread, or in processes, of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from asterism.constellation.settings import MixtureSettings
from asterism.serve.jobs import Choice, Event, Facts, Job, Stats, Wish


class Engine(Protocol):
    """Answers jobs, each under its own composition, many at once."""

    @property
    def facts(self) -> Facts:
        """What it is; known after `start`."""
        ...

    async def start(self) -> None:
        """Load the models. AsterismError when they cannot be."""
        ...

    async def choose(self, tokens: Sequence[int], wish: Wish) -> Choice:
        """The mixture of a prompt. UnknownName for an excluded specialist that is not there, SettingsError for a top_k beyond the rest."""
        ...

    async def explain(self, text: str, settings: MixtureSettings | None) -> dict[str, Any]:
        """What a text asks of the library: `asterism.constellation.explanation.explain`."""
        ...

    def submit(self, job: Job) -> AsyncIterator[Event]:
        """The events of one job, the last one Finished or Failed. A caller who stops listening cancels it: its row is free at once.

        Raises before the first event: UnknownName for a composition with a specialist that is not there, DataError for a prompt that
        leaves no room for its answer.
        """
        ...

    def cancel(self, job: str) -> None:
        """End a job by its id; nothing where it has ended."""
        ...

    async def add(self, name: str, source: str, probes: Sequence[str]) -> None:
        """Add a specialist to the library, its constellation and this engine; on any error all three stay as they were."""
        ...

    async def remove(self, name: str) -> None:
        """Take one out: answers that run with it finish with it, later ones are refused."""
        ...

    async def follow(self) -> None:
        """Take over what other processes have changed in the library's files: specialists that came or went, the constellation.

        Answers under way go on as after `add` and `remove`. On an error the engine goes on with what it has, as far as it could not follow.
        """
        ...

    def stats(self) -> Stats:
        """Counters now."""
        ...

    async def drain(self, seconds: float) -> None:
        """Take no more jobs, and wait until those there are have ended, but so many seconds at most: what is left is cancelled."""
        ...

    async def close(self) -> None:
        """Drain at once, and give everything back."""
        ...
