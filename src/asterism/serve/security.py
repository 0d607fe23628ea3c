"""Who may ask: bearer keys, compared in constant time, and a browser's password for pages."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from asterism.core.errors import SettingsError, StorageError
from asterism.serve.errors import Refused

VARIABLE = "ASTERISM_API_KEYS"
OPEN = ("/health", "/ready", "/metrics")
"""What probes and Prometheus ask without a key; it tells nothing of any question."""
SHORTEST = 8


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Keys from a file (one a line, # begins a remark) and from ASTERISM_API_KEYS (commas between them); none where neither is given.

    Raises StorageError for a file that cannot be read, SettingsError for one without keys, or a key shorter than 8 characters.
    """
    found = [key.strip() for key in os.environ.get(VARIABLE, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError("The file of keys cannot be read.", met=f"{file}: {error}", mend="one key a line, UTF-8") from None
        own = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not own:
            raise SettingsError("The file of keys holds none.", met=file, mend="one key a line")
        found += own
    keys = tuple(dict.fromkeys(key for key in found if key))
    short = [key for key in keys if len(key) < SHORTEST or not (key.isascii() and key.isprintable())]
    if short:
        raise SettingsError("A key is too weak.", met=f"one of {len(short[0])} characters", mend=f"{SHORTEST} or more printable ASCII ones")
    return keys


class Keys:
    """ASGI middleware: every path but those of probes needs a key; without keys nothing does."""

    def __init__(self, app: Callable[..., Awaitable[None]], keys: Iterable[str], refuse: Callable[..., Awaitable[None]]) -> None:
        """`refuse(error, scope, receive, send)` answers in the API's own shape."""
        self._app, self._refuse = app, refuse
        self._digests = tuple(_digest(key) for key in keys)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let in whoever knows a key."""
        if scope["type"] not in ("http", "websocket") or not self._digests or scope["path"] in OPEN:
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        if self.knows(given):
            return await self._app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        mend = "send the header `Authorization: Bearer KEY`"
        error = Refused(
            401, "A key is needed." if not given else "The key is not known.", met="no key" if not given else "another key", mend=mend
        )
        browser = not scope["path"].startswith("/v1/")
        await self._refuse(error, scope, receive, send, {"WWW-Authenticate": f'{"Basic" if browser else "Bearer"} realm="asterism"'})

    def knows(self, header: str) -> bool:
        """Whether a header brings a key: every key is compared whole, whatever was found before."""
        digest, found = _digest(_key(header)), False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


def _key(header: str) -> str:
    """The key of `Bearer KEY`, or the password of `Basic ...`, as browsers send it for the playground."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return value.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
