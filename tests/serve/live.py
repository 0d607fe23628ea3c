"""A server of this process, on a port of its own: what only a real connection shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from asterism.serve.app import create_app
from asterism.serve.asking import Asking
from asterism.serve.server import Server, address_of, listening
from asterism.serve.settings import ServeSettings


@dataclass
class Live:
    """A running server."""

    url: str
    asking: Asking
    server: Server
    client: httpx.Client

    @property
    def engine(self) -> Any:
        return self.asking.engine

    def until(self, true: Any, seconds: float = 5.0) -> None:
        """Wait for a condition that the server's thread brings about."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.005)


@contextmanager
def live(engine: Any, served: Any, settings: ServeSettings | None = None, keys: Sequence[str] = ()) -> Iterator[Live]:
    """Serve `engine` in a thread while the block runs."""
    app, listener = create_app(engine, served, settings, keys=keys), listening("127.0.0.1", 0)
    url, server = address_of(listener), Server(app, drain_s=(settings or ServeSettings()).drain_s)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        with httpx.Client(base_url=url) as client:
            found = Live(url, app.state.asking, server, client)
            found.until(lambda: client.get("/ready").status_code == 200)
            yield found
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
