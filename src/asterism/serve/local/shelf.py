"""What the specialists change of the generalist, in memory: their whole matrices side by side, the generalist's own first."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asterism.models.changes import Change, Dense
from asterism.serve.local.slabs import SPARE, room


@dataclass
class _Row:
    """Places for one parameter's matrices."""

    woven: bool
    free: list[Tensor] = field(default_factory=list)


class Shelf:
    """Changes by specialist and parameter. What somebody still holds of a specialist that was taken out is not written over."""

    def __init__(self, parameters: Mapping[str, Tensor], weave: Callable[[str], bool]) -> None:
        """`parameters`: the live generalist's, whose data may move here; `weave` says of which parameters the matrices are woven."""
        self._parameters, self._weave = parameters, weave
        self._rows: dict[str, _Row] = {}
        self._changes: dict[str, dict[str, Change]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._changes

    @property
    def names(self) -> tuple[str, ...]:
        """The specialists, in the order in which they came."""
        return tuple(self._changes)

    def change(self, name: str, parameter: str) -> Change | None:
        """What a specialist holds for a parameter; None where it is the generalist's."""
        return self._changes[name].get(parameter)

    @torch.inference_mode(False)
    def put(self, names: Iterable[str], change_of: Callable[[str, str], Change | None]) -> None:
        """Load specialists, a parameter at a time, so that no more than that is in memory twice. On any error nothing is kept."""
        names, kept = tuple(names), dict[str, dict[str, Change]]()
        for parameter, own in self._parameters.items():
            found = {name: change for name in names if (change := change_of(name, parameter)) is not None}
            dense = [name for name, change in found.items() if isinstance(change, Dense)]
            if own.ndim == 2 and dense:
                self._make_room(parameter, own, len(dense))
            for name, change in found.items():
                placed = self._placed(parameter, change.tensor) if isinstance(change, Dense) and own.ndim == 2 else change
                kept.setdefault(name, {})[parameter] = placed
        self._changes |= {name: kept.get(name, {}) for name in names}

    def take_out(self, name: str) -> None:
        """Forget a specialist; its places are used again when nobody holds its changes."""
        del self._changes[name]

    @property
    def nbytes(self) -> int:
        """Bytes of the specialists' changes."""
        held = {id(change): _tensors(change) for changes in self._changes.values() for change in changes.values()}
        return sum(tensor.nbytes for tensors in held.values() for tensor in tensors)

    def _make_room(self, parameter: str, own: Tensor, count: int) -> None:
        row = self._rows.get(parameter)
        if row is None:  # the generalist's matrix moves in first: mixtures often have weight on it
            row = self._rows[parameter] = _Row(self._weave(parameter))
            spare = SPARE if own.device.type == "cpu" and not row.woven else 0
            first, *row.free = room(own, count + 1 + spare, woven=row.woven)
            own.data = first.copy_(own)
        if len(row.free) < count:
            row.free += room(own, count - len(row.free), woven=row.woven)

    def _placed(self, parameter: str, tensor: Tensor) -> Dense:
        free = self._rows[parameter].free
        place = free.pop(0)
        change = Dense(place.copy_(tensor))
        weakref.finalize(change, free.insert, 0, place)
        return change


def _tensors(change: Change) -> tuple[Tensor, ...]:
    return (change.tensor,) if isinstance(change, Dense) else (change.up, change.down)
