"""A library that several servers share: each follows what the others have changed on disk, and only one changes it at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from asterism.constellation.index import FOLDER
from asterism.constellation.store import INDEX
from asterism.core.errors import StorageError
from asterism.core.storage import alone
from asterism.models.library import MANIFEST
from asterism.serve.engine import Engine
from asterism.serve.errors import Away, Refused
from asterism.serve.security import OPEN

log = logging.getLogger("asterism.serve")
Marks = tuple[tuple[int, int, int] | None, ...]
PATIENCE = 30.0
"""Seconds that a change waits for another server's."""
AGAIN = 0.05


def marks(root: Path) -> Marks:
    """What tells one state of a library and its constellation from another: both are replaced whole when they change."""
    return tuple(_mark(file) for file in (root / MANIFEST, root / FOLDER / INDEX))


class Following:
    """Keeps an engine in step with its library's files. `async with following:` is the one change of the library at that time."""

    def __init__(self, engine: Engine, root: Path, seen: Marks) -> None:
        """`seen`: the marks from before the library was opened."""
        self._engine, self._root, self._seen = engine, root, seen
        self._looking, self._changing = asyncio.Lock(), asyncio.Lock()
        self._held = ExitStack()

    async def current(self) -> None:
        """Have the engine take over what has changed, if anything has.

        What it cannot take over is logged once, and tried again when the files change again: the engine goes on with what it has.
        """
        if self._changing.locked() or marks(self._root) == self._seen:
            return
        async with self._looking:
            while (now := marks(self._root)) != self._seen:
                try:
                    await self._engine.follow()
                except Away:
                    return
                except Exception:
                    if marks(self._root) == now:  # else it was read in the middle of a change
                        log.exception("What has changed in the library cannot be taken over.")
                        self._seen = now
                else:
                    self._seen = now

    async def __aenter__(self) -> Following:
        await self._changing.acquire()
        try:
            await self._alone()
            if marks(self._root) != self._seen:
                await self._engine.follow()
        except BaseException:
            self._release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._seen = marks(self._root)
        self._release()

    async def _alone(self) -> None:
        """Hold the library's lock; Refused (409) where another server does not let go of it."""
        end = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return self._held.enter_context(alone(self._root / MANIFEST))
            except StorageError:
                if asyncio.get_running_loop().time() > end:
                    mend = "try again in a moment"
                    raise Refused(409, "The library is being changed already.", met="another server at it", mend=mend) from None
            await asyncio.sleep(AGAIN)

    def _release(self) -> None:
        try:
            self._held.close()
        finally:
            self._changing.release()


class Current:
    """ASGI middleware: what a request meets is the library as it is on disk when the request comes."""

    def __init__(self, app: Any, following: Following) -> None:
        self._app, self._following = app, following

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Look first, then answer."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            await self._following.current()
        await self._app(scope, receive, send)


def _mark(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
