"""The rows that are answered now: they join when their prompt is read, step together, pause, and leave at any time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from asterism.serve.jobs import Composition, Event, Finished, Job
from asterism.serve.local.cache import Places, bucket
from asterism.serve.local.forward import Forward
from asterism.serve.local.sampling import Draw

FIRST_ROWS = 8
"""Rows that there is room for at first; it doubles."""
EVEN = 16
"""Positions looked at are a multiple of this: kernels like it."""


@dataclass(eq=False)
class Row:
    """One answer on its way."""

    job: Job
    tell: Callable[[Event], None]
    composition: Composition | None
    draw: Draw
    era: int = 0
    """Changes of the library that came before it: a name means the same to rows of one era."""
    tokens: list[int] = field(default_factory=list)
    """The answer so far."""
    length: int = 0
    """Positions whose keys and values are there; the last token of the answer is not among them."""
    cached: int = 0
    """Tokens of the prompt whose states were known."""
    over: bool = False
    """Whether its last event has been told."""
    asked: float = field(default_factory=time.perf_counter)
    begun: float | None = None
    answered: float | None = None
    """When the first token was there."""

    @classmethod
    def of(cls, job: Job, tell: Callable[[Event], None], composition: Composition | None, era: int, device: torch.device) -> Row:
        """A row whose answer has not begun; its logits will be on `device`."""
        return cls(job, tell, composition, Draw.of(job.sampling, device), era)

    @property
    def key(self) -> str | None:
        """Its composition's."""
        return None if self.composition is None else self.composition.key

    def begin(self) -> None:
        """Its prompt is being read."""
        self.begun = time.perf_counter()

    def add(self, token: int) -> None:
        """One more token of the answer."""
        if self.answered is None:
            self.answered = time.perf_counter()
        self.tokens.append(token)

    def finished(self, reason: Literal["stop", "length", "cancelled"]) -> Finished:
        """The last event, with what the answer took."""
        now = time.perf_counter()
        begun = now if self.begun is None else self.begun
        answered = now if self.answered is None else self.answered
        times = dict(queue_s=begun - self.asked, prefill_s=max(answered - begun, 0.0), decode_s=max(now - answered, 0.0))
        return Finished(reason, len(self.job.tokens), len(self.tokens), self.cached, **times)


class Running:
    """Rows in the order of their places: the active ones first, then those that wait for another mixture."""

    def __init__(self, forward: Forward, slots: int) -> None:
        self.forward, self.slots = forward, slots
        self.rows: list[Row] = []
        self.active = 0
        self._places: Places | None = None
        self._ids = torch.zeros(slots, 1, dtype=torch.long, device=forward.device)
        self._lengths = torch.zeros(slots, dtype=torch.long, device=forward.device)

    def join(self, row: Row, token: int, source: Places, index: int) -> None:
        """A row whose prompt is read: its keys and values lie in row `index` of `source`, and `token` is its first."""
        self._fit(len(self.rows) + 1, row.length + 1)
        assert self._places is not None
        place = len(self.rows)
        self._places.take_row(place, source, index, row.length)
        self._ids[place, 0], self._lengths[place] = token, row.length
        self.rows.append(row)
        self._swap(place, self.active)
        self.active += 1

    def pause(self, row: Row) -> None:
        """It takes part in no step until it is resumed."""
        self.active -= 1
        self._swap(self.rows.index(row), self.active)

    def resume(self, row: Row) -> None:
        """It takes part again."""
        self._swap(self.rows.index(row), self.active)
        self.active += 1

    def leave(self, row: Row) -> None:
        """Its place is free at once."""
        place = self.rows.index(row)
        if place < self.active:
            self.active -= 1
            self._swap(place, self.active)
            place = self.active
        self._swap(place, len(self.rows) - 1)
        self.rows.pop()
        if not self.rows:
            self._places = None

    def step(self) -> Tensor:
        """Logits [active, V] of the next token of every active row."""
        self._fit(len(self.rows), self._longest())
        return self._stepped(slice(0, self.active))

    def alone(self, row: Row) -> Tensor:
        """The same of one active row, [1, V]."""
        place = self.rows.index(row)
        return self._stepped(slice(place, place + 1))

    def advance(self, ids: Tensor) -> None:
        """The active rows' next tokens, [active]."""
        self._ids[: self.active, 0] = ids
        self._lengths[: self.active] += 1
        for row in self.rows[: self.active]:
            row.length += 1

    def _stepped(self, rows: slice) -> Tensor:
        assert self._places is not None
        compositions = [row.composition for row in self.rows[rows]]
        width = -(-self._longest() // EVEN) * EVEN
        return self.forward.step(self._places, rows, compositions, self._ids[rows], self._lengths[rows], width)

    def _longest(self) -> int:
        return max(row.length for row in self.rows[: self.active]) + 1

    def _fit(self, rows: int, length: int) -> None:
        """Make room for so many rows and positions, and give back what is far too long."""
        length = bucket(max(length, *(row.length for row in self.rows), 1))
        held = self._places
        if held is None:
            self._places = self.forward.places(min(max(FIRST_ROWS, rows), self.slots), length)
        elif rows > held.rows or length > held.length or 2 * length < held.length:
            count = held.rows if rows <= held.rows else min(max(2 * held.rows, rows), self.slots)
            self._places = held.grown(count, length, len(self.rows))

    def _swap(self, a: int, b: int) -> None:
        if a == b:
            return
        assert self._places is not None
        first, second = self.rows[a], self.rows[b]
        self._places.swap(a, b, max(first.length, second.length))
        self.rows[a], self.rows[b] = second, first
        for held in (self._ids, self._lengths):
            held[[a, b]] = held[[b, a]]


def distinct(rows: Sequence[Row]) -> int:
    """Different compositions among rows, the generalist left out."""
    return len({row.key for row in rows} - {None})
