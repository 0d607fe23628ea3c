"""Materialised tails: the composed matrices of the compositions that were used last, within so many bytes."""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asterism.compose.composer import write
from asterism.compose.plan import Terms
from asterism.models.anatomy import Anatomy
from asterism.models.changes import Dense
from asterism.serve.local.bound import Bound


@dataclass
class TailStats:
    """Counters of a cache of tails."""

    hits: int = 0
    misses: int = 0
    seconds: list[float] = field(default_factory=list)
    """What each composing took; whoever reads them may empty the list."""


class Tail(Mapping[str, Tensor]):
    """Composed matrices by parameter. What was allocated for it serves the next tail when nobody holds this one any more."""

    def __init__(self, matrices: dict[str, Tensor], nbytes: int) -> None:
        self._matrices, self.nbytes = matrices, nbytes

    def __getitem__(self, name: str) -> Tensor:
        return self._matrices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._matrices)

    def __len__(self) -> int:
        return len(self._matrices)


class Tails:
    """The tails used last, by binding; the one used longest ago goes first when they outgrow `limit` bytes."""

    def __init__(self, anatomy: Anatomy, originals: Mapping[str, Tensor], limit: int) -> None:
        """`originals`: the generalist's parameters, which are read and never written."""
        self.stats, self.limit = TailStats(), limit
        self._axes, self._originals = anatomy.output_axes, originals
        self._held: OrderedDict[Bound, Tail] = OrderedDict()
        self._spare: dict[str, list[Tensor]] = {}

    def __contains__(self, bound: Bound | None) -> bool:
        return bound in self._held

    @property
    def nbytes(self) -> int:
        """Bytes of the tails that are kept, what they share with specialists left out."""
        return sum(tail.nbytes for tail in self._held.values())

    def size(self, bound: Bound) -> int:
        """Bytes that materialising a composition takes."""
        return sum(self._originals[name].nbytes for name, terms in bound.terms.items() if _composed(terms, self._originals[name]))

    def take(self, bound: Bound) -> Tail:
        """The tail of a composition, from the cache or made now."""
        if bound in self._held:
            self.stats.hits += 1
            self._held.move_to_end(bound)
            return self._held[bound]
        self.stats.misses += 1
        size = self.size(bound)
        while self._held and self.nbytes + size > self.limit:
            self._held.popitem(last=False)
        start = time.perf_counter()
        tail = self._made(bound, size)
        self.stats.seconds.append(time.perf_counter() - start)
        if size <= self.limit:
            self._held[bound] = tail
        return tail

    def drop(self, specialist: str) -> None:
        """Keep no tail that one specialist is part of."""
        for bound in [bound for bound in self._held if specialist in bound.specialists]:
            del self._held[bound]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _made(self, bound: Bound, size: int) -> Tail:
        matrices, own = {}, {}
        for name, terms in bound.terms.items():
            original = self._originals[name]
            if original.ndim != 2:
                continue
            if not _composed(terms, original):
                change = terms.parts[0].change
                assert isinstance(change, Dense)
                matrices[name] = change.tensor
                continue
            spare = self._spare.get(name)
            out = own[name] = spare.pop() if spare else torch.empty_like(original)
            write(out, terms, lambda original=original: original, self._axes[name])
            matrices[name] = out
        tail = Tail(matrices, size)
        weakref.finalize(tail, self._give_back, own)
        return tail

    def _give_back(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            kept = self._spare.setdefault(name, [])
            if not kept:
                kept.append(tensor)


def _composed(terms: Terms, original: Tensor) -> bool:
    """Whether a matrix has to be built: a specialist alone is its own tensor. Vectors are composed elsewhere."""
    if original.ndim != 2:
        return False
    alone = isinstance(terms.base, float) and terms.base == 0 and len(terms.parts) == 1
    return not (alone and isinstance(terms.parts[0].change, Dense) and bool((terms.parts[0].weights == 1).all()))
