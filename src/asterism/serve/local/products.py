"""Products of a batch with several matrices at once: each row with its own few, weighed and added.

Four ways, each the fastest somewhere. `grouped`: a kernel reads each matrix once for all rows that meet it (few rows, float32 on a CPU).
`gathered`: rows are gathered by matrix, matrices that lie beside each other take one batched product, each row picks its own outputs and
adds them by its weights. `woven`: matrices that lie row by row beside each other meet their
inputs, scaled and beside each other too, in one product, sum_i c_i W_i x = [W_1 .. W_N] [c_1 x; ..; c_N x]; it reads half-precision
matrices at memory's speed where batched products of a CPU do not. `composed`: for many tokens each composition's matrix is built in a
scratch place that stays in the cache, used, and forgotten. No row's numbers enter another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.core.grouped import Meetings, fits
from asterism.core.grouped import grouped as grouped_product
from asterism.models.changes import LowRank
from asterism.serve.local import thin
from asterism.serve.local.slabs import Run, is_woven, runs, woven_whole


class Meeting(NamedTuple):
    """Rows that meet one matrix."""

    rows: tuple[int, ...]
    weights: Tensor | None
    """[rows, out], or [rows, 1] where every output has the same; None: 1."""
    matrix: Tensor
    """[out, in], or [in, out] where the product is told so."""


class Addition(NamedTuple):
    """Rows to whose outputs a matrix of low rank adds something."""

    rows: tuple[int, ...]
    weights: Tensor | None
    factors: LowRank


@dataclass(frozen=True, eq=False)
class Pattern:
    """Who meets what, the same for all parameters that are composed alike: where inputs come from and outputs go."""

    gather: Tensor
    """[P] rows of the batch in the order of the matrices, some twice to fill a batched product."""
    pick: Tensor
    """[n K] places among the P outputs: K for each row."""
    weights: Tensor | None
    """[n, 1, K], or [n, K, out] where outputs differ; None where K is 1 and so is every weight."""


def pattern(meetings: Sequence[Meeting], groups: Sequence[Sequence[int]], n: int, like: Tensor) -> Pattern:
    """For meetings of n rows whose products are taken in groups, each group's members padded to one number of rows."""
    gather: list[int] = []
    owned: list[list[tuple[int, int]]] = [[] for _ in range(n)]  # of each row: (place among outputs, number of its weight)
    starts = [sum(len(each.rows) for each in meetings[:place]) for place in range(len(meetings))]
    for group in groups:
        most = max(len(meetings[member].rows) for member in group)
        for member in group:
            rows = meetings[member].rows
            for place, row in enumerate(rows):
                owned[row].append((len(gather) + place, starts[member] + place))
            gather += [*rows, *[rows[0]] * (most - len(rows))]
    k = max(map(len, owned))
    nothing = starts[-1] + len(meetings[-1].rows)
    filled = [own + [(own[0][0], nothing)] * (k - len(own)) for own in owned]
    pick = torch.tensor([place for own in filled for place, _ in own], device=like.device)
    weights = None
    if k > 1 or any(each.weights is not None for each in meetings):
        chosen = torch.tensor([weight for own in filled for _, weight in own], device=like.device)
        table = _table(meetings, like)[chosen].view(n, k, -1)
        weights = table.mT.contiguous() if table.shape[-1] == 1 else table
    return Pattern(torch.tensor(gather, device=like.device), pick, weights)


def _table(meetings: Sequence[Meeting], like: Tensor) -> Tensor:
    """All weights, [sum of rows + 1, out or 1], the last one zero; in float32 or wider."""
    wide = torch.promote_types(like.dtype, torch.float32)
    width = max((each.weights.shape[1] for each in meetings if each.weights is not None), default=1)
    ones = torch.ones(1, 1, dtype=wide, device=like.device)
    parts = [(ones if each.weights is None else each.weights).expand(len(each.rows), width) for each in meetings]
    return torch.cat([*parts, torch.zeros(1, width, dtype=wide, device=like.device)])


Product = Callable[[Tensor], Tensor]
"""Inputs [n, ..., in] -> outputs [n, ..., out], in the inputs' dtype or wider; no bias."""
Memo = Callable[[tuple, Callable[[], Any]], Any]
"""Keeps a pattern by what it was made from."""


def grouped(meetings: Sequence[Meeting], n: int, *, memo: Memo) -> Product | None:
    """Every row, of one token each, with its own matrices by the kernel. None where it takes none of them."""
    if not all(fits(each.matrix) for each in meetings):
        return None
    matrices, like = [each.matrix for each in meetings], meetings[0].matrix
    plain = all(each.weights is None for each in meetings)

    def made() -> Meetings:
        return Meetings([each.rows for each in meetings], None if plain else _table(meetings, like)[:-1], n)

    met = memo(("grouped", *((each.rows, id(each.weights)) for each in meetings)), made)
    whole = grouped_product(matrices, met)
    return lambda x: whole(x.reshape(n, -1)).view(*x.shape[:-1], -1)


def gathered(meetings: Sequence[Meeting], n: int, *, outputs_last: bool, batched: bool, memo: Memo) -> Product:
    """Every row with its own matrices. outputs_last: matrices are [in, out]. batched: one product over matrices beside each other."""
    split = runs([each.matrix for each in meetings])
    if not batched:
        split = [Run((place,), run.matrices[i : i + 1]) for run in split for i, place in enumerate(run.places)]
    groups = [run.places for run in split]
    key = (tuple(groups), *((each.rows, id(each.weights)) for each in meetings))
    like = meetings[0].matrix
    made = memo(key, lambda: pattern(meetings, groups, n, like))
    gather, pick, weights, k = made.gather, made.pick, made.weights, len(made.pick) // n
    sized = [(run.matrices.mT if outputs_last else run.matrices, max(len(meetings[place].rows) for place in run.places)) for run in split]
    even = weights is not None and weights.shape[1] == 1
    wide = like.dtype.itemsize < 4 and weights is not None
    straight = gather.tolist() == list(range(n))
    in_order = k == 1 and pick.tolist() == list(range(n))

    def product(x: Tensor) -> Tensor:
        inside = x.shape[1:-1].numel()
        rows = x.reshape(n, inside, -1)
        rows = rows if straight else rows.index_select(0, gather)
        found, start = [], 0
        for matrices, most in sized:
            count = len(matrices)
            part = rows[start : start + count * most].reshape(count, most * inside, -1)
            found.append(thin.batched(part, matrices).view(count * most, -1))
            start += count * most
        y = found[0] if len(found) == 1 else torch.cat(found)  # [P, inside out]
        y = y if in_order else y.index_select(0, pick)
        if wide:
            y = y.float()
        if weights is not None:
            y = torch.bmm(weights, y.view(n, k, -1)) if even else (y.view(n, k, inside, -1) * weights[:, :, None]).sum(1)
        return y.view(*x.shape[:-1], -1)

    return product


def woven(meetings: Sequence[Meeting], n: int, *, outputs_last: bool) -> Product | None:
    """All rows with all matrices, weighed where they go in. None where it cannot be: weights that differ by output, a lone matrix."""
    if any(each.weights is not None and each.weights.shape[1] > 1 for each in meetings):
        return None
    split = runs([each.matrix for each in meetings])
    if any(len(run.places) == 1 for run in split) or not (outputs_last or all(is_woven(each.matrix) for each in meetings)):
        return None
    table, start = _table(meetings, meetings[0].matrix), 0
    coefficients = table.new_zeros(n, len(meetings))
    for place, each in enumerate(meetings):
        coefficients[list(each.rows), place] = table[start : start + len(each.rows), 0]
        start += len(each.rows)
    dtype = meetings[0].matrix.dtype
    parts = [
        (run.matrices.flatten(0, 1).T if outputs_last else woven_whole(run), coefficients[:, list(run.places)][:, None, :, None])
        for run in split
    ]

    def product(x: Tensor) -> Tensor:
        rows = x.reshape(n, -1, 1, x.shape[-1])
        found = [F.linear((rows * weights).to(dtype).flatten(2), whole) for whole, weights in parts]
        total = found[0] if len(found) == 1 else sum((y.float() for y in found[1:]), found[0].float())
        return total.view(*x.shape[:-1], -1)  # pyright: ignore[reportAttributeAccessIssue]

    return product


def composed(groups: Sequence[tuple[tuple[int, ...], Callable[[], Tensor]]], n: int, out: int, *, outputs_last: bool) -> Product:
    """Each group of rows with one matrix, which its function gives when its turn has come."""
    device_rows: list[tuple[slice | list[int], Callable[[], Tensor]]] = [(_span(rows), matrix) for rows, matrix in groups]

    def product(x: Tensor) -> Tensor:
        rows = x.reshape(n, -1, x.shape[-1])
        y = x.new_empty(n, rows.shape[1], out)
        for chosen, matrix in device_rows:
            whole = matrix()
            y[chosen] = thin.linear(rows[chosen], whole.T if outputs_last else whole)
        return y.view(*x.shape[:-1], out)

    return product


def _span(rows: tuple[int, ...]) -> slice | list[int]:
    return slice(rows[0], rows[-1] + 1) if rows == tuple(range(rows[0], rows[-1] + 1)) else list(rows)


def low_rank(additions: Sequence[Addition], n: int, dtype: torch.dtype) -> Product:
    """What matrices of low rank add to each row's outputs, all of them in two thin products where weights are the same at every output."""
    wide = torch.promote_types(dtype, torch.float32)
    device = additions[0].factors.up.device
    even = [each for each in additions if each.weights is None or each.weights.shape[1] == 1]
    joined: list[tuple[Tensor, Tensor, Tensor]] = []  # down [r, in], weights [n, 1, r or 1 ..], up [out, r]
    if even:
        scales = torch.zeros(n, 1, sum(each.factors.rank for each in even), dtype=wide, device=device)
        start = 0
        for each in even:
            own = torch.ones(1, 1, dtype=wide, device=device) if each.weights is None else each.weights
            scales[list(each.rows), 0, start : start + each.factors.rank] = own.expand(len(each.rows), -1)
            start += each.factors.rank
        down, up = torch.cat([each.factors.down for each in even]), torch.cat([each.factors.up for each in even], dim=1)
        joined.append((down.to(dtype), scales, up.to(dtype)))
    apart: list[tuple[Tensor, Tensor, Tensor]] = []
    for each in additions:
        if each.weights is not None and each.weights.shape[1] > 1:
            weights = torch.zeros(n, 1, each.weights.shape[1], dtype=wide, device=device)
            weights[list(each.rows), 0] = each.weights
            apart.append((each.factors.down.to(dtype), weights, each.factors.up.to(dtype)))

    def product(x: Tensor) -> Tensor:
        rows, total = x.reshape(n, -1, x.shape[-1]), None
        for down, scales, up in joined:
            total = thin.linear((thin.linear(rows, down) * scales).to(dtype), up)
        for down, weights, up in apart:
            y = thin.linear(thin.linear(rows, down), up) * weights
            total = y if total is None else total + y
        assert total is not None
        return total.view(*x.shape[:-1], -1)

    return product
