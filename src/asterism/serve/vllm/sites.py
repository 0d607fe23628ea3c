"""Places of the engine's model where mixtures act: a matrix, an embedding, a head, a vector. Plain torch: products are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.core.errors import UnsupportedError
from asterism.models.changes import Dense, LowRank, applied
from asterism.serve.vllm.cuts import Cut
from asterism.serve.vllm.mixing import THIN, WHOLE, Bank, Coefficients, Pass, Product, passes_of, summed, summed_whole


@dataclass(eq=False)
class Parameter:
    """One of the engine's parameters, and what each specialist has in its place."""

    cut: Cut
    tails: dict[int, Tensor | LowRank] = field(default_factory=dict)
    """Slot -> its own tensor, or what is added to the generalist's in low rank."""
    banks: tuple[Bank, ...] = ()
    """Of even weights, of weights that differ by node."""

    def bound(self, coefficients: Coefficients) -> None:
        """Find the banks anew, after tails came or went."""
        names = {slot: name for name, slot in coefficients.places.items()}
        kinds: dict[str, Dense | LowRank] = {
            names[slot]: WHOLE if isinstance(tail, Tensor) else THIN for slot, tail in self.tails.items() if slot in names
        }
        self.banks = tuple(coefficients.bank(self.cut.parts, kinds, self.cut))


@dataclass(eq=False)
class Step:
    """How the step that runs now is laid out; shared by all places."""

    even: bool = True
    tokens: int | None = None
    """None: a run without requests."""
    requests: int = 0

    def bank(self, parameter: Parameter) -> Bank:
        """The bank that speaks for a parameter in this step."""
        return parameter.banks[0 if self.even else 1]


def resting(passes: tuple[Pass, ...]) -> bool:
    """Whether all tokens run under the generalist."""
    return len(passes) == 1 and passes[0].slot == 0 and passes[0].weights is None and passes[0].rows is None


def capturing(x: Tensor) -> bool:
    """Whether a graph is being captured, which nothing may change from step to step."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


@dataclass(eq=False)
class Vectors:
    """A bias or a norm's weight: one row a slot, and each token's own sum of them."""

    parameter: Parameter
    step: Step
    own: Tensor
    """[n] the generalist's."""
    table: Tensor = field(init=False)
    """[slots, n] float32."""

    def made(self, slots: int) -> None:
        """Fill the table, after tails came or went."""
        self.table = torch.zeros(slots, len(self.own), dtype=torch.float32, device=self.own.device)
        self.table[0] = self.own.float()
        for slot, tail in self.parameter.tails.items():
            assert isinstance(tail, Tensor), "a low-rank change belongs to a matrix"
            self.table[slot] = tail.float()

    def idle(self, x: Tensor) -> bool:
        """Whether every token of x has the generalist's own."""
        return not capturing(x) and resting(self.step.bank(self.parameter).passes)

    def at(self, x: Tensor) -> Tensor | None:
        """[tokens, n] float32, or [1, n] where all are the same; None: the generalist's own everywhere. For the tokens of x."""
        bank = self.step.bank(self.parameter)
        if capturing(x):
            return bank.buffer[: x.shape[0]] @ self.table
        if self.idle(x):
            return None
        if len(bank.passes) == 1 and bank.passes[0].rows is None and bank.passes[0].weights is None:
            return self.table[bank.passes[0].slot][None]
        if self.step.even:
            return bank.buffer[: x.shape[0]] @ self.table
        products: dict[int, Product] = {each.slot: lambda y, slot=each.slot: self.table[slot].expand(len(y), -1) for each in bank.passes}
        return summed(x.new_empty(x.shape[0], 0, dtype=torch.float32), bank.passes, products, self.step.tokens)


@dataclass(eq=False)
class Matrix:
    """A matrix that tokens meet."""

    parameter: Parameter
    step: Step
    own: Callable[[Tensor, Tensor | None], Tensor]
    """(inputs, bias) -> the generalist's outputs."""
    make: Callable[[Tensor], Product]
    """A specialist's tensor -> its product, without a bias."""
    bias: Vectors | None = None
    """Where specialists change the bias too."""
    products: dict[int, Product] = field(default_factory=dict)

    def made(self) -> None:
        """Find the products anew, after tails came or went; those that stay are kept."""
        former, tails = self.products, self.parameter.tails
        self.products = {0: former.get(0) or (lambda x: self.own(x, None))}
        for slot, tail in tails.items():
            self.products[slot] = former[slot] if slot in former else thin(tail) if isinstance(tail, LowRank) else self.make(tail)

    def run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The outputs of the step's tokens; `bias` is the generalist's, or None where this worker adds none."""
        bank = self.step.bank(self.parameter)
        if capturing(x):
            return self._biased(summed_whole(x, bank.buffer, self.products), x, bias)
        if resting(bank.passes) and (self.bias is None or resting(self.step.bank(self.bias.parameter).passes)):
            return self.own(x, bias)
        return self._biased(summed(x, bank.passes, self.products, self.step.tokens), x, bias)

    def _biased(self, y: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if bias is None:
            return y
        own = None if self.bias is None else self.bias.at(x)
        return y + (bias if own is None else own).to(y.dtype)


@dataclass(eq=False)
class Head(Matrix):
    """The head, which meets one token of every request, or a row of one request's tokens where its prompt's log-probabilities are asked."""

    def run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The logits of the given tokens. UnsupportedError where it cannot be told whose they are."""
        bank = self.step.bank(self.parameter)
        if resting(bank.passes) or bank.layout is None:
            return self.own(x, bias)
        return self._biased_head(summed(x, self._passes(x, bank), self.products), bias)

    def _biased_head(self, y: Tensor, bias: Tensor | None) -> Tensor:
        return y if bias is None else y + bias.to(y.dtype)

    def _passes(self, x: Tensor, bank: Bank) -> tuple[Pass, ...]:
        assert bank.layout is not None
        keys, counts = bank.layout.keys, bank.layout.counts
        rows, nothing = torch.stack([bank.known[key] for key in keys]), bank.buffer[:0]
        part = x.untyped_storage().nbytes() > x.numel() * x.element_size()
        if x.shape[0] == len(keys) and not part:
            if len(set(keys)) == 1:
                rows = rows[:1]
                return passes_of(rows, torch.tensor([x.shape[0]]), nothing)
            return passes_of(rows, torch.ones(len(keys), dtype=torch.long), nothing)
        first = int(x.storage_offset()) // int(x.stride(0))
        if first + x.shape[0] > sum(counts):
            mend = "serve this model with the local engine"
            raise UnsupportedError("Whose tokens the head reads cannot be told.", met=f"{list(x.shape)} of {sum(counts)} tokens", mend=mend)
        own = rows.repeat_interleave(torch.tensor(counts), dim=0)[first : first + x.shape[0]]
        return passes_of(own, torch.ones(len(own), dtype=torch.long), nothing)


def thin(change: LowRank) -> Product:
    """x -> up (down x)."""
    return lambda x: F.linear(F.linear(x, change.down), change.up)


def looked_up(table: Tensor) -> Product:
    """ids -> rows of a table."""
    return lambda ids: F.embedding(ids, table)


def local_tail(cut: Cut, changes: Mapping[str, Dense | LowRank], generalist: Callable[[str], Tensor], axes: Mapping[str, int]):
    """What one specialist has in a parameter of the engine on this worker: a tensor, low-rank factors, or None where nothing changes.

    `changes` by the library's parameter. A parameter that is changed as a whole in any of its parts is held as a whole.
    """
    own = [changes.get(part) for part in cut.parts]
    if all(change is None for change in own):
        return None
    if not any(isinstance(change, Dense) for change in own):
        sizes = [generalist(part).shape[axes[part]] for part in cut.parts]
        return cut.low_rank([change if isinstance(change, LowRank) else None for change in own], sizes)

    return cut.taken([applied(generalist(part), change, axes[part]) for part, change in zip(cut.parts, own, strict=True)], _axes(cut, axes))


def _axes(cut: Cut, axes: Mapping[str, int]) -> list[int]:
    return [axes[part] for part in cut.parts]
