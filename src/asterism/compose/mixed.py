"""Mixed execution: one batch, another mixture in every row, no weights built.

Weights act on a parameter's output nodes, and a module is linear in its matrix, so mixing rows of a matrix is mixing outputs:

    (sum_i W_i . theta_i) x = sum_i W_i . (theta_i x)

Each matrix of a specialist runs once on the rows that use it; its outputs are scaled and added. Vectors (biases, norms) are
small enough to be composed, one a row. Modules keep their own forward and hooks: only the instance's `forward` is replaced, for as
long as the context lasts. A row keeps its mixture over the whole sequence, so the KV cache stays valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asterism.compose.plan import Plan, Terms
from asterism.core.errors import MismatchError, UnsupportedError
from asterism.models.changes import Change, Dense
from asterism.models.types import Conv1D, PreTrainedModel

Run = Callable[[Tensor], Tensor]
Pass = tuple[Tensor | None, Tensor | None, Run]
"""Rows that take part (None: all), their weights [rows, 1, out] (None: 1), and the map from inputs to outputs."""


@dataclass
class Rows:
    """Which mixture each row of the batch runs under, and the plan's weights carried to rows, once for each distinct weight."""

    group: Tensor
    """[n] number of each row's mixture among the plan's G distinct ones."""
    distinct: int
    """G; with one mixture for all rows nothing is indexed and weights are [1, 1, out]."""
    batch: int = 0
    """Rows of the batch that the model is running now: m n, where each mixture holds m rows in a row."""
    _carried: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)

    def multiple(self, rows: int) -> int:
        """m, for a module that meets m n rows. MismatchError for another number of rows."""
        m, rest = divmod(rows, len(self.group))
        if rest or not m:
            mend = "give every row a mixture; beams and returned sequences of one row lie beside each other"
            raise MismatchError("The batch does not fit the mixtures.", met=f"{rows} rows, {len(self.group)} mixtures", mend=mend)
        return m

    def carried(self, weights: Tensor, m: int) -> tuple[Tensor | None, Tensor | None]:
        """[G, out] -> (rows with any weight, their weights [rows, 1, out]); None for all rows, None for weights of exactly 1."""
        key = (id(weights), m)
        if key not in self._carried:
            self._carried[key] = self._carry(weights, m)
        return self._carried[key]

    def spread(self, vectors: Tensor, m: int) -> Tensor:
        """[G, out] -> [m n, out], or as it is with one mixture for all rows."""
        return vectors if self.distinct == 1 else vectors[self.group].repeat_interleave(m, dim=0)

    def _carry(self, weights: Tensor, m: int) -> tuple[Tensor | None, Tensor | None]:
        ones = bool((weights == 1).all())
        if self.distinct == 1:
            return None, None if ones else weights[:, None]
        whole = self.spread(weights, m)
        used = (whole != 0).any(dim=1)
        if bool(used.all()):
            return None, None if ones else whole[:, None]
        rows, own = used.nonzero()[:, 0], whole[used]
        return rows, None if bool((own == 1).all()) else own[:, None]


@contextmanager
def running_mixed(
    model: PreTrainedModel, plan: Plan, change_of: Callable[[str, str], Change | None], group: Sequence[int]
) -> Iterator[None]:
    """Run `model`, which must be the generalist, with row b under `plan.mixtures[group[b]]` until the context is left."""
    tensors = dict(model.named_parameters())
    terms = {name: found for name in plan.parameters if (found := plan.terms(name, change_of)) is not None}
    rows = Rows(torch.tensor(list(group), device=next(iter(tensors.values())).device), len(plan.mixtures))
    names = {id(tensor): name for name, tensor in tensors.items()}  # tied tensors under one name, wherever they are met
    with ExitStack() as stack:
        handle = model.base_model.register_forward_pre_hook(_counting(rows), with_kwargs=True)
        stack.callback(handle.remove)
        for module in model.modules():
            own = {local: names[id(tensor)] for local, tensor in module._parameters.items() if tensor is not None}
            mine = {local: terms[name] for local, name in own.items() if name in terms}
            if mine:
                _patch(stack, module, _mixed_forward(module, mine, rows))
        yield


def _counting(rows: Rows) -> Callable[..., None]:
    """A pre-hook of the base model that notes the size of the batch, and refuses one that does not fit."""

    def count(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        if given is not None:
            rows.multiple(given.shape[0])
            rows.batch = given.shape[0]

    return count


def _patch(stack: ExitStack, module: nn.Module, forward: Run) -> None:
    former = module.__dict__.get("forward")
    module.forward = forward

    def undo() -> None:
        if former is None:
            del module.forward
        else:
            module.forward = former

    stack.callback(undo)


def _mixed_forward(module: nn.Module, terms: dict[str, Terms], rows: Rows) -> Run:
    if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
        return _matrix_forward(module, terms, rows)
    if any(tensor is not None and tensor.ndim != 1 for tensor in module._parameters.values()):
        raise UnsupportedError("A module cannot run mixed.", met=type(module).__name__, mend="materialise the mixture instead")
    return _vector_forward(module, terms, rows)


def _matrix_forward(module: nn.Linear | Conv1D | nn.Embedding, terms: dict[str, Terms], rows: Rows) -> Run:
    """out = c0 theta_G x + sum_i W_i (theta_i x) + bias, each product on the rows that have weight in it."""
    weight, own_bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    passes = _passes(module, weight, terms.get("weight", Terms(1.0, ())), rows.distinct)
    bias = composed_vectors(terms["bias"], own_bias, rows.distinct) if "bias" in terms and own_bias is not None else None
    prepared: dict[int, tuple[list[Pass], Tensor | None, bool]] = {}

    def prepare(m: int) -> tuple[list[Pass], Tensor | None, bool]:
        carried: list[Pass] = []
        for weights, run in passes:
            chosen, own = (None, None) if weights is None else rows.carried(weights, m)
            carried.append((chosen, own, run))
        carried.sort(key=lambda one: one[0] is not None)  # whole batches first: they need no zeros to be added to
        added = own_bias if bias is None else rows.spread(bias, m)[:, None]
        wide = weight.dtype.itemsize < 4 and (len(carried) > 1 or carried[0][1] is not None)
        return carried, added, wide

    def forward(x: Tensor) -> Tensor:
        if rows.distinct == 1:
            m = 1
        else:
            if x.shape[0] == 1 < rows.batch:  # the same for all rows, such as GPT-2's position ids
                x = x.expand(rows.batch, *x.shape[1:])
            m = rows.multiple(x.shape[0])
        if m not in prepared:
            prepared[m] = prepare(m)
        carried, added, wide = prepared[m]
        total: Tensor | None = None
        for chosen, weights, run in carried:
            y = run(x if chosen is None else x.index_select(0, chosen))
            if wide:
                y = y.float()
            if chosen is not None:
                y = y if weights is None else y.mul_(fitted(weights, y))
                total = (y.new_zeros(x.shape[0], *y.shape[1:]) if total is None else total).index_add_(0, chosen, y)
            elif total is None:
                total = y if weights is None else y.mul_(fitted(weights, y))
            else:
                total = total.add_(y) if weights is None else total.addcmul_(y, fitted(weights, y))
        assert total is not None
        if added is not None:
            total = total.add_(fitted(added, total))
        return total.to(weight.dtype)

    return forward


def fitted(weights: Tensor, y: Tensor) -> Tensor:
    """Weights [rows, 1, out] (or [out]) in the shape that multiplies y [rows, ..., out]."""
    return weights if weights.ndim == 1 or y.ndim == 3 else weights.view(weights.shape[0], *[1] * (y.ndim - 2), weights.shape[-1])


def _passes(module: nn.Linear | Conv1D | nn.Embedding, weight: Tensor, terms: Terms, groups: int) -> list[tuple[Tensor | None, Run]]:
    """(weights [G, out], or None for 1 everywhere; inputs -> outputs), one for every tensor that takes part, biases left out."""
    product = product_of(module, module.forward)
    passes: list[tuple[Tensor | None, Run]] = []
    if isinstance(terms.base, Tensor):
        passes.append((terms.base, lambda x: product(x, weight)))
    elif terms.base or not terms.parts:
        passes.append((None if terms.base else weight.new_zeros(groups, 1), lambda x: product(x, weight)))
    for part in terms.parts:
        if isinstance(part.change, Dense):
            passes.append((part.weights, lambda x, tensor=part.change.tensor: product(x, tensor)))
        else:
            up, down = part.change.up.to(weight.dtype), part.change.down.to(weight.dtype)
            passes.append((part.weights, lambda x, up=up, down=down: F.linear(F.linear(x, down), up)))
    return passes


def product_of(module: nn.Linear | Conv1D | nn.Embedding, original: Run) -> Callable[[Tensor, Tensor], Tensor]:
    """(inputs, matrix in the module's own layout) -> outputs without the bias; `original` is the module's own forward."""
    if isinstance(module, nn.Linear):
        return F.linear
    if isinstance(module, Conv1D):
        return lambda x, weight: F.linear(x, weight.T)

    def look_up(ids: Tensor, table: Tensor) -> Tensor:
        with swapped(module, {"weight": table}):  # its own forward: some embeddings scale what they look up
            return original(ids)

    return look_up


def _vector_forward(module: nn.Module, terms: dict[str, Terms], rows: Rows) -> Run:
    """A norm with its vectors composed, one a row: the module's own forward, or LayerNorm's, with them in place."""
    own = {local: tensor for local, tensor in module._parameters.items() if tensor is not None}
    composed = {local: composed_vectors(found, own[local], rows.distinct) for local, found in terms.items()}
    prepared: dict[tuple[int, int], dict[str, Tensor]] = {}
    original, fused = module.forward, isinstance(module, nn.LayerNorm | nn.RMSNorm)

    def at(m: int, x: Tensor) -> dict[str, Tensor]:
        if rows.distinct == 1:
            return {local: vectors[0] for local, vectors in composed.items()}
        shape = (m * len(rows.group), *[1] * (x.ndim - 2), -1)
        return {local: rows.spread(vectors, m).view(shape) for local, vectors in composed.items()}

    def forward(x: Tensor) -> Tensor:
        m = 1 if rows.distinct == 1 else rows.multiple(x.shape[0])
        if (m, x.ndim) not in prepared:
            prepared[m, x.ndim] = at(m, x)
        vectors = prepared[m, x.ndim]
        if rows.distinct > 1 and fused:
            return scaled_norm(module, x, {**own, **vectors})
        with swapped(module, vectors):
            return original(x)

    return forward


def scaled_norm(module: nn.Module, x: Tensor, vectors: dict[str, Tensor]) -> Tensor:
    """LayerNorm or RMSNorm with vectors [rows, 1, out], which torch's fused kernels do not take."""
    wide = x.float() if x.dtype.itemsize < 4 else x
    if isinstance(module, nn.LayerNorm):
        y = F.layer_norm(wide, module.normalized_shape, eps=module.eps)
    else:
        assert isinstance(module, nn.RMSNorm)
        y = F.rms_norm(wide, module.normalized_shape, eps=module.eps)  # pyright: ignore[reportArgumentType]
    y = y * vectors["weight"]
    return (y + vectors["bias"] if "bias" in vectors else y).to(x.dtype)


def composed_vectors(terms: Terms, own: Tensor, groups: int) -> Tensor:
    """One vector parameter under each of `groups` mixtures, [G, out] in the parameter's dtype; `own` [out] is the generalist's."""
    wide = torch.promote_types(own.dtype, torch.float32)
    total = (terms.base * own.to(wide)).expand(groups, -1).clone()
    for part in terms.parts:
        assert isinstance(part.change, Dense), "a low-rank change belongs to a matrix"
        total.addcmul_(part.change.tensor.to(wide), part.weights.to(wide))
    return total.to(own.dtype)


class swapped:  # noqa: N801
    """While open, some of a module's parameters are other tensors, of any shape that broadcasts."""

    def __init__(self, module: nn.Module, tensors: dict[str, Tensor]) -> None:
        self.held: dict[str, Any] = module._parameters
        self.tensors = tensors

    def __enter__(self) -> None:
        self.former = {local: self.held[local] for local in self.tensors}
        self.held.update(self.tensors)

    def __exit__(self, *exception: object) -> None:
        self.held.update(self.former)
