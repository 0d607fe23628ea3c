"""What a module does about a batch whose rows run under different compositions.

Rows meet matrices: a mixed composition's rows those of its specialists, with weights; a materialised one's its own matrix; rows under
different compositions that ask the same specialist meet its matrix together. Vectors (biases, norms) are composed, one a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from asterism.compose.composer import write
from asterism.compose.mixed import Run, fitted, product_of, scaled_norm, swapped
from asterism.compose.plan import Terms
from asterism.core.errors import MismatchError, UnsupportedError
from asterism.models.changes import Dense, LowRank
from asterism.models.types import Conv1D, PreTrainedModel
from asterism.serve.local.bound import Bound
from asterism.serve.local.policy import Phase
from asterism.serve.local.products import Addition, Meeting, Product, composed, gathered, grouped, low_rank, woven
from asterism.serve.local.thin import linear

MANY = 24
"""Tokens of a composition from which building a matrix for them costs less than running them through each specialist's."""


@dataclass(frozen=True, eq=False)
class Live:
    """One distinct composition of a batch."""

    bound: Bound | None
    """None: the generalist."""
    rows: tuple[int, ...]
    tail: Mapping[str, Tensor] | None = None
    """Its composed matrices by parameter, where it is materialised."""


@dataclass(eq=False)
class State:
    """What each row of a batch runs under, and what each module does about it, found when the module first runs.

    What a module does (`runs`) does not hold the state in turn: matrices of a state that went are not to wait for a search for garbage.
    """

    rows: int
    live: tuple[Live, ...]
    phase: Phase
    like: Tensor
    """A parameter of the model."""
    scratch: dict[torch.Size, Tensor]
    """By shape: where a matrix is built for a moment."""
    runs: dict[int, Run] = field(default_factory=dict)
    _joined: dict[tuple, tuple[tuple[int, ...], Tensor | None]] = field(default_factory=dict)
    _patterns: dict[tuple, Any] = field(default_factory=dict)
    _group: Tensor | None = None

    def touches(self, name: str) -> bool:
        """Whether a parameter is other than the generalist's for any row."""
        return any(one.bound is not None and name in one.bound.terms for one in self.live)

    def meetings(self, name: str, own: Tensor) -> tuple[list[Meeting], list[Addition]]:
        """Who meets what in a matrix whose generalist's tensor is `own`, and what is added to it in low rank."""
        met: dict[int, tuple[Tensor | LowRank, list[tuple[int, Tensor | None]]]] = {}
        for place, one in enumerate(self.live):
            for matrix, weight in _asked(one, name, own):
                met.setdefault(id(matrix), (matrix, []))[1].append((place, weight))
        whole = [Meeting(*self._together(who), matrix) for matrix, who in met.values() if isinstance(matrix, Tensor)]
        return whole, [Addition(*self._together(who), matrix) for matrix, who in met.values() if isinstance(matrix, LowRank)]

    def vectors(self, name: str, own: Tensor) -> Tensor:
        """A vector parameter in every row, [rows, out]; [out] where it is the same in all."""
        if len(self.live) == 1:
            only = self.live[0].bound
            return own if only is None else only.vector(name, own)
        if self._group is None:
            number = {row: place for place, one in enumerate(self.live) for row in one.rows}
            self._group = torch.tensor([number[row] for row in range(self.rows)], device=self.like.device)
        return torch.stack([own if one.bound is None else one.bound.vector(name, own) for one in self.live])[self._group]

    def pattern(self, key: tuple, make: Callable[[], Any]) -> Any:
        """A pattern made once for all modules that are composed alike."""
        if key not in self._patterns:
            self._patterns[key] = make()
        return self._patterns[key]

    def _together(self, who: list[tuple[int, Tensor | None]]) -> tuple[tuple[int, ...], Tensor | None]:
        """(rows, weights [rows, out or 1], None for 1) of compositions by place with theirs; the same objects where they are the same."""
        key = tuple((place, None if weight is None else id(weight)) for place, weight in who)
        if key not in self._joined:
            rows = tuple(row for place, _ in who for row in self.live[place].rows)
            self._joined[key] = rows, self._weights(who)
        return self._joined[key]

    def _weights(self, who: list[tuple[int, Tensor | None]]) -> Tensor | None:
        if all(weight is None for _, weight in who):
            return None
        one = next(weight for _, weight in who if weight is not None).new_ones(1, 1)
        own = [one if weight is None else weight for _, weight in who]
        wide = max(weight.shape[1] for weight in own)
        whole = torch.cat([weight.expand(len(self.live[place].rows), wide) for (place, _), weight in zip(who, own, strict=True)])
        return None if bool((whole == 1).all()) else whole


def _asked(one: Live, name: str, own: Tensor) -> list[tuple[Tensor | LowRank, Tensor | None]]:
    """(matrix, weights [1, out], [1, 1] or None for 1) of everything that one composition's rows meet in a parameter."""
    if one.bound is None or name not in one.bound.terms:
        return [(own, None)]
    if one.tail is not None:
        return [(one.tail[name], None)]
    terms = one.bound.terms[name]
    found: list[tuple[Tensor | LowRank, Tensor | None]] = []
    if isinstance(terms.base, Tensor) or terms.base != 0:
        found.append((own, terms.base if isinstance(terms.base, Tensor) else None))
    found += [(part.change.tensor if isinstance(part.change, Dense) else part.change, part.weights) for part in terms.parts]
    if not any(isinstance(matrix, Tensor) for matrix, _ in found):  # what is low in rank is added to something
        found.append((own, one.bound.nothing))
    return found


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
        original = _own_forward(module)

        def forward(x: Tensor) -> Tensor:
            state = self.state
            if state is None:
                return original(x)
            run = state.runs.get(place)
            if run is None:
                run = state.runs[place] = run_of(module, names, original, state)
            return run(x)

        return forward


def _own_forward(module: nn.Module) -> Run:
    """What a module does with its own parameters."""
    if type(module) is nn.Linear:
        return lambda x: linear(x, module.weight, module.bias)
    if type(module) is Conv1D:
        return lambda x: linear(x, module.weight.T, module.bias)
    return module.forward


def run_of(module: nn.Module, names: Mapping[str, str], original: Run, state: State) -> Run:
    """What a module does under a state; its own forward where nothing of it is changed. UnsupportedError for a module of no known kind."""
    if not any(state.touches(name) for name in names.values()):
        return original
    if isinstance(module, nn.Linear | Conv1D):
        return _matrix_run(module, names, state)
    if isinstance(module, nn.Embedding):
        return _table_run(module, names["weight"], original, state)
    if any(tensor is not None and tensor.ndim != 1 for tensor in module._parameters.values()):
        raise UnsupportedError("A module cannot run mixed.", met=type(module).__name__, mend="serve the generalist alone")
    return _vector_run(module, names, original, state)


def _fitting(run: Run, state: State) -> Run:
    """The run for batches of another number of rows: one row that stands for all (GPT-2's position ids), or a refusal."""
    rows = state.rows

    def fitting(x: Tensor) -> Tensor:
        if x.shape[0] != rows:
            if x.shape[0] != 1:
                raise MismatchError("The batch does not fit.", met=f"{x.shape[0]} rows, {rows} compositions", mend="one for each row")
            x = x.expand(rows, *x.shape[1:])
        return run(x)

    return fitting


def _matrix_run(module: nn.Linear | Conv1D, names: Mapping[str, str], state: State) -> Run:
    weight, bias, dtype, n = module._parameters["weight"], module._parameters.get("bias"), state.like.dtype, state.rows
    assert weight is not None
    meetings, additions = state.meetings(names["weight"], weight)
    vector = None if bias is None else state.vectors(names["bias"], bias)
    outputs_last = isinstance(module, Conv1D)
    if len(meetings) == 1 and meetings[0].weights is None and not additions and (vector is None or vector.ndim == 1):
        matrix = meetings[0].matrix.T if outputs_last else meetings[0].matrix
        return lambda x: linear(x, matrix, vector)  # any number of rows
    added = vector[:, None] if vector is not None and vector.ndim == 2 else vector
    product = _whole(meetings, names["weight"], weight, state, outputs_last=outputs_last)
    more = low_rank(additions, n, dtype) if additions else None

    def run(x: Tensor) -> Tensor:
        total = product(x)
        if more is not None:
            y = more(x)
            total = total.to(torch.promote_types(y.dtype, torch.float32)) + y if dtype.itemsize < 4 else total.add_(y)
        if added is not None:
            total = total + fitted(added, total)
        return total.to(dtype)

    return _fitting(run, state)


def _whole(meetings: list[Meeting], name: str, own: Tensor, state: State, *, outputs_last: bool) -> Product:
    if len(meetings) == 1 and meetings[0].weights is None:
        matrix = meetings[0].matrix.T if outputs_last else meetings[0].matrix
        return lambda x: linear(x, matrix)
    if state.phase == "decode":
        return _few(meetings, state, outputs_last=outputs_last)
    if sum(len(each.rows) for each in meetings) == state.rows and all(each.weights is None for each in meetings):
        groups = [(each.rows, partial(_same, each.matrix)) for each in meetings]
        return composed(groups, state.rows, own.shape[int(outputs_last)], outputs_last=outputs_last)
    few = gathered(meetings, state.rows, outputs_last=outputs_last, batched=False, memo=state.pattern)
    many = _built(name, own, state, outputs_last=outputs_last)
    most = max(len(one.rows) for one in state.live)
    return lambda x: (few if x.shape[1:-1].numel() * most < MANY else many)(x)


def _few(meetings: list[Meeting], state: State, *, outputs_last: bool) -> Product:
    """One token a row; several only where somebody else runs the model."""
    rest = partial(gathered, meetings, state.rows, outputs_last=outputs_last, batched=True, memo=state.pattern)
    if state.like.dtype.itemsize < 4 and state.like.device.type == "cpu":
        return woven(meetings, state.rows, outputs_last=outputs_last) or rest()
    one = None if outputs_last else grouped(meetings, state.rows, memo=state.pattern)
    return rest() if one is None else lambda x: (one if x.shape[1:-1].numel() == 1 else rest())(x)


def _built(name: str, own: Tensor, state: State, *, outputs_last: bool) -> Product:
    """Whole matrices of a parameter: each composition's is built in the scratch place when its rows' turn has come."""
    axis, scratch = int(outputs_last), state.scratch

    def build(terms: Terms) -> Tensor:
        place = scratch.get(own.shape)
        if place is None:
            with torch.inference_mode(False):
                place = scratch[own.shape] = torch.empty(own.shape, dtype=own.dtype, device=own.device)
        write(place, terms, lambda: own, axis)
        return place

    groups: list[tuple[tuple[int, ...], Callable[[], Tensor]]] = []
    for one in state.live:
        whole = [(matrix, weight) for matrix, weight in _asked(one, name, own) if isinstance(matrix, Tensor)]
        if one.bound is None or (len(whole) == 1 and (whole[0][1] is None or bool((whole[0][1] == 1).all()))):
            groups.append((one.rows, partial(_same, whole[0][0])))
        else:
            terms = one.bound.terms[name]
            dense = Terms(terms.base, tuple(part for part in terms.parts if isinstance(part.change, Dense)))
            groups.append((one.rows, partial(build, dense)))
    return composed(groups, state.rows, own.shape[axis], outputs_last=outputs_last)


def _same(matrix: Tensor) -> Tensor:
    return matrix


def _table_run(module: nn.Embedding, name: str, original: Run, state: State) -> Run:
    """An embedding: every row looks its tokens up in all its tables."""
    weight, dtype = module.weight, state.like.dtype
    (meetings, additions), look_up = state.meetings(name, weight), product_of(module, original)
    assert not additions, "a low-rank change belongs to a linear module"
    if len(meetings) == 1 and meetings[0].weights is None:
        return lambda ids: look_up(ids, meetings[0].matrix)
    placed = [(torch.tensor(each.rows, device=weight.device), each.weights, each.matrix) for each in meetings]

    def run(ids: Tensor) -> Tensor:
        total = None
        for rows, weights, table in placed:
            y = look_up(ids.index_select(0, rows), table)
            y = y if weights is None else y.to(weights.dtype) * fitted(weights[:, None], y)
            total = torch.zeros(ids.shape[0], *y.shape[1:], dtype=_wide(dtype), device=y.device) if total is None else total
            total.index_add_(0, rows, y.to(total.dtype))
        assert total is not None
        return total.to(dtype)

    return _fitting(run, state)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _vector_run(module: nn.Module, names: Mapping[str, str], original: Run, state: State) -> Run:
    """A norm with its vectors composed, one a row: the module's own forward, or torch's norm without them."""
    own = {local: tensor for local, tensor in module._parameters.items() if tensor is not None}
    composed = {local: state.vectors(names[local], tensor) for local, tensor in own.items()}
    several = any(vectors.ndim == 2 for vectors in composed.values())
    shaped: dict[int, dict[str, Tensor]] = {}
    rows = state.rows

    def run(x: Tensor) -> Tensor:
        if x.ndim not in shaped:
            shape = (rows, *[1] * (x.ndim - 2), -1)
            shaped[x.ndim] = {local: vectors.view(shape) if vectors.ndim == 2 else vectors for local, vectors in composed.items()}
        if several and isinstance(module, nn.LayerNorm | nn.RMSNorm):
            return scaled_norm(module, x, shaped[x.ndim])
        with swapped(module, shaped[x.ndim]):
            return original(x)

    return run
