"""One file written from a place onwards, in large aligned blocks that bypass the page cache where the system can (O_DIRECT).

What a merge writes nobody reads again soon. Through the page cache it costs the processor more than most merges' arithmetic.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

ALIGNED = 1 << 12
"""Addresses, places and lengths of direct writes are multiples of this."""
HELD = 1 << 24
"""Bytes gathered before they are written."""


class Stream:
    """Bytes appended from `start` on to a file that has its full size already."""

    def __init__(self, path: Path, start: int) -> None:
        self._plain = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._direct = _direct(path)
        self._memory = mmap.mmap(-1, HELD)  # aligned, as heap memory need not be
        self._held = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._at = start - start % ALIGNED
        self._filled = start % ALIGNED
        if self._filled:  # the block that we begin in holds something already
            self._plain.seek(self._at)
            self._memory[: self._filled] = self._plain.read(self._filled)

    @property
    def place(self) -> int:
        """Where the next byte goes."""
        return self._at + self._filled

    @property
    def handed(self) -> int:
        """Up to where bytes were given to the system; `sync` makes them last."""
        return self._at

    def write(self, data: Tensor) -> None:
        """Append a vector of bytes (uint8)."""
        while len(data):
            part = data[: HELD - self._filled]
            self._held[self._filled : self._filled + len(part)].copy_(part)
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == HELD:
                self._give(HELD)

    def sync(self) -> None:
        """What was handed over is on the disk."""
        os.fsync(self._plain.fileno())

    def close(self) -> None:
        """Hand over all that is left, make it last, and close."""
        try:
            self._give(self._filled - self._filled % ALIGNED)
            if self._filled:
                self._plain.seek(self._at)
                self._plain.write(memoryview(self._memory)[: self._filled])
            self.sync()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close without handing over what is left."""
        self._plain.close()
        if self._direct is not None:
            with suppress(OSError):
                os.close(self._direct)
            self._direct = None

    def _give(self, count: int) -> None:
        """Write the first `count` bytes held, and move the rest to the front."""
        done = 0
        while done < count:
            part = memoryview(self._memory)[done:count]
            if self._direct is not None:
                done += os.pwrite(self._direct, part, self._at + done)
            else:
                self._plain.seek(self._at + done)
                done += self._plain.write(part)
        rest = self._filled - count
        if rest and count:
            self._held[:rest] = self._held[count : self._filled].clone()
        self._at, self._filled = self._at + count, rest


def _direct(path: Path) -> int | None:
    """The file for direct writes; None where system or file system knows none."""
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return None
