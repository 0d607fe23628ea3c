"""Keys and values of the rows of a batch, written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

BUCKET = 256
"""Positions by which rooms for keys and values grow."""


class Places(Cache):
    """Keys and values [rows, heads, length, dim] a layer. Before each forward pass one of two calls says which rows and positions it fills.

    Positions that were not written hold zeros, so that what the mask hides is finite. A layer is allocated when it is first met.
    """

    def __init__(self, layers: int, rows: int, length: int) -> None:
        super().__init__(layers=[])
        self.rows, self.length = rows, length
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self._rows, self._width = slice(None), 0
        self._span: slice | None = None
        self._lengths: Tensor | None = None
        self._flat: dict[int, Tensor] = {}

    def chunk(self, start: int, stop: int) -> None:
        """The next pass fills positions start to stop of every row."""
        self._rows, self._width, self._span = slice(None), stop, slice(start, stop)

    def step(self, rows: slice, lengths: Tensor, width: int) -> None:
        """The next pass fills position lengths[b] of the b-th of `rows`, and sees `width` positions."""
        self._rows, self._width, self._span = rows, width, None
        self._lengths, self._flat = lengths, {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """[rows, heads, new, dim] -> all that these rows have, [rows, heads, width, dim]."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        if keys is None or values is None:
            keys = self.keys[layer_idx] = self._room(key_states)
            values = self.values[layer_idx] = self._room(value_states)
        if self._span is None:
            written = self._written(keys.shape[1])
            keys.view(-1, keys.shape[3]).index_copy_(0, written, key_states.reshape(-1, keys.shape[3]))
            values.view(-1, values.shape[3]).index_copy_(0, written, value_states.reshape(-1, values.shape[3]))
        else:
            keys[:, :, self._span] = key_states
            values[:, :, self._span] = value_states
        return keys[self._rows, :, : self._width], values[self._rows, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions that the next pass follows; callers give positions and masks of their own."""
        return 0

    def fill(self, layer: int, row: int, keys: Tensor, values: Tensor) -> None:
        """Write the first positions of a row, [heads, T, dim] each."""
        for held, given in ((self.keys, keys), (self.values, values)):
            room = held[layer]
            if room is None:
                room = held[layer] = given.new_zeros(self.rows, len(given), self.length, given.shape[2])
            room[row, :, : given.shape[1]] = given

    def taken(self, layer: int, row: int, length: int) -> tuple[Tensor, Tensor]:
        """The first positions of a row, [heads, T, dim] each."""
        keys, values = self.keys[layer], self.values[layer]
        assert keys is not None
        assert values is not None
        return keys[row, :, :length], values[row, :, :length]

    def take_row(self, row: int, other: Places, of: int, length: int) -> None:
        """Copy the first `length` positions of another room's row into a row of this one."""
        for layer in range(len(self.keys)):
            if other.keys[layer] is not None:
                self.fill(layer, row, *other.taken(layer, of, length))

    def swap(self, a: int, b: int, length: int) -> None:
        """Exchange the first `length` positions of two rows."""
        for room in (*self.keys, *self.values):
            if room is not None:
                kept = room[a, :, :length].clone()
                room[a, :, :length] = room[b, :, :length]
                room[b, :, :length] = kept

    def grown(self, rows: int, length: int, used: int) -> Places:
        """A room of another size with the first `used` rows of this one."""
        fresh = Places(len(self.keys), rows, length)
        for held, other in ((self.keys, fresh.keys), (self.values, fresh.values)):
            for layer, room in enumerate(held):
                if room is not None:
                    wider = other[layer] = room.new_zeros(rows, room.shape[1], length, room.shape[3])
                    kept = min(length, self.length)
                    wider[:used, :, :kept] = room[:used, :, :kept]
        return fresh

    def _written(self, heads: int) -> Tensor:
        """[rows * heads] places of the new positions among all."""
        if heads not in self._flat:
            assert self._lengths is not None
            first = (self._rows.start or 0) * heads
            every = torch.arange(first, first + len(self._lengths) * heads, device=self._lengths.device) * self.length
            self._flat[heads] = (every.view(-1, heads) + self._lengths[:, None]).flatten()
        return self._flat[heads]

    def _room(self, states: Tensor) -> Tensor:
        return states.new_zeros(self.rows, states.shape[1], self.length, states.shape[3])


def bucket(length: int) -> int:
    """The length of a room that holds so many positions."""
    return -(-length // BUCKET) * BUCKET
