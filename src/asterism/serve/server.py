"""The process: a port taken before anything is loaded, and an end that lets answers finish."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from asterism.core.errors import AsterismError, SettingsError, UnsupportedError
from asterism.serve.asking import Asking
from asterism.serve.errors import Away

BACKLOG = 2048
IDLE = 75
"""Seconds that a connection without requests is kept: longer than clients keep theirs, so that none is closed under a request."""
LAST = 5
"""Seconds that connections have to close once the answers have ended."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there already, so that a second server is told at once. SettingsError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name != "nt":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(BACKLOG)
    except OSError as error:
        found.close()
        taken = error.errno == errno.EADDRINUSE
        wrong = "The port is taken: another server listens there." if taken else "The server cannot listen there."
        mend = "stop that one, or choose another --port (0 takes a free one)" if taken else "choose another --host or --port"
        raise SettingsError(wrong, met=f"{host}:{port} ({error.strerror or error})", mend=mend) from None
    return found


def address_of(listener: socket.socket) -> str:
    """`http://HOST:PORT` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_open(host: str, *, keys: Sequence[str], allow_changes: bool) -> None:
    """UnsupportedError for a server that anybody on the network could change."""
    if allow_changes and not keys and host not in ("127.0.0.1", "::1", "localhost"):
        mend = "give --api-keys FILE, or listen at 127.0.0.1"
        raise UnsupportedError("Everybody on the network could change the library.", met=f"--allow-changes at {host}, no keys", mend=mend)


class Server(uvicorn.Server):
    """On the first signal to stop, new questions get 503 while answers under way finish; the second one ends it at once."""

    def __init__(self, app: FastAPI, *, drain_s: float, ready: Callable[[], None] | None = None) -> None:
        """`drain_s`: seconds that answers under way have to finish; `ready` is called once the engine has started."""
        given: dict[str, Any] = dict(lifespan="on", log_level="warning", access_log=False, server_header=False)
        config = uvicorn.Config(app, timeout_keep_alive=IDLE, timeout_graceful_shutdown=LAST, **given)
        super().__init__(config)
        self._asking: Asking = app.state.asking
        self._ready, app.state.started = ready, self.started_with
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None
        """Why the engine could not be started, if it could not."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Note the loop that signals must reach."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop."""
        if self._draining is None and self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop)
        else:
            self.should_exit = self.force_exit = True

    def stop(self) -> None:
        """Take no more questions, and end once those there are have been answered."""
        if self._draining is None:
            self._asking.away = Away("The server is stopping.", "it was told to stop", after=5)
            self._draining = asyncio.create_task(self._drain())

    def started_with(self, failure: Exception | None) -> None:
        """The engine has started, or could not be."""
        if failure is not None:
            self.failure, self.should_exit = failure, True
        elif self._ready is not None:
            self._ready()

    async def _drain(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._answered(), self._drain_s)
        await self._asking.engine.drain(0)
        self.should_exit = True

    async def _answered(self) -> None:
        while self._asking.gate.inside:
            await asyncio.sleep(0.02)


def serve(app: FastAPI, listener: socket.socket, *, drain_s: float, ready: Callable[[], None] | None = None) -> None:
    """Serve until told to stop. Raises what kept the engine from starting."""
    server = Server(app, drain_s=drain_s, ready=ready)
    server.run([listener])
    if isinstance(server.failure, AsterismError):
        raise server.failure
    if server.failure is not None:
        met = f"{type(server.failure).__name__}: {server.failure}"[:200]
        raise UnsupportedError("The engine could not be started.", met=met, mend="see what it logged") from server.failure
