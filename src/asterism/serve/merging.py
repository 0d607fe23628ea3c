"""Several streams as one, and work that ends when its client goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What the streams give, as it comes, with each one's place. The first error ends them all; so does closing this."""
    if len(streams) == 1:
        async with aclosing(streams[0]) as alone:
            async for one in alone:
                yield 0, one
        return
    queue: asyncio.Queue[tuple[int, T] | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_fill(queue, place, stream)) for place, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            met = await queue.get()
            if isinstance(met, BaseException):
                raise met
            if met is None:
                left -= 1
            else:
                yield met
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_of(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of them return, in order. The first error is raised once the others, cancelled, have ended."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def while_connected(receive: Callable[[], Awaitable[Any]], work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` returns; None where the client goes before: work is cancelled then. The request's body must have been read."""
    task, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _fill(queue: asyncio.Queue[Any], place: int, stream: AsyncGenerator[Any, None]) -> None:
    try:
        async with aclosing(stream):
            async for one in stream:
                queue.put_nowait((place, one))
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
