"""Which entries of the library's parameters lie where in the engine's, found by asking the engine's own weight loader.

vLLM packs projections, pads vocabularies, transposes and shards: column-parallel matrices along their outputs, row-parallel ones along
their inputs, vocabularies along their rows. Here nothing of that is assumed. Parameters are loaded whose entries say which output, then
which input, they stand for, and what then lies in the engine's parameters on this worker is read off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asterism.core.errors import UnsupportedError
from asterism.models.anatomy import Anatomy
from asterism.models.changes import LowRank

BASE = 256
"""Numbers up to this are exact in every float type of models: others travel digit by digit."""
Load = Callable[[Iterable[tuple[str, Tensor]]], object]


@dataclass(frozen=True, eq=False)
class Cut:
    """One parameter of the engine, on this worker."""

    parts: tuple[str, ...]
    """The library's parameters that lie in it, in the library's order."""
    axis: int
    """Its dimension that runs over outputs."""
    rows: Tensor
    """[n] for each of its outputs, the number among its parts' outputs, laid end to end; -1: padding."""
    columns: Tensor | None
    """[m] for each of its inputs, the number of the library's input; -1: padding. None for a vector."""

    def taken(self, tensors: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
        """The engine's parameter from the library's `parts`, whose outputs run along `axes`."""
        if self.columns is None:
            return _picked(torch.cat(list(tensors)), self.rows, 0)
        whole = [tensor if axis == 0 else tensor.T for tensor, axis in zip(tensors, axes, strict=True)]  # [out, in]
        found = _picked(_picked(whole[0] if len(whole) == 1 else torch.cat(whole), self.rows, 0), self.columns, 1)
        return found.contiguous() if self.axis == 0 else found.T.contiguous()

    def low_rank(self, changes: Sequence[LowRank | None], sizes: Sequence[int]) -> LowRank:
        """Low-rank changes of the parts (None: none; outputs by `sizes`) as one: up [n, sum r], down [sum r, m]."""
        there = [change for change in changes if change is not None]
        up = there[0].up.new_zeros(sum(sizes), sum(change.rank for change in there))
        row = column = 0
        for change, size in zip(changes, sizes, strict=True):
            if change is not None:
                up[row : row + size, column : column + change.rank] = change.up
                column += change.rank
            row += size
        assert self.columns is not None, "a low-rank change belongs to a matrix"
        return LowRank(_picked(up, self.rows, 0), _picked(torch.cat([change.down for change in there]), self.columns, 1))

    def spread(self, weights: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """Weights at the parts' outputs, [out] or [1] each, as weights at the engine's own outputs: [n]."""
        whole = torch.cat([each.expand(size) for each, size in zip(weights, sizes, strict=True)])
        return _picked(whole, self.rows, 0)


def cuts_of(model: nn.Module, load: Load, anatomy: Anatomy) -> dict[str, Cut]:
    """The cut of every parameter of `model` that `load` fills from the library's parameters; leaves the model with rubbish in them.

    UnsupportedError for a parameter in which outputs and inputs cannot be told apart.
    """
    starts, total = {}, 0
    for name in anatomy.shapes:
        starts[name] = total
        total += anatomy.output_size(name)
    inputs = [shape[1 - anatomy.output_axes[name]] for name, shape in anatomy.shapes.items() if len(shape) == 2]
    rows = _lines(model, load, anatomy, lambda name: _numbers(anatomy, name, starts[name]), total)
    columns = _lines(model, load, anatomy, lambda name: _numbers(anatomy, name, None), max(inputs, default=1))
    found = {}
    for name, (along, numbers) in rows.items():
        parts = tuple(part for part in starts if _holds(numbers, starts[part], anatomy.output_size(part)))
        across, other = columns.get(name, (frozenset(), None))
        axes = [axis for axis in sorted(along) if other is None or 1 - axis in across]
        if not axes:
            mend = "serve this model with the local engine"
            raise UnsupportedError("How vLLM lays out a parameter is not clear.", met=name, mend=mend)
        line = None if other is None else other[1 - axes[0]]
        found[name] = Cut(parts, axes[0], _among(numbers[axes[0]], parts, starts, anatomy), line)
    return found


def _numbers(anatomy: Anatomy, name: str, start: int | None) -> Tensor | None:
    """A parameter of its outputs' numbers from `start`, or (None) of its inputs', counted from 1; a vector has no inputs: None."""
    shape, axis = anatomy.shapes[name], anatomy.output_axes[name]
    if len(shape) == 1:
        return None if start is None else torch.arange(shape[0]) + start + 1
    along = axis if start is not None else 1 - axis
    line = torch.arange(shape[along]) + (start or 0) + 1
    return (line[:, None] if along == 0 else line[None]).expand(shape)


Lines = tuple[frozenset[int], dict[int, Tensor]]
"""Dimensions along which alone a parameter's numbers may change, and the numbers along each, counted from 0; -1 for none."""


def _lines(model: nn.Module, load: Load, anatomy: Anatomy, numbers: Callable[[str], Tensor | None], most: int) -> dict[str, Lines]:
    """What numbered parameters leave in every parameter of the engine that they fill."""
    parameters = {name: parameter.data for name, parameter in model.named_parameters() if parameter.ndim in (1, 2)}
    along = {name: set(range(data.ndim)) for name, data in parameters.items()}
    sums = {name: {axis: torch.zeros(data.shape[axis], dtype=torch.long) for axis in along[name]} for name, data in parameters.items()}
    filled: set[str] = set()
    for place in range(_places(most)):
        for data in parameters.values():
            data.zero_()
        load(_digits(anatomy, numbers, place))
        for name, data in parameters.items():
            if bool((data != 0).any()):
                filled.add(name)
            for axis in list(along[name]):
                line = data if data.ndim == 1 else data.amax(dim=1 - axis)
                shown = line if data.ndim == 1 else line.unsqueeze(1 - axis)
                if bool(((data == shown) | (data == 0)).all()):
                    sums[name][axis] += line.long().cpu() * BASE**place
                else:
                    along[name].discard(axis)
    return {name: (frozenset(along[name]), {axis: line - 1 for axis, line in sums[name].items()}) for name in sums if name in filled}


def _digits(anatomy: Anatomy, numbers: Callable[[str], Tensor | None], place: int) -> Iterator[tuple[str, Tensor]]:
    for name, shape in anatomy.shapes.items():
        own = numbers(name)
        digit = torch.zeros(shape) if own is None else (own // BASE**place % BASE).float()
        yield name, digit


def _places(most: int) -> int:
    places = 1
    while BASE**places <= most:
        places += 1
    return places


def _holds(lines: Mapping[int, Tensor], start: int, size: int) -> bool:
    return any(bool(((line >= start) & (line < start + size)).any()) for line in lines.values())


def _among(numbers: Tensor, parts: Sequence[str], starts: Mapping[str, int], anatomy: Anatomy) -> Tensor:
    """Numbers among all outputs as numbers among those of `parts`, laid end to end."""
    found, before = torch.full_like(numbers, -1), 0
    for part in parts:
        size = anatomy.output_size(part)
        own = (numbers >= starts[part]) & (numbers < starts[part] + size)
        found[own] = numbers[own] - starts[part] + before
        before += size
    return found


def _picked(tensor: Tensor, places: Tensor, dim: int) -> Tensor:
    """Entries along `dim` by place, zeros where the place is -1."""
    if len(places) == tensor.shape[dim] and bool((places == torch.arange(len(places))).all()):
        return tensor
    found = tensor.index_select(dim, places.clamp(min=0).to(tensor.device))
    if bool((places < 0).any()):
        found.index_fill_(dim, (places < 0).nonzero()[:, 0].to(tensor.device), 0)
    return found
