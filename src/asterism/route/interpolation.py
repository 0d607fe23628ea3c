"""Paths between two models of a library, of their weights or of their MLPs' outputs, and the loss along them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import acos, sin
from typing import Any, Literal, Protocol, get_args

import torch

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.core.gram import gram
from asterism.core.mixing import mix_into
from asterism.core.progress import track
from asterism.core.statistics import mean_interval
from asterism.models.library import Library
from asterism.models.loading import build
from asterism.models.types import PreTrainedModel
from asterism.route.build import route
from asterism.route.experts import GENERALIST, Attention
from asterism.route.scoring import TextLosses, text_losses
from asterism.route.settings import RouterSettings

Kind = Literal["lerp", "slerp", "activation"]
SHARES = tuple(step / 10 for step in range(11))
"""The paper's eleven points."""
STRAIGHT = 0.9995
"""|cosine| of two models' weights above which SLERP is linear, as is usual."""


class ModelPath(Protocol):
    """One model after another between two ends."""

    def weights(self, share: float) -> tuple[float, float]:
        """Of the first and of the second model. SettingsError for a share outside [0, 1]."""
        ...

    def at(self, share: float) -> PreTrainedModel:
        """The model that is `share` of the first and 1 - share of the second; it is the next call's too, so use it before."""
        ...


def path(library: Library, left: str, right: str, kind: Kind = "lerp", *, attention: Attention = "refuse") -> ModelPath:
    """The path from `right` (share 0) to `left` (share 1), specialists or "generalist".

    lerp: share theta_L + (1 - share) theta_R. slerp: the weights' arc, see `arc`. activation: share E_L(x) + (1 - share) E_R(x), the
    same share of both MLPs' outputs in every block. Source: arXiv:2411.02207, section 2.2 and appendix A.1.
    attention: of `activation`, what to do where more than the MLPs differs (`asterism.route.experts.Attention`).
    Raises UnknownName for an end or a kind that is not known, SettingsError for equal ends, MismatchError under attention="refuse".
    """
    if kind not in get_args(Kind):
        raise UnknownName("kind of path", kind, get_args(Kind))
    return ActivationPath(library, left, right, attention) if kind == "activation" else WeightPath(library, left, right, kind)


class WeightPath:
    """Weights between those of two models, written into one model again and again.

    Parameters that neither end changes are the generalist's own storage; the others take one model's memory beside the two ends'. An end
    comes out bit for bit.
    """

    def __init__(self, library: Library, left: str, right: str, kind: Literal["lerp", "slerp"]) -> None:
        check_ends(library, left, right)
        ends = live(library, left), live(library, right)
        self.cosine: float | None = None
        """Of the two models' weights, each one long vector; SLERP's alone."""
        both = zip(*(model.named_parameters() for model in ends), strict=True)
        self._ends = {name: (one.detach(), other.detach()) for (name, one), (_, other) in both if one.data_ptr() != other.data_ptr()}
        if kind == "slerp":
            self.cosine = _cosine(*ends)
        tensors = {name: library.tensor(name) for name in library.anatomy.shapes}
        tensors |= {name: torch.empty_like(one) for name, (one, _) in self._ends.items()}
        self._model = build(library.config, tensors, library.dtype, folder=library.folder())

    def weights(self, share: float) -> tuple[float, float]:
        check_share(share)
        return (share, 1 - share) if self.cosine is None else arc(self.cosine, share)

    def at(self, share: float) -> PreTrainedModel:
        weights = [torch.tensor([weight], dtype=torch.float64) for weight in self.weights(share)]
        for name, parameter in self._model.named_parameters():
            if name in self._ends:
                mix_into(parameter.detach(), self._ends[name], weights, axis=0)
        return self._model


class ActivationPath:
    """Both MLPs of every block, their outputs weighed alike in all of them: a routed model with fixed gates."""

    def __init__(self, library: Library, left: str, right: str, attention: Attention = "refuse") -> None:
        check_ends(library, left, right)
        experts = tuple(name for name in (left, right) if name != GENERALIST)
        settings = RouterSettings(gate="fixed", experts=experts, with_generalist=len(experts) == 1)
        self._model = route(library, settings, attention=attention)
        self._turned = left == GENERALIST  # the generalist is the last expert

    def weights(self, share: float) -> tuple[float, float]:
        check_share(share)
        return share, 1 - share

    def at(self, share: float) -> PreTrainedModel:
        first, second = self.weights(share)
        self._model.set_gates(torch.tensor((second, first) if self._turned else (first, second), dtype=torch.float64))
        return self._model


def arc(cosine: float, share: float) -> tuple[float, float]:
    """The weights of two vectors for the point between them on their arc: (sin(share a), sin((1 - share) a)) / sin(a), a = arccos(cosine).

    On the line, (share, 1 - share), where |cosine| > STRAIGHT: parallel vectors have no other arc and antiparallel ones no single one.
    Source: Shoemake 1985; arXiv:2411.02207, appendix A.1 (whose alpha is our share).
    """
    if abs(cosine) > STRAIGHT:
        return share, 1 - share
    angle = acos(cosine)
    return sin(share * angle) / sin(angle), sin((1 - share) * angle) / sin(angle)


def check_ends(library: Library, left: str, right: str) -> None:
    """UnknownName unless both are specialists or "generalist", SettingsError if they are the same."""
    known = (GENERALIST, *library.names)
    for name in (left, right):
        if name not in known:
            raise UnknownName("model of the library", name, known)
    if left == right:
        raise SettingsError("A path has two ends.", met=f"{left} and {right}", mend="name two different models")


def live(library: Library, name: str) -> PreTrainedModel:
    """The model of a specialist, or of "generalist"."""
    return library.model(None if name == GENERALIST else name)


def check_share(share: float) -> None:
    """SettingsError outside [0, 1]."""
    if not 0 <= share <= 1:
        raise SettingsError("A share lies between 0 and 1.", met=share, mend="0 is the second model, 1 the first")


@dataclass(frozen=True, eq=False)
class Sweep:
    """What a path loses on texts."""

    kind: Kind
    shares: tuple[float, ...]
    losses: TextLosses
    """[points, n]"""

    def rows(self, seed: int = 0) -> list[dict[str, Any]]:
        """A row a point: kind, share, mean loss in nats a token and its 95 % bootstrap interval over texts."""
        found = []
        for share, own in zip(self.shares, self.losses.whole, strict=True):
            loss, low, high = mean_interval(own.numpy(), seed)
            found.append({"kind": self.kind, "share": share, "loss": loss, "low": low, "high": high})
        return found


def sweep(
    library: Library,
    left: str,
    right: str,
    texts: Sequence[str],
    kinds: Iterable[Kind] = ("lerp",),
    *,
    shares: Sequence[float] = SHARES,
    max_length: int = 256,
    attention: Attention = "refuse",
) -> dict[Kind, Sweep]:
    """The loss on texts along each kind of path; points and errors as `path`, texts as `text_losses`.

    Models that two paths of weights have in common (their ends; all of them where SLERP is linear) are scored once.
    """
    if not shares:
        raise DataError("A sweep needs points.", met="no shares", mend="e.g. 0, 0.5, 1")
    known: dict[tuple[bool, float, float], TextLosses] = {}
    found: dict[Kind, Sweep] = {}
    for kind in dict.fromkeys(kinds):
        way, rows = path(library, left, right, kind, attention=attention), []
        for share in track(shares, f"{kind} from {right} to {left}"):
            point = (kind == "activation", *way.weights(share))
            if point not in known:
                known[point] = text_losses(way.at(share), library.tokenizer, texts, max_length=max_length)
            rows.append(known[point])
        found[kind] = Sweep(kind, tuple(shares), TextLosses.stack(rows))
    return found


def _cosine(left: PreTrainedModel, right: PreTrainedModel) -> float:
    """Of all weights, tied ones once."""
    total = torch.zeros(2, 2, dtype=torch.float64)
    theirs: Mapping[str, torch.Tensor] = dict(right.named_parameters())
    for name, own in left.named_parameters():
        total += gram([own.detach(), theirs[name].detach()], name=name)
    return float(total[0, 1] / (total[0, 0] * total[1, 1]).sqrt())
