"""The events of one answer as the event loop sees them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from asterism.serve.jobs import Event, Failed, Finished


class Answer(AsyncIterator[Event]):
    """Ends with Finished or Failed. Closed, or forgotten, before that, it cancels its job."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._cancel, self._over = cancel, False

    def put(self, event: Event) -> None:
        """From the engine, on the loop."""
        self._events.put_nowait(event)

    def __aiter__(self) -> Answer:
        return self

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        self._over = isinstance(event, Finished | Failed)
        return event

    async def aclose(self) -> None:
        """Stop listening."""
        if not self._over:
            self._over = True
            self._cancel()

    def __del__(self) -> None:
        if not self._over:
            self._cancel()
