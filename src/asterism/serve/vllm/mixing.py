"""What every token of a step runs under: which tensors take part, on which tokens, with which weights. Plain torch.

The engine's tensors are a batch of tokens laid end to end. Slot 0 is the generalist, the others are specialists; a module's output is
the sum over slots of coefficient times product, accumulated in float32 for half types. Coefficients lie in buffers that are
never moved, refreshed at every step, so that captured graphs read them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from asterism.compose.plan import Plan
from asterism.core.errors import UnknownName
from asterism.models.anatomy import Anatomy
from asterism.models.changes import Dense, LowRank
from asterism.serve.jobs import Composition
from asterism.serve.vllm.cuts import Cut
from asterism.serve.vllm.payload import is_even

WHOLE, THIN = Dense(torch.empty(0)), LowRank(torch.empty(0, 0), torch.empty(0, 0))
"""What a specialist changes in a parameter, without the tensors: all that its coefficients depend on."""


class Pass(NamedTuple):
    """One product of a step."""

    slot: int
    rows: Tensor | None
    """Tokens that take part; None: all."""
    weights: Tensor | None
    """[tokens that take part, 1 or out]; None: 1."""


@dataclass(frozen=True)
class Layout:
    """Whose tokens a step holds: a composition's key (None: the generalist) for every request, and how many tokens each has."""

    keys: tuple[str | None, ...]
    counts: tuple[int, ...]


@dataclass(eq=False)
class Bank:
    """Coefficients of all parameters that are composed alike: the same block, changed by the same specialists in the same way."""

    parameter: str
    """One of the library's parameters among them."""
    kinds: Mapping[int, Dense | LowRank]
    """Slot -> WHOLE or THIN."""
    buffer: Tensor
    """[most tokens, slots] coefficients of the step's tokens."""
    cut: Cut | None = None
    """Of the one parameter that it speaks for, where weights differ by node; None: a bank of even weights."""
    sizes: tuple[int, ...] = ()
    """Outputs of the cut's parts."""
    known: dict[str | None, Tensor] = field(default_factory=dict)
    """Composition -> [slots, 1 or out]."""
    layout: Layout | None = None
    passes: tuple[Pass, ...] = (Pass(0, None, None),)

    @property
    def slots(self) -> int:
        """Generalist and specialists."""
        return self.buffer.shape[1]

    def lay(self, layout: Layout) -> None:
        """Make passes and buffer for a step; nothing where it is laid out like the last."""
        if layout == self.layout:
            return
        rows = torch.stack([self.known[key] for key in layout.keys])  # [requests, slots, 1 or out]
        self.passes, self.layout = passes_of(rows, torch.tensor(layout.counts), self.buffer), layout

    def rest(self) -> None:
        """The generalist alone, for runs without requests."""
        self.passes, self.layout = (Pass(0, None, None),), None
        self.buffer.zero_()
        self.buffer[:, 0] = 1


def passes_of(rows: Tensor, counts: Tensor, buffer: Tensor) -> tuple[Pass, ...]:
    """A step's products from its requests' coefficients [requests, slots, 1 or out] and tokens [requests]; even ones also fill `buffer`."""
    even = rows.shape[2] == 1
    spread = rows.repeat_interleave(counts, dim=0)  # [tokens, slots, 1 or out]
    if even and len(spread) <= len(buffer):
        buffer[: len(spread)].copy_(spread[..., 0])
    found = []
    there, ones = (spread != 0).any(dim=2), (spread == 1).all(dim=2)  # [tokens, slots]
    for slot in there.any(dim=0).nonzero()[:, 0].tolist():
        own = there[:, slot]
        if bool(own.all()):
            weights = None if bool(ones[:, slot].all()) else spread[:, slot]
            found.append(Pass(slot, None, None if weights is None else weights.to(buffer.device)))
        else:
            places = own.nonzero()[:, 0]
            weights = None if bool(ones[places, slot].all()) else spread[places, slot].to(buffer.device)
            found.append(Pass(slot, places.to(buffer.device), weights))
    found.sort(key=lambda one: one.rows is not None)  # whole batches first: they need no zeros to be added to
    return tuple(found)


Product = Callable[[Tensor], Tensor]


def summed(x: Tensor, passes: Sequence[Pass], products: Mapping[int, Product], tokens: int | None = None) -> Tensor:
    """sum over passes of weights * product(x), x [tokens or more, ...]; what lies beyond `tokens` is padding and gets zeros.

    In x's products' dtype; float32 inside where that is a half type and there is anything to add.
    """
    if len(passes) == 1 and passes[0].rows is None and passes[0].weights is None:
        return products[passes[0].slot](x)
    given = x if tokens is None or tokens >= x.shape[0] else x[:tokens]
    total, dtype = None, None
    for slot, rows, weights in passes:
        y = products[slot](given if rows is None else given.index_select(0, rows))
        dtype = y.dtype
        y = y.float() if dtype.itemsize < 4 else y
        if rows is not None:
            y = y if weights is None else y * weights
            total = (y.new_zeros(given.shape[0], y.shape[-1]) if total is None else total).index_add_(0, rows, y)
        elif total is None:
            total = y if weights is None else y * weights
        else:
            total = total.add_(y) if weights is None else total.addcmul_(y, weights)
    assert total is not None
    assert dtype is not None
    total = total.to(dtype)
    return total if given is x else torch.cat([total, total.new_zeros(x.shape[0] - len(total), total.shape[1])])


def summed_whole(x: Tensor, coefficients: Tensor, products: Mapping[int, Product]) -> Tensor:
    """The same with every slot on every token, which a captured graph can replay: coefficients [tokens, slots]."""
    total, dtype = None, None
    for slot, product in products.items():
        y = product(x)
        dtype = y.dtype
        weights = coefficients[: x.shape[0], slot : slot + 1]
        total = y.float() * weights if total is None else total.addcmul_(y.float(), weights)
    assert total is not None
    assert dtype is not None
    return total.to(dtype)


class Coefficients:
    """From compositions to the coefficients of every bank, kept as long as a request runs under them."""

    def __init__(self, anatomy: Anatomy, most_tokens: int, device: torch.device) -> None:
        self.anatomy, self.most_tokens, self.device = anatomy, most_tokens, device
        self.places: dict[str, int] = {}
        """Specialist -> slot."""
        self.banks: dict[tuple, Bank] = {}
        self.live: dict[str, Composition] = {}
        self._uses: dict[str, int] = {}
        self._plans: dict[str, Plan] = {}

    @property
    def slots(self) -> int:
        """Slots of all buffers: the generalist's and one for each specialist there ever was."""
        return 1 + max(self.places.values(), default=0)

    def bank(self, parts: Sequence[str], kinds: Mapping[str, Dense | LowRank], cut: Cut) -> Sequence[Bank]:
        """(bank of even weights, bank of weights that differ by node) of an engine's parameter made of `parts`, changed by `kinds`."""
        own = {self.places[name]: kind for name, kind in kinds.items()}
        pattern = tuple(sorted((slot, kind is WHOLE) for slot, kind in own.items()))
        sizes = tuple(self.anatomy.output_size(part) for part in parts)
        return [
            self._kept((self.anatomy.block_of(parts[0]), pattern), lambda: Bank(parts[0], own, self._buffer())),
            self._kept((tuple(parts), pattern), lambda: Bank(parts[0], own, self._buffer(), cut, sizes)),
        ]

    def take(self, key: str, composition: Composition) -> None:
        """A request runs under a composition from now on. UnknownName for a specialist that has no slot."""
        for name in composition.mixture.specialists:
            if name not in self.places:
                raise UnknownName("specialist", name, self.places)
        self.live.setdefault(key, composition)
        self._uses[key] = self._uses.get(key, 0) + 1

    def let_go(self, key: str) -> None:
        """A request has ended."""
        self._uses[key] -= 1
        if not self._uses[key]:
            del self._uses[key], self.live[key]
            self._plans.pop(key, None)
            for bank in self.banks.values():
                bank.known.pop(key, None)

    def uses(self, specialist: str) -> bool:
        """Whether any request runs with it."""
        return any(specialist in composition.mixture.specialists for composition in self.live.values())

    def lay(self, keys: Sequence[str | None], counts: Sequence[int]) -> bool:
        """Make every bank ready for a step; whether all its weights are even."""
        layout = Layout(tuple(keys), tuple(counts))
        even = all(is_even(self.live[key]) for key in set(layout.keys) if key is not None)
        for bank in self.banks.values():
            if (bank.cut is None) == even and layout != bank.layout:
                for key in set(layout.keys):
                    if key not in bank.known:
                        bank.known[key] = self._row(bank, key)
                bank.lay(layout)
        return even

    def rest(self) -> None:
        """The generalist alone."""
        for bank in self.banks.values():
            bank.rest()

    def forget_layouts(self) -> None:
        """After a change of specialists: buffers are made anew, coefficients found again."""
        for bank in self.banks.values():
            bank.buffer, bank.layout = self._buffer(), None
            bank.known.clear()

    def _kept(self, key: tuple, make: Callable[[], Bank]) -> Bank:
        if key not in self.banks:
            self.banks[key] = make()
            self.banks[key].rest()
        return self.banks[key]

    def _buffer(self) -> Tensor:
        return torch.zeros(self.most_tokens, self.slots, dtype=torch.float32, device=self.device)

    def _row(self, bank: Bank, key: str | None) -> Tensor:
        """[slots, 1 or out] of one composition in a bank."""
        width = 1 if bank.cut is None else len(bank.cut.rows)
        row = torch.zeros(bank.slots, width)
        if key is None or bank.parameter not in self._plan(key).parameters:
            row[0] = 1
            return row
        parts = (bank.parameter,) if bank.cut is None else bank.cut.parts
        sizes = (1,) if bank.cut is None else bank.sizes
        bases: list[Tensor] = []
        weights: dict[int, list[Tensor]] = {slot: [] for slot in bank.kinds}
        for part in parts:
            terms = self._plan(key).terms(part, lambda name, _: bank.kinds.get(self.places[name]))
            base = 1.0 if terms is None else terms.base
            bases.append(base[0] if isinstance(base, Tensor) else torch.full((1,), base))
            own = {} if terms is None else {self.places[each.specialist]: each.weights[0] for each in terms.parts}
            for slot, found in weights.items():
                found.append(own.get(slot, torch.zeros(1)))
        spread = (lambda each: each[0]) if bank.cut is None else (lambda each: bank.cut.spread(each, sizes))  # pyright: ignore
        row[0] = spread(bases)
        for slot, each in weights.items():
            row[slot] = spread(each)
        return row

    def _plan(self, key: str) -> Plan:
        if key not in self._plans:
            made = self.live[key]
            self._plans[key] = Plan(self.anatomy, [made.mixture], made.settings, torch.empty(0))
        return self._plans[key]
