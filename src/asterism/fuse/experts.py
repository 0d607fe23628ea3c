"""A LoRA adapter and the shape of its backbone: one change per function of each block. No backbone's weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from asterism.core.errors import DataError
from asterism.core.lowrank import Factors
from asterism.models.adapters import Adapter, read_adapter
from asterism.models.anatomy import anatomy_of, skeleton
from asterism.models.functions import Slot, slots_of
from asterism.models.loading import config_at
from asterism.models.sources import folder_at
from asterism.models.types import PreTrainedConfig


@dataclass(frozen=True, eq=False)
class Expert:
    """One side of a fusion: an adapter, cut into the slots of its backbone."""

    name: str
    config: PreTrainedConfig
    n_blocks: int
    hidden_size: int
    slots: tuple[Slot, ...]
    """Every slot of the backbone, in model order."""
    factors: Mapping[Slot, Factors]
    """Slot -> up [outputs, r], down [r, inputs] of its change, float32 or float64, LoRA's scale taken into `up`; slots with a change only.

    Slots of one fused parameter share `down`. alpha / r and, of rank-stabilised LoRA, alpha / sqrt(r) are such scales.
    """
    adapter: Adapter
    """The adapter's file, by the backbone's parameter names."""
    others: tuple[str, ...]
    """Parameters that the adapter changes outside the blocks (the head): they take no part, and a target keeps them as they are."""

    @property
    def rank(self) -> int:
        """The largest rank of a change."""
        return max(up.shape[1] for up, _ in self.factors.values())

    def stored(self, parameter: str) -> Factors:
        """B [out, r] and A [r, in] of a parameter as the file holds them, in float32: no scale taken in."""
        pair = self.adapter.pairs[parameter]
        read = self.adapter.checkpoint.tensor
        return read(pair.up, dtype=torch.float32), read(pair.down, dtype=torch.float32)


def open_expert(model: str | Path | PreTrainedConfig, adapter: str | Path, name: str | None = None, *, is_target: bool = False) -> Expert:
    """Read a PEFT LoRA folder beside its backbone's config: of a model's folder or Hub id only config.json is looked at.

    A source's slots without a change (B or A all zero) are left out. A target may be fresh (B zero), but not with A zero, where B could
    not learn. Raises MismatchError (the adapter does not fit the config; a rank other than its config's, or 0), DataError (NaN or infinity;
    an adapter that changes nothing, or nothing in the blocks), UnsupportedError (DoRA and what else is not plain LoRA; an architecture or
    a linear weight that is not known), StorageError (missing or damaged files).
    """
    folder = folder_at(adapter)
    config = config_at(model)
    bare = skeleton(config)
    anatomy = anatomy_of(bare)
    fitted = read_adapter(folder).fitted(anatomy, bare.base_model_prefix)
    slots = tuple(slots_of(bare))
    factors = {slot: each for slot, each in _cut(slots, fitted).items() if is_target or _is_alive(*each)}
    called = name or folder.name
    owners = {slot.parameter for slot in slots}
    others = tuple(parameter for parameter in fitted.pairs if parameter not in owners)
    if not factors or (is_target and not any(down.any() for _, down in factors.values())):
        if is_target:
            wrong, mend = "The target's adapter has nothing that a fusion could change.", "give a LoRA of the blocks' linear modules"
        else:
            wrong, mend = "An adapter changes nothing in the blocks: there is nothing to transfer.", "train it, or leave this source out"
        raise DataError(wrong, met=f"{called} in {folder}", mend=mend)
    return Expert(called, config, anatomy.n_blocks, anatomy.hidden_size, slots, factors, fitted, others)


def _cut(slots: tuple[Slot, ...], adapter: Adapter) -> dict[Slot, Factors]:
    """The change of every slot that the adapter has one for; every tensor in the file is read once, and checked."""
    changes = adapter.changes
    return {slot: (slot.of(changes[slot.parameter].up), changes[slot.parameter].down) for slot in slots if slot.parameter in changes}


def _is_alive(up: torch.Tensor, down: torch.Tensor) -> bool:
    return bool(up.any()) and bool(down.any())
