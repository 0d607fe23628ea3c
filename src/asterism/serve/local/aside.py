"""Long work in pieces: it runs on a thread of its own, and stands still wherever it is about to use the model until it is its turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import torch


class Abandoned(BaseException):
    """Nobody waits for the work any more."""


class Aside:
    """`work(pause)` calls `pause` before each use of the model. Between two pauses it alone runs: the engine's thread waits for it."""

    def __init__(self, work: Callable[[Callable[[], None]], Any], tell: Callable[[Any], None]) -> None:
        """`tell`, on the engine's thread, gets what the work returns, or the exception that ended it."""
        self._work, self._tell = work, tell
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._found: Any = None
        self._ended = self._abandoned = False
        self._thread = threading.Thread(target=copy_context().run, args=(self._live,), name="asterism-aside", daemon=True)

    def step(self) -> bool:
        """Let it run to its next pause; whether it has ended."""
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._stands.acquire()
        if self._ended:
            self._tell(self._found)
        return self._ended

    def abandon(self, error: Exception) -> None:
        """End it where it stands, and tell why."""
        self._abandoned = True
        if self._thread.ident is None:
            self._tell(error)
            return
        self._found = error
        self.step()

    def _pause(self) -> None:
        self._stands.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._abandoned:
            raise Abandoned

    @torch.inference_mode()
    def _live(self) -> None:
        try:
            self._wait()
            self._found = self._work(self._pause)
        except Exception as error:  # told to whoever asked
            self._found = error
        except Abandoned:
            pass
        self._ended = True
        self._stands.release()
