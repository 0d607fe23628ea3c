"""What a module does about a batch whose rows run under different compositions.

A matrix becomes a list of passes: some rows, the matrix that they meet, and their weights on its outputs. A mixed composition passes
once through each of its specialists, a materialised one once through its own matrix, and rows that meet the same matrix pass together.
Vectors (biases, norms) are composed, one a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asterism.compose.mixed import Run, fitted, product_of, scaled_norm, swapped
from asterism.core.errors import MismatchError, UnsupportedError
from asterism.models.changes import Dense, LowRank
from asterism.models.types import Conv1D, PreTrainedModel
from asterism.serve.local.bound import Bound

Matrix = Tensor | LowRank
"""What rows meet: a matrix in its module's layout, or two factors whose product is to be added to the generalist's."""


@dataclass(frozen=True, eq=False)
class Live:
    """One distinct composition of a batch."""

    bound: Bound | None
    """None: the generalist."""
    rows: tuple[int, ...]
    tail: Mapping[str, Tensor] | None = None
    """Its composed matrices by parameter, where it is materialised."""


class Pass(NamedTuple):
    """Rows that meet one matrix."""

    rows: Tensor | None
    """[r] their places in the batch; None: all of it."""
    weights: Tensor | None
    """[r, 1, out], or [r, 1, 1] where every output has the same; None: 1."""
    matrix: Matrix


@dataclass(eq=False)
class State:
    """What each row of a batch runs under, and what each module does about it, found when the module first runs."""

    rows: int
    live: tuple[Live, ...]
    like: Tensor
    """A parameter of the model."""
    runs: dict[int, Run] = field(default_factory=dict)
    _carried: dict[tuple, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def touches(self, name: str) -> bool:
        """Whether a parameter is other than the generalist's for any row."""
        return any(one.bound is not None and name in one.bound.terms for one in self.live)

    def passes(self, name: str, own: Tensor) -> list[Pass]:
        """Those of a matrix whose generalist's tensor is `own`; the ones over all rows first."""
        met: dict[int, tuple[Matrix, list[tuple[int, Tensor | None]]]] = {}
        for place, one in enumerate(self.live):
            for matrix, weight in _meetings(one, name, own):
                met.setdefault(id(matrix), (matrix, []))[1].append((place, weight))
        found = [Pass(*self._placed(who), matrix) for matrix, who in met.values()]
        return sorted(found, key=lambda each: each.rows is not None)

    def vectors(self, name: str, own: Tensor) -> Tensor:
        """A vector parameter in every row, [rows, out]; [out] where it is the same in all."""
        if len(self.live) == 1:
            only = self.live[0].bound
            return own if only is None else only.vector(name, own)
        distinct = torch.stack([own if one.bound is None else one.bound.vector(name, own) for one in self.live])
        return distinct[self._group()]

    def _group(self) -> Tensor:
        if () not in self._carried:
            number = {row: place for place, one in enumerate(self.live) for row in one.rows}
            self._carried[()] = torch.tensor([number[row] for row in range(self.rows)], device=self.like.device), None
        found = self._carried[()][0]
        assert found is not None
        return found

    def _placed(self, who: list[tuple[int, Tensor | None]]) -> tuple[Tensor | None, Tensor | None]:
        """(rows, weights) of compositions with their weights [1, out], [1, 1] or None for 1; the same where all modules share them."""
        key = tuple((place, None if weight is None else id(weight)) for place, weight in who)
        if key not in self._carried:
            rows = [row for place, _ in who for row in self.live[place].rows]
            every = len(rows) == self.rows
            index = None if every else torch.tensor(rows, device=self.like.device)
            self._carried[key] = index, self._weights(who, rows if every else None)
        return self._carried[key]

    def _weights(self, who: list[tuple[int, Tensor | None]], order: list[int] | None) -> Tensor | None:
        if all(weight is None for _, weight in who):
            return None
        one = next(weight for _, weight in who if weight is not None).new_ones(1, 1)
        own = [one if weight is None else weight for _, weight in who]
        wide = max(weight.shape[1] for weight in own)
        whole = torch.cat([weight.expand(len(self.live[place].rows), wide) for (place, _), weight in zip(who, own, strict=True)])
        if order is not None:  # back to the batch's own order
            whole = whole[torch.tensor(order, device=whole.device).argsort()]
        return None if bool((whole == 1).all()) else whole[:, None]


def _meetings(one: Live, name: str, own: Tensor) -> list[tuple[Matrix, Tensor | None]]:
    """(matrix, weights [1, out], [1, 1] or None for 1) of everything that one composition's rows meet in a parameter."""
    if one.bound is None or name not in one.bound.terms:
        return [(own, None)]
    if one.tail is not None:
        return [(one.tail[name], None)]
    terms = one.bound.terms[name]
    based = isinstance(terms.base, Tensor) or terms.base != 0
    found: list[tuple[Matrix, Tensor | None]] = [(own, terms.base if isinstance(terms.base, Tensor) else None)] if based else []
    for part in terms.parts:
        found.append((part.change.tensor if isinstance(part.change, Dense) else part.change, part.weights))
    return found or [(own, one.bound.nothing)]


class Switch:
    """Holds the state that a patched model's next forwards run under; None: the generalist."""

    state: State | None = None

    def patch(self, model: PreTrainedModel) -> None:
        """Make every module with parameters ask this switch, for good."""
        names = {id(tensor): name for name, tensor in model.named_parameters()}  # tied tensors under one name, wherever they are met
        for place, module in enumerate(model.modules()):
            own = {local: names[id(tensor)] for local, tensor in module._parameters.items() if tensor is not None}
            if own:
                module.forward = self._forward(place, module, own)

    def _forward(self, place: int, module: nn.Module, names: dict[str, str]) -> Run:
        original: Run = module.forward

        def forward(x: Tensor) -> Tensor:
            state = self.state
            if state is None:
                return original(x)
            run = state.runs.get(place)
            if run is None:
                run = state.runs[place] = run_of(module, names, original, state)
            return run(x)

        return forward


def run_of(module: nn.Module, names: Mapping[str, str], original: Run, state: State) -> Run:
    """What a module does under a state; its own forward where nothing of it is changed. UnsupportedError for a module of no known kind."""
    if not any(state.touches(name) for name in names.values()):
        return original
    if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        return _fitting(_matrix_run(module, names, original, state), state)
    if any(tensor is not None and tensor.ndim != 1 for tensor in module._parameters.values()):
        raise UnsupportedError("A module cannot run mixed.", met=type(module).__name__, mend="serve the generalist alone")
    return _vector_run(module, names, original, state)


def _fitting(run: Run, state: State) -> Run:
    """The run for batches of another number of rows: one row that stands for all (GPT-2's position ids), or a refusal."""
    rows = state.rows

    def fitting(x: Tensor) -> Tensor:
        if len(state.live) > 1 and x.shape[0] != rows:
            if x.shape[0] != 1:
                raise MismatchError("The batch does not fit.", met=f"{x.shape[0]} rows, {rows} compositions", mend="one for each row")
            x = x.expand(rows, *x.shape[1:])
        return run(x)

    return fitting


def _matrix_run(module: nn.Linear | Conv1D | nn.Embedding, names: Mapping[str, str], original: Run, state: State) -> Run:
    weight, bias, dtype = module._parameters["weight"], module._parameters.get("bias"), state.like.dtype
    assert weight is not None
    passes, product = state.passes(names["weight"], weight), _applied(module, original)
    added = None if bias is None else state.vectors(names["bias"], bias)
    if added is not None and added.ndim == 2:
        added = added[:, None]
    wide = dtype.itemsize < 4 and (len(passes) > 1 or passes[0].weights is not None)

    def run(x: Tensor) -> Tensor:
        total: Tensor | None = None
        for rows, weights, matrix in passes:
            y = product(x if rows is None else x.index_select(0, rows), matrix)
            if wide:
                y = y.float()
            if weights is not None:
                y = y * fitted(weights, y)
            if rows is not None:
                total = (y.new_zeros(x.shape[0], *y.shape[1:]) if total is None else total).index_add_(0, rows, y)
            else:
                total = y if total is None else total.add_(y)
        assert total is not None
        if added is not None:
            total = total + fitted(added, total)
        return total.to(dtype)

    return run


def _applied(module: nn.Linear | Conv1D | nn.Embedding, original: Run) -> Callable[[Tensor, Matrix], Tensor]:
    """(inputs, what they meet) -> outputs without the bias."""
    product = product_of(module, original)

    def applied(x: Tensor, matrix: Matrix) -> Tensor:
        if isinstance(matrix, LowRank):
            return F.linear(F.linear(x, matrix.down.to(x.dtype)), matrix.up.to(x.dtype))
        return product(x, matrix)

    return applied


def _vector_run(module: nn.Module, names: Mapping[str, str], original: Run, state: State) -> Run:
    """A norm with its vectors composed, one a row: the module's own forward, or torch's norm without them."""
    own = {local: tensor for local, tensor in module._parameters.items() if tensor is not None}
    composed = {local: state.vectors(names[local], tensor) for local, tensor in own.items()}
    several = any(vectors.ndim == 2 for vectors in composed.values())
    shaped: dict[int, dict[str, Tensor]] = {}

    def run(x: Tensor) -> Tensor:
        if x.ndim not in shaped:
            shape = (state.rows, *[1] * (x.ndim - 2), -1)
            shaped[x.ndim] = {local: vectors.view(shape) if vectors.ndim == 2 else vectors for local, vectors in composed.items()}
        if several and isinstance(module, nn.LayerNorm | nn.RMSNorm):
            return scaled_norm(module, x, shaped[x.ndim])
        with swapped(module, shaped[x.ndim]):
            return original(x)

    return run
