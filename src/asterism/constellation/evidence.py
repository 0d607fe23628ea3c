"""Mixtures by Bayes' rule: a prior from the constellation times how well each candidate predicts the query.

The fingerprint shortlists K specialists. Each of them and the generalist reads the query once; what it makes of it, which the paper's
signature pass computes and throws away, is the evidence. The generalist is a candidate like the others: its weight is what is left of
the generalist in the composed parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from asterism.constellation.basis import Basis, make_basis
from asterism.constellation.calibration import Calibration
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.constellation.weighing import noisy_weights, seeded
from asterism.core.errors import UnknownName
from asterism.core.weights import posterior, top_k

Reader = Callable[[str, Sequence[int]], Tensor]
"""(specialist, rows of the texts that shortlisted it) -> their mean losses [m] in nats a token."""


class Evidence(NamedTuple):
    """How well the generalist and the specialists predict n texts, in nats a token; NaN for a text too short to tell."""

    generalist: Tensor
    """[n]."""
    specialists: Mapping[str, Tensor] | Reader
    """Specialist -> [n], or a function that reads only what is asked for."""

    def of(self, name: str, rows: Sequence[int]) -> Tensor:
        """Losses of some rows under one specialist, [m]."""
        if callable(self.specialists):
            return self.specialists(name, rows)
        if name not in self.specialists:
            raise UnknownName("specialist among the losses", name, self.specialists)
        return self.specialists[name][list(rows)]


def evidence_mixtures(
    names: Sequence[str],
    coefficients: Tensor,
    evidence: Evidence,
    settings: MixtureSettings,
    index: IndexSettings,
    calibration: Calibration,
    *,
    standard: Tensor | None,
    nodes: int,
    texts: Sequence[str] | None = None,
) -> list[Mixture]:
    """One mixture a row of `coefficients` [n, N], whose columns are `names`; every specialist is asked once, for the rows that chose it.

    w_i ~ exp(prior z_i - loss_i / temperature) and w_G ~ exp(generalist + prior z_G - loss_G / temperature), with z the rows of
    `standard` [n, N + 1] (see `standardised`), which a prior of 0 does not need. Cost: one forward pass of a text in each of K
    specialists and the generalist. Noise on the weights, where the index asks for it, needs `texts`. Raises SettingsError when top_k
    exceeds N.
    """
    chosen = top_k(coefficients, settings.top_k, signed=index.ranking == "signed")
    losses = torch.full((len(chosen), settings.top_k + 1), torch.nan)
    losses[:, -1] = evidence.generalist
    for place in map(int, chosen.unique()):
        rows, slots = (chosen == place).nonzero(as_tuple=True)
        losses[rows, slots] = evidence.of(names[place], rows.tolist()).float()
    prior = _log_prior(chosen, standard, calibration.prior, calibration.generalist)
    shares = _noisy(posterior(prior, losses, calibration.temperature), settings, index, texts)
    return _mixtures(names, chosen, shares, coefficients, calibration.scale, nodes, losses)


def fast_mixtures(
    names: Sequence[str],
    coefficients: Tensor,
    settings: MixtureSettings,
    index: IndexSettings,
    calibration: Calibration,
    *,
    standard: Tensor,
    nodes: int,
    texts: Sequence[str] | None = None,
) -> list[Mixture]:
    """The prior alone: no specialist reads the query. Arguments and errors as `evidence_mixtures`."""
    chosen = top_k(coefficients, settings.top_k, signed=index.ranking == "signed")
    prior = _log_prior(chosen, standard, calibration.fast_prior, calibration.fast_generalist)
    shares = _noisy(posterior(prior), settings, index, texts)
    return _mixtures(names, chosen, shares, coefficients, calibration.fast_scale, nodes)


def prior_basis(centroids: Tensor, general_mean: Tensor | None) -> tuple[Basis, float]:
    """(axes of the domains and, last, of general text; what their coefficients are measured in): centroids [N, d], general_mean [d].

    Symmetric orthogonalisation after centring on the mean, whatever the index uses: with general text as one more domain, a query
    that needs no specialist is known by its fingerprint. The unit is the spread of the centroids' own coefficients.
    """
    rows = centroids if general_mean is None else torch.cat([centroids, general_mean[None]])
    basis = make_basis(rows, None, IndexSettings(orthogonalisation="lowdin", centring="mean"))
    own = basis.coefficients(rows).double()
    unit = float((own - own.mean(dim=1, keepdim=True)).square().mean().sqrt())
    return basis, unit if unit > 0 else 1.0


def standardised(fingerprints: Tensor, basis: Basis, unit: float, domains: int) -> Tensor:
    """[n, N + 1]: coefficients of each domain and, last, of general text, centred in each row, in standard units.

    Without general probes the last column is 0: general text is then taken to be average.
    """
    found = basis.coefficients(fingerprints)
    found = (found - found.mean(dim=-1, keepdim=True)) / unit
    return found if found.shape[-1] > domains else torch.cat([found, found.new_zeros(len(found), 1)], dim=-1)


def _log_prior(chosen: Tensor, standard: Tensor | None, strength: float, generalist: float) -> Tensor:
    """[n, K + 1] log prior of the chosen [n, K] and, last, the generalist."""
    flat = torch.zeros(len(chosen), chosen.shape[1] + 1)
    if strength and standard is not None:
        flat = strength * torch.cat([standard.gather(-1, chosen), standard[:, -1:]], dim=1)
    return flat + torch.tensor([0.0] * chosen.shape[1] + [generalist])


def _noisy(shares: Tensor, settings: MixtureSettings, index: IndexSettings, texts: Sequence[str] | None) -> Tensor:
    """Shares [n, K + 1], each row with the noise of its text."""
    if index.noise_site != "weights" or not index.noise:
        return shares
    drawn = [noisy_weights(row[:, None], index.noise, seeded(index, texts, place), settings)[:, 0] for place, row in enumerate(shares)]
    return torch.stack(drawn)


def _mixtures(
    names: Sequence[str], chosen: Tensor, shares: Tensor, coefficients: Tensor, scale: float, nodes: int, losses: Tensor | None = None
) -> list[Mixture]:
    """Shares [n, K + 1] of the chosen [n, K] and the generalist as mixtures, the same at every node."""
    kept, found = coefficients.gather(-1, chosen), []
    for row, places in enumerate(chosen.tolist()):
        own = tuple(names[int(place)] for place in places)
        read = {} if losses is None else dict(zip((*own, ""), losses[row].tolist(), strict=True))
        weights = shares[row, :-1, None].expand(-1, nodes).contiguous()
        found.append(Mixture(own, weights, kept[row], generalist=float(shares[row, -1]), scale=scale, losses=read))
    return found
