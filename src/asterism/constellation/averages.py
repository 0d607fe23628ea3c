"""One mixture for many texts: the mean of what each asks for, and so of the parameters that each would be answered with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import DataError, SettingsError


def domain_mixture(
    constellation: Constellation, domain: str, settings: MixtureSettings | None = None, texts: Sequence[str] | None = None
) -> Mixture:
    """The mean mixture of a domain: of `texts`, or of the domain's own probes, whose fingerprints the index keeps.

    Without texts nothing can be read, so `settings.mode` must be `fast` (the default here then). Raises UnknownName for a domain
    that the index lacks, SettingsError for another mode without texts.
    """
    rows = constellation.fingerprints(domain)
    settings = settings or MixtureSettings(top_k=min(3, len(constellation.domains)), mode="fast" if texts is None else "evidence")
    if texts is not None:
        return mean_mixture(constellation.mixtures(texts, settings))
    if settings.mode != "fast":
        mend = "give the texts, or choose mode fast, which needs none"
        raise SettingsError("The index keeps the fingerprints of probes, not their texts.", met=f"mode {settings.mode}", mend=mend)
    return mean_mixture(constellation.mixture_from(rows, settings=settings))


def mean_mixture(mixtures: Sequence[Mixture]) -> Mixture:
    """Mixture whose composed parameters are the mean of those of `mixtures`, summed in float64.

    A specialist that a mixture does not name has weight 0 there; its coefficient is the mean where it is named. Raises DataError for no
    mixture, SettingsError where their scales or their modules' weights are not of one kind.
    """
    if not mixtures:
        raise DataError("There is no mixture to take the mean of.", met="none", mend="give at least one")
    first = mixtures[0]
    if any(one.scale != first.scale or one.modules.keys() != first.modules.keys() for one in mixtures):
        met = ", ".join(f"scale {one:g}" for one in sorted({one.scale for one in mixtures}))
        raise SettingsError("Mixtures of different kinds have no mean.", met=met, mend="make them with the same settings")
    names = tuple(dict.fromkeys(name for one in mixtures for name in one.specialists))
    named = torch.tensor([[name in one.specialists for one in mixtures] for name in names])
    coefficients = _summed(names, mixtures, [one.coefficients[:, None] for one in mixtures])[:, 0] / named.sum(dim=1)
    return Mixture(
        names,
        _mean(names, mixtures, [one.weights for one in mixtures]),
        coefficients.float(),
        {path: _mean(names, mixtures, [one.modules[path] for one in mixtures]) for path in first.modules},
        generalist=sum(one.generalist for one in mixtures) / len(mixtures),
        scale=first.scale,
    )


def _mean(names: Sequence[str], mixtures: Sequence[Mixture], rows: Sequence[Tensor]) -> Tensor:
    return (_summed(names, mixtures, rows) / len(mixtures)).float()


def _summed(names: Sequence[str], mixtures: Sequence[Mixture], rows: Sequence[Tensor]) -> Tensor:
    """Rows [K, out] of each mixture's own specialists, summed over the mixtures: [N, out] float64 on the CPU."""
    place = {name: i for i, name in enumerate(names)}
    total = torch.zeros(len(names), rows[0].shape[1], dtype=torch.float64)
    for one, own in zip(mixtures, rows, strict=True):
        total[[place[name] for name in one.specialists]] += own.detach().to("cpu", torch.float64)
    return total
