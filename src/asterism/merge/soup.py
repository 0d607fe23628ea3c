"""Greedy model soup: the mean of those specialists that together predict held-out text best.

Wortsman et al. 2022, arXiv:2203.05482, recipe 1, with the mean loss in the place of accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from asterism.core.errors import DataError
from asterism.merge.live import mean_of, merged
from asterism.models.library import Library
from asterism.models.likelihood import read
from asterism.models.types import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Soup:
    """A greedy soup, and how it came about."""

    model: PreTrainedModel
    names: tuple[str, ...]
    """Who is in it, in the order of joining."""
    loss: float
    """The soup's mean loss, nats a token."""
    alone: Mapping[str, float]
    """Each specialist's, best first."""
    tried: Mapping[str, float]
    """Loss of the soup so far with each next specialist; below or equal to what stood, it joined."""


def greedy_soup(library: Library, texts: Mapping[str, Sequence[str]], *, max_length: int = 256) -> Soup:
    """Go through the specialists by their own loss, best first; each joins the mean if the loss does not rise.

    texts: domain -> held-out texts; the loss is the mean over domains of the mean over texts, nats a token. N + N - 1 readings of the
    texts. Source: arXiv:2203.05482, recipe 1. Raises DataError for no texts or texts too short to score.
    """
    if not texts:
        raise DataError("A soup is tasted on texts.", met="none", mend="give held-out texts by domain")
    if not library.names:
        raise DataError("There is nothing to merge.", met="a library without specialists", mend="train or add specialists")
    losses = {name: _loss(library.model(name), library, texts, max_length) for name in library.names}
    alone = dict(sorted(losses.items(), key=lambda pair: (pair[1], pair[0])))
    first, *others = alone
    names, model, best = [first], _average(library, [first]), alone[first]
    tried = {first: best}
    for name in others:
        candidate = _average(library, [*names, name])
        tried[name] = _loss(candidate.requires_grad_(False), library, texts, max_length)
        if tried[name] <= best:
            names, model, best = [*names, name], candidate, tried[name]
    return Soup(model.requires_grad_(True), tuple(names), best, alone, tried)


def _average(library: Library, names: Sequence[str]) -> PreTrainedModel:
    return merged(library, names, lambda parameter, own: mean_of(own))


def _loss(model: PreTrainedModel, library: Library, texts: Mapping[str, Sequence[str]], max_length: int) -> float:
    means = [float(read(model, library.tokenizer, own, max_length=max_length)[1].nanmean()) for own in texts.values()]
    total = sum(means) / len(means)
    if total != total:
        mend = "give each domain a text of two tokens or more, and models that are finite"
        raise DataError("A loss is not a number.", met=", ".join(texts), mend=mend)
    return total
