"""A specialist's parameters and deltas in float32 or wider, whatever the specialist is stored as."""

from __future__ import annotations

from torch import Tensor

from asterism.core.gram import accumulator
from asterism.models.changes import Change, Dense
from asterism.models.library import Library


def held(library: Library, name: str, parameter: str) -> Tensor | None:
    """A specialist's parameter in float32 (float64 in a float64 library), never rounded; None where it equals the generalist's."""
    change = library.change(name, parameter)
    if isinstance(change, Dense):
        return change.tensor.to(accumulator(change.tensor))
    return None if change is None else original(library, parameter) + delta_of(library, change, parameter)


def delta_of(library: Library, change: Change, parameter: str) -> Tensor:
    """What a change adds to the generalist's parameter, in float32 or wider."""
    if isinstance(change, Dense):
        return change.tensor.to(accumulator(change.tensor)) - original(library, parameter)
    return change.delta(library.anatomy.output_axes[parameter])


def original(library: Library, parameter: str) -> Tensor:
    """The generalist's parameter in float32 or wider."""
    base = library.tensor(parameter)
    return base.to(accumulator(base))
