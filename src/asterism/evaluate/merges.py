"""Static merges as candidates, a class a kind: by a recipe's method, by data, a greedy soup, and EMR, which is one model a specialist."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor

from asterism.core.storage import digest_of
from asterism.evaluate.candidates import OneModel
from asterism.evaluate.passes import score_static
from asterism.evaluate.settings import Protocol
from asterism.merge.by_name import EMR, OTHERS, SOUP
from asterism.merge.emr import Emr
from asterism.merge.learned import LearnedMethod, Texts, learned_merge
from asterism.merge.library import merge
from asterism.merge.methods import METHODS
from asterism.models.batching import Batch
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel

BY_DATA: dict[LearnedMethod, str] = {name: OTHERS[name][0] for name in get_args(LearnedMethod)}
"""Method that reads texts of each domain -> its title."""


class Merged(typing.Protocol):
    """A merge with the setting that was chosen for it: what the evaluation asks of every kind."""

    @property
    def name(self) -> str:
        """In the tables: the method's."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The setting."""
        ...

    @property
    def validation_loss(self) -> float | None:
        """Mean loss on the probes that chose the setting; None where there was nothing to choose."""
        ...

    @property
    def about(self) -> str:
        """One line."""
        ...

    @property
    def told(self) -> dict[str, Any]:
        """What an evaluation was made from. Its digest names kept parts, so it stays what it is."""
        ...

    def score(self, library: Library, picks: Mapping[Protocol, Tensor], batches: Sequence[Batch], n: int) -> dict[str, Tensor]:
        """Protocol -> [n] losses. picks: protocol -> [n] index of the specialist that a probe is routed to."""
        ...


class _Told:
    """What every kind tells of itself alike."""

    @property
    def told(self: Merged) -> dict[str, Any]:
        return {"method": self.name, "parameters": dict(self.parameters), "validation_loss": self.validation_loss}


class _OneForAll(_Told):
    """A merge that is one model for all probes, so that routing does not matter."""

    def score(self: OneModel, library: Library, picks: Mapping[Protocol, Tensor], batches: Sequence[Batch], n: int) -> dict[str, Tensor]:
        return losses(library, self, batches, n)


@dataclass(frozen=True)
class ByRecipe(_OneForAll):
    """A method of recipes: one model for all probes."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    validation_loss: float | None = None

    @property
    def about(self) -> str:
        return _about(METHODS[self.name].title, self.parameters)

    def build(self, library: Library) -> PreTrainedModel:
        """The merged model."""
        return merge(library, self.name, **self.parameters)


@dataclass(frozen=True)
class ByData(_OneForAll):
    """A method that reads texts of each domain: one model for all probes."""

    name: LearnedMethod
    parameters: Mapping[str, Any] = field(default_factory=dict)
    validation_loss: float | None = None
    texts: Texts | None = field(default=None, repr=False)
    """Domain -> texts; None to use what is kept with the library."""

    @property
    def about(self) -> str:
        return _about(BY_DATA[self.name], self.parameters)

    @property
    def told(self) -> dict[str, Any]:
        return super().told | ({"texts": digest_of({name: list(own) for name, own in self.texts.items()})} if self.texts else {})

    def build(self, library: Library) -> PreTrainedModel:
        """The merged model."""
        return learned_merge(library, self.name, self.texts or None, **self.parameters)


@dataclass(frozen=True)
class Soup(_OneForAll):
    """The mean of the specialists that a greedy soup has taken in: one model for all probes."""

    members: Sequence[str]
    validation_loss: float | None = None
    name: str = field(default=SOUP, init=False)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"names": list(self.members)}

    @property
    def about(self) -> str:
        return f"one model: the mean of {', '.join(self.members)}, who together predict validation probes best"

    def build(self, library: Library) -> PreTrainedModel:
        """The merged model."""
        return merge(library, "linear", weight={name: float(name in self.members) for name in library.names})


@dataclass(frozen=True)
class PerTask(_Told):
    """EMR-Merging: one unified delta, and of it a model for each specialist; a probe takes that of the one it is routed to."""

    name: str = field(default=EMR, init=False)
    parameters: Mapping[str, Any] = field(default_factory=dict, init=False)
    validation_loss: None = field(default=None, init=False)

    @property
    def about(self) -> str:
        return "EMR-Merging: one delta for all, a mask and a factor a specialist; a probe takes the one of its largest coefficient"

    def score(self, library: Library, picks: Mapping[Protocol, Tensor], batches: Sequence[Batch], n: int) -> dict[str, Tensor]:
        emr = Emr.build(library)
        each = [losses(library, _Ready(self.name, emr.model(name)), batches, n) for name in library.names]
        return {protocol: torch.stack([own[protocol] for own in each]).gather(0, pick[None])[0] for protocol, pick in picks.items()}


@dataclass(frozen=True, eq=False)
class _Ready:
    """A model as a candidate."""

    name: str
    model: PreTrainedModel

    def build(self, library: Library) -> PreTrainedModel:
        return self.model


def losses(library: Library, candidate: OneModel, batches: Sequence[Batch], n: int) -> dict[str, Tensor]:
    """Protocol -> [n] losses of a candidate that is one model."""
    return {**score_static(library, candidate, batches, n).loss}


def _about(title: str, parameters: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {value:g}" for name, value in parameters.items()) or "no parameters"
    return f"one model: {title} of all specialists, all parameters ({told}, chosen on validation probes)"
