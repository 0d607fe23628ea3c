"""What is known of prompts that were read: the generalist's states and keys, so that what a composition leaves as it is runs once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from asterism.serve.local.cache import Places

Tokens = tuple[int, ...]


@dataclass(eq=False)
class Trunk:
    """The generalist's reading of one prompt of T tokens."""

    fingerprint: Tensor
    """[d] float32 on the CPU."""
    loss: float | None = None
    """Mean loss in nats a token; None where it was not asked for."""
    losses: dict[str, float] = field(default_factory=dict)
    """The same under specialists that read it."""
    states: Sequence[Tensor] = ()
    """[T, d] after each of the lowest blocks."""
    keys: Sequence[tuple[Tensor, Tensor]] = ()
    """Keys and values [heads, T, dim] of those blocks."""

    @property
    def depth(self) -> int:
        """Blocks that need not run again."""
        return len(self.states)

    @property
    def nbytes(self) -> int:
        """Bytes of its states and keys."""
        return sum(state.nbytes for state in self.states) + sum(key.nbytes + value.nbytes for key, value in self.keys)

    def fill(self, places: Places, row: int, depth: int) -> None:
        """Write the keys and values of the lowest `depth` blocks."""
        for layer, (keys, values) in enumerate(self.keys[:depth]):
            places.fill(layer, row, keys, values)


class Trunks:
    """The trunks of the prompts read last, within so many bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.nbytes = limit, 0
        self._held: OrderedDict[Tokens, Trunk] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, tokens: Tokens) -> Trunk | None:
        """What is known of a prompt."""
        if tokens in self._held:
            self._held.move_to_end(tokens)
        return self._held.get(tokens)

    def put(self, tokens: Tokens, trunk: Trunk) -> None:
        """Keep one; those used longest ago go."""
        self._drop(tokens)
        if trunk.nbytes > self.limit:
            return
        self._held[tokens] = trunk
        self.nbytes += trunk.nbytes
        while self.nbytes > self.limit:
            self._drop(next(iter(self._held)))

    def forget(self, specialist: str) -> None:
        """A specialist has come or gone: what it made of prompts is no longer known."""
        for trunk in self._held.values():
            trunk.losses.pop(specialist, None)

    def _drop(self, tokens: Tokens) -> None:
        if (trunk := self._held.pop(tokens, None)) is not None:
            self.nbytes -= trunk.nbytes
