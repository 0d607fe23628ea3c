"""A composition bound to the tensors that it names: they stay as long as somebody holds it, whatever becomes of the library."""

from __future__ import annotations

from collections.abc import Callable

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

    @property
    def members(self) -> int:
        """The most tensors that one matrix is made of: the generalist's and the specialists' whole ones."""
        return max((_members(terms) for terms in self.terms.values()), default=1)

    def vector(self, name: str, own: Tensor) -> Tensor:
        """A bias or norm vector [out] under this composition; `own` is the generalist's."""
        if name not in self.terms:
            return own
        if name not in self._vectors:
            self._vectors[name] = composed_vectors(self.terms[name], own, 1)[0]
        return self._vectors[name]


def _members(terms: Terms) -> int:
    based = isinstance(terms.base, Tensor) or terms.base != 0
    return int(based) + sum(isinstance(part.change, Dense) for part in terms.parts)
