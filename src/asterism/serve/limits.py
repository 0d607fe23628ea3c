"""How much is let in: so many answers at a time, and bodies of so many bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from math import ceil
from statistics import median
from typing import Any

from asterism.serve.errors import Busy, Refused

LATE = 60
"""Seconds after which at most a client is told to come again."""


class Gate:
    """Counts the answers that run or wait."""

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0
        self._took: deque[float] = deque([1.0], maxlen=32)

    @property
    def inside(self) -> int:
        """Answers let in and not yet ended."""
        return self._inside

    def enter(self, answers: int) -> None:
        """Take places; Busy where there are too few, Refused where there never are so many."""
        if answers > self._most:
            mend = f"at most {self._most} at a time"
            raise Refused(400, "A request asks for more answers than the server holds.", met=f"{answers} answers", mend=mend)
        if self._inside + answers > self._most:
            after = min(LATE, max(1, ceil(median(self._took))))
            raise Busy(f"{self._inside} answers under way, of at most {self._most}", after)
        self._inside += answers

    def leave(self, answers: int, seconds: float) -> None:
        """Give places back; `seconds` is what the answers took, from which later clients are told when to come again."""
        self._inside -= answers
        self._took.append(seconds)


class BodyLimit:
    """ASGI middleware: a body longer than `most` bytes is refused as soon as that is known, by its header or while it comes in."""

    def __init__(self, app: Callable[..., Awaitable[None]], most: int, refuse: Callable[..., Awaitable[None]]) -> None:
        """`refuse(error, scope, receive, send)` answers in the API's own shape."""
        self._app, self._most, self._refuse = app, most, refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Count what comes in."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._told(scope) > self._most:
            return await self._refuse(self._error(), scope, receive, send)
        read, begun = 0, False

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise _TooLong
            return message

        async def noted(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except _TooLong:
            if begun:
                raise
            await self._refuse(self._error(), scope, receive, send)

    def _told(self, scope: Any) -> int:
        told = dict(scope["headers"]).get(b"content-length", b"0")
        return int(told) if told.isdigit() else 0

    def _error(self) -> Refused:
        mend = "send less; --body-bytes sets the limit"
        return Refused(413, "The body is too long.", met=f"more than {self._most} bytes", mend=mend)


class _TooLong(BaseException):
    """More came in than may; a BaseException, so that no handler on the way takes it for a fault of the body."""
