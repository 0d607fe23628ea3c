"""What two models of a library changed, compared part by part."""

from __future__ import annotations

import torch
from torch import Tensor

from asterism.core.conflict import Conflict, sign_conflict
from asterism.core.progress import track
from asterism.models.deltas import delta_of
from asterism.models.library import Library
from asterism.route.experts import GENERALIST

PARTS = ("attention", "mlp", "other")
"""What parameters are told apart by; `other` are norms, embeddings and head."""


def conflicts(library: Library, left: str, right: str) -> dict[str, Conflict]:
    """The conflict of two deltas from the generalist: of attention, of MLPs, of other parameters, and of `all`.

    Parameters that neither changes are not counted. "generalist" has a delta of zero. One parameter of both is in memory at a time, in
    float32 or wider. UnknownName for a specialist that the library lacks.
    """
    found = {part: Conflict() for part in PARTS}
    for parameter in track(list(library.anatomy.shapes), "deltas"):
        x, y = (_delta(library, name, parameter) for name in (left, right))
        if x is None and y is None:
            continue
        role = library.anatomy.role_of(parameter)
        present = x if x is not None else y
        assert present is not None
        one, other = (torch.zeros_like(present) if delta is None else delta for delta in (x, y))
        found[role if role in PARTS else "other"] += sign_conflict(one, other, parameter)
    return {**found, "all": sum(found.values(), Conflict())}


def _delta(library: Library, name: str, parameter: str) -> Tensor | None:
    change = None if name == GENERALIST else library.change(name, parameter)
    return None if change is None else delta_of(library, change, parameter)
