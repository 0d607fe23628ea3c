"""A composition bound to the tensors that it names: they stay as long as somebody holds it, whatever becomes of the library."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor

from asterism.compose.mixed import composed_vectors
from asterism.compose.plan import Plan, Terms
from asterism.models.anatomy import Anatomy
from asterism.models.changes import Change, Dense
from asterism.serve.jobs import Composition


class Bound:
    """How each parameter is composed under one composition. Equal only to itself: a name may later mean other tensors."""

    def __init__(self, composition: Composition, anatomy: Anatomy, like: Tensor, change_of: Callable[[str, str], Change | None]) -> None:
        """`like`, `change_of` and errors as `Plan` and its `terms`."""
        plan = Plan(anatomy, [composition.mixture], composition.settings, like)
        self.key, self.specialists = composition.key, plan.specialists
        self.terms: dict[str, Terms] = {name: found for name in plan.parameters if (found := plan.terms(name, change_of)) is not None}
        """Of the parameters that are not the generalist's own."""
        self.nothing = torch.zeros(1, 1, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
        """Weights of a parameter that nobody has weight in."""
        self._vectors: dict[str, Tensor] = {}

    @cached_property
    def reads(self) -> dict[str, int]:
        """Bytes of the matrices that a mixed row meets beyond the generalist's, by whose they are: a specialist's, or under "" the
        generalist's own beside them. Of low-rank changes, those of the matrices that they are added to."""
        found: dict[str, int] = {}
        for terms in self.terms.values():
            sizes = {part.specialist: part.change.tensor.nbytes for part in terms.parts if _is_matrix(part.change)}
            if sizes and (isinstance(terms.base, Tensor) or terms.base != 0):
                sizes[""] = max(sizes.values())
            for name, size in sizes.items():
                found[name] = found.get(name, 0) + size
        return found

    def vector(self, name: str, own: Tensor) -> Tensor:
        """A bias or norm vector [out] under this composition; `own` is the generalist's."""
        if name not in self.terms:
            return own
        if name not in self._vectors:
            self._vectors[name] = composed_vectors(self.terms[name], own, 1)[0]
        return self._vectors[name]


def _is_matrix(change: Change) -> TypeGuard[Dense]:
    return isinstance(change, Dense) and change.tensor.ndim == 2
