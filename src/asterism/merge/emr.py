"""EMR-Merging: one unified delta for all specialists, and of each a mask and a number that turn it into its own delta again.

Huang et al. 2024, arXiv:2405.17461. A library artefact of about one model and a bit a parameter and specialist, where N specialists
are N models. It takes no data and is not one model for all queries: each specialist is taken by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asterism.core.errors import StorageError, UnknownName
from asterism.core.gram import accumulator
from asterism.core.progress import track
from asterism.merge.keeping import keep, kept, origin_of, place
from asterism.merge.live import assembled
from asterism.models.changes import Change, Dense
from asterism.models.deltas import delta_of, original
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel

WHAT = "EMR parts"


def elect(deltas: Sequence[Tensor]) -> Tensor:
    """The unified delta, K of [*shape] -> [*shape]: each entry has the sign of the deltas' sum, and the largest magnitude among the deltas
    of that sign; 0 where none is. A sum of 0 counts as +, as in our TIES (the paper's formula gives 0 there, its code -).
    """
    upward = sum(deltas[1:], deltas[0]) >= 0
    largest = torch.zeros_like(deltas[0])
    for delta in deltas:
        largest = torch.maximum(largest, torch.where(upward, delta, -delta))
    return torch.where(upward, largest, -largest)


def agreeing(delta: Tensor, unified: Tensor) -> Tensor:
    """A specialist's mask: bool, where its delta and the unified one have the same sign; entries of 0 have none."""
    return ((delta > 0) & (unified > 0)) | ((delta < 0) & (unified < 0))


def packed(mask: Tensor) -> Tensor:
    """A bool tensor as bits, [*shape] -> [ceil(n / 8)] uint8."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy()))


def unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """What `packed` took, as bool."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=prod(shape))).view(*shape).bool()


@dataclass(frozen=True)
class Size:
    """Bytes of the artefact, and of what the specialists hold themselves (changed tensors, or their factors), in the library's dtype."""

    kept: int
    specialists: int

    @property
    def share(self) -> float:
        """kept / specialists: below 1 where it is the smaller. That of a few LoRA specialists is not."""
        return self.kept / self.specialists if self.specialists else 1.0


class Emr:
    """The unified delta, masks and rescalers of a library's specialists. `Emr.build`, or `Emr.load` what was saved."""

    def __init__(
        self, library: Library, origin: Mapping[str, Any], rescalers: Mapping[str, float], size: Size, tensors: Mapping[str, Tensor]
    ) -> None:
        self.library, self.size = library, size
        self.rescalers = dict(rescalers)
        """Specialist -> the factor on its masked unified delta."""
        self._origin, self._tensors = origin, tensors

    @property
    def names(self) -> tuple[str, ...]:
        """The specialists that it holds."""
        return tuple(self.rescalers)

    @classmethod
    @torch.no_grad()
    def build(cls, library: Library) -> Emr:
        """Elect, mask and rescale; one parameter of every specialist is in memory at a time, and the result.

        rescaler_i = sum |delta_i| / sum |mask_i unified|, over all parameters, sums in float64.
        """
        tensors: dict[str, Tensor] = {}
        whole, masked = (dict.fromkeys(library.names, 0.0) for _ in range(2))
        own_bytes = 0
        for parameter in track(list(library.anatomy.shapes), "electing"):
            changes = _changes(library, parameter)
            if not changes:
                continue
            own_bytes += sum(map(_entries, changes.values())) * library.dtype.itemsize
            deltas = {name: delta_of(library, change, parameter) for name, change in changes.items()}
            unified = elect(list(deltas.values())).to(library.dtype)
            tensors[_unified(parameter)] = unified.cpu()
            for name, delta in deltas.items():
                mask = agreeing(delta, unified)
                tensors[_mask(name, parameter)] = packed(mask)
                whole[name] += float(delta.abs().sum(dtype=torch.float64))
                masked[name] += float(unified.where(mask, 0).abs().sum(dtype=torch.float64))
        rescalers = {name: whole[name] / masked[name] if masked[name] else 1.0 for name in library.names}
        size = Size(sum(tensor.nbytes for tensor in tensors.values()), own_bytes)
        return cls(library, origin_of(library, library.names), rescalers, size, tensors)

    def save(self, folder: str | Path | None = None) -> Path:
        """Write it, by default to `merging/emr` in the library."""
        folder = Path(folder) if folder else place(self.library, "emr")
        facts = {"rescalers": self.rescalers, "bytes": asdict(self.size)}
        keep(folder, self._origin, facts, dict(self._tensors))
        return folder

    @classmethod
    def load(cls, library: Library, folder: str | Path | None = None) -> Emr:
        """Open what was saved; its tensors are read when used. StaleError when the generalist or a specialist of it has changed.

        A specialist that has left the library meanwhile is still served: the artefact needs the generalist alone.
        """
        found = kept(Path(folder) if folder else place(library, "emr"), WHAT)
        found.check_models(library, gone=True)
        try:
            rescalers, sizes = found.facts["rescalers"], found.facts["bytes"]
            rescalers = {name: float(value) for name, value in rescalers.items()}
            return cls(library, found.facts["origin"], rescalers, Size(**sizes), found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            mend = "make it again: Emr.build(library).save()"
            raise StorageError("A file is damaged.", met=f"{found.folder}: {error!r}", mend=mend) from None

    @torch.no_grad()
    def delta(self, name: str, parameter: str) -> Tensor | None:
        """rescaler * mask * unified, in float32 or wider, in the parameter's shape; None where the specialist changes nothing."""
        self._check(name)
        shapes = self.library.anatomy.shapes
        if parameter not in shapes:
            raise UnknownName("parameter", parameter, shapes)
        if _mask(name, parameter) not in self._tensors:
            return None
        unified = self._tensors[_unified(parameter)]
        mask = unpacked(self._tensors[_mask(name, parameter)], shapes[parameter])
        return (unified.to(accumulator(unified)) * self.rescalers[name]).where(mask, 0.0).to(self.library.device)

    def model(self, name: str) -> PreTrainedModel:
        """The generalist with a specialist's part of the unified delta, as a live model of its own. No specialist's weights are read."""
        self._check(name)

        def entry(parameter: str) -> Tensor | None:
            delta = self.delta(name, parameter)
            return None if delta is None else original(self.library, parameter) + delta

        return assembled(self.library, entry)

    def _check(self, name: str) -> None:
        if name not in self.rescalers:
            raise UnknownName("specialist", name, self.rescalers)


def _changes(library: Library, parameter: str) -> dict[str, Change]:
    """Who changes a parameter, in alphabetical order: the library's order changes no bit of the sums."""
    found = {name: library.change(name, parameter) for name in sorted(library.names)}
    return {name: change for name, change in found.items() if change is not None}


def _entries(change: Change) -> int:
    """Numbers that a change holds."""
    return change.tensor.numel() if isinstance(change, Dense) else change.up.numel() + change.down.numel()


def _unified(parameter: str) -> str:
    return f"unified:{parameter}"


def _mask(name: str, parameter: str) -> str:
    return f"mask:{name}:{parameter}"
