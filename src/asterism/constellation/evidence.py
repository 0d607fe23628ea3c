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
    unit: float,
    nodes: int,
    texts: Sequence[str] | None = None,
) -> list[Mixture]:
    """One mixture a row of `coefficients` [n, N], whose columns are `names`; every specialist is asked once, for the rows that chose it.

    w_i ~ exp(prior z_i - loss_i / temperature), with z the row's centred coefficients in standard units (`unit`), and
    w_G ~ exp(generalist - loss_G / temperature). Cost: one forward pass of a text in each of K specialists and the generalist.
    Noise on the weights, where the index asks for it, needs `texts`. Raises SettingsError when top_k exceeds N.
    """
    chosen, kept, z = _shortlist(coefficients, settings, index, unit)
    losses = torch.full((len(chosen), settings.top_k + 1), torch.nan)
    losses[:, -1] = evidence.generalist
    for place in map(int, chosen.unique()):
        rows, slots = (chosen == place).nonzero(as_tuple=True)
        losses[rows, slots] = evidence.of(names[place], rows.tolist()).float()
    shares = posterior(_with_generalist(calibration.prior * z, calibration.generalist), losses, calibration.temperature)
    shares = _noisy(shares, settings, index, texts)
    return [
        _mixture([names[int(i)] for i in places], shares[row], kept[row], calibration.scale, nodes, losses[row].tolist())
        for row, places in enumerate(chosen.tolist())
    ]


def fast_mixtures(
    names: Sequence[str],
    coefficients: Tensor,
    settings: MixtureSettings,
    index: IndexSettings,
    calibration: Calibration,
    *,
    unit: float,
    nodes: int,
    texts: Sequence[str] | None = None,
) -> list[Mixture]:
    """The prior alone: no specialist reads the query. Arguments and errors as `evidence_mixtures`."""
    chosen, kept, z = _shortlist(coefficients, settings, index, unit)
    shares = posterior(_with_generalist(calibration.fast_prior * z, calibration.fast_generalist))
    shares = _noisy(shares, settings, index, texts)
    return [
        _mixture([names[int(i)] for i in places], shares[row], kept[row], calibration.fast_scale, nodes)
        for row, places in enumerate(chosen.tolist())
    ]


def standard_unit(centroid_coefficients: Tensor) -> float:
    """Spread of the centroids' own coefficients [N, N], each row centred: what a coefficient is measured in; 1 where there is none."""
    centred = centroid_coefficients.double() - centroid_coefficients.double().mean(dim=1, keepdim=True)
    spread = float(centred.square().mean().sqrt())
    return spread if spread > 0 else 1.0


def _shortlist(coefficients: Tensor, settings: MixtureSettings, index: IndexSettings, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Places [n, K] of the chosen, their coefficients [n, K], and those centred in standard units."""
    chosen = top_k(coefficients, settings.top_k, signed=index.ranking == "signed")
    centred = (coefficients - coefficients.mean(dim=-1, keepdim=True)) / unit
    return chosen, coefficients.gather(-1, chosen), centred.gather(-1, chosen)


def _noisy(shares: Tensor, settings: MixtureSettings, index: IndexSettings, texts: Sequence[str] | None) -> Tensor:
    """Shares [n, K + 1], each row with the noise of its text."""
    if index.noise_site != "weights" or not index.noise:
        return shares
    drawn = [noisy_weights(row[:, None], index.noise, seeded(index, texts, place), settings)[:, 0] for place, row in enumerate(shares)]
    return torch.stack(drawn)


def _with_generalist(log_prior: Tensor, generalist: float) -> Tensor:
    return torch.cat([log_prior, log_prior.new_full((len(log_prior), 1), generalist)], dim=1)  # [n, K + 1]


def _mixture(names: Sequence[str], shares: Tensor, kept: Tensor, scale: float, nodes: int, losses: Sequence[float] = ()) -> Mixture:
    weights = shares[:-1, None].expand(-1, nodes).contiguous()
    found = dict(zip((*names, ""), losses, strict=True)) if losses else {}
    return Mixture(tuple(names), weights, kept, generalist=float(shares[-1]), scale=scale, losses=found)
