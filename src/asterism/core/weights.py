"""From coefficients and what specialists make of a query to weights: per node (Eq. 7, 8, 10, 11), or one a specialist by evidence.

Leading axes are batched.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from asterism.core.errors import SettingsError

Normalisation = Literal["two_stage", "joint"]


def top_k(coefficients: Tensor, k: int, *, signed: bool = False) -> Tensor:
    """Indices of the k largest |coefficients| (section 3.3), or coefficients where `signed`, largest first: [..., N] -> [..., k].

    Ties go by index.
    """
    known = coefficients.shape[-1]
    if not 1 <= k <= known:
        raise SettingsError("top_k asks for more specialists than there are, or for none.", met=k, mend=f"1 <= top_k <= {known} here")
    ranked = coefficients if signed else coefficients.abs()
    return ranked.sort(dim=-1, descending=True, stable=True).indices[..., :k]


def raw_weights(coefficients: Tensor, signatures: Tensor) -> Tensor:
    """max(c_i, 0) a_ij: coefficients [..., K], signatures [..., K, d] (mean magnitudes, >= 0) -> [..., K, d] (Eq. 7)."""
    return _wide(coefficients).clamp_min(0).unsqueeze(-1) * _wide(signatures)


def two_stage(raw: Tensor) -> Tensor:
    """Each node's weights over the specialists sum to 1: raw [..., K, d] -> [..., K, d] (Eq. 8); a column of zeros becomes 1/K.

    The paper's epsilon is left out: the fallback covers a zero sum, and without it the columns sum to 1 at any scale of raw.
    """
    raw = _wide(raw)
    peak = raw.amax(dim=-2, keepdim=True)
    shares = raw / torch.where(peak > 0, peak, 1)  # in [0, 1], so that the sum neither overflows nor vanishes
    return torch.where(peak > 0, shares / shares.sum(dim=-2, keepdim=True), 1 / raw.shape[-2])


def joint(raw: Tensor) -> Tensor:
    """All K d weights together sum to 1: raw [..., K, d] -> [..., K, d] (Eq. 10, the paper's failing contrast); all zero: 1/(K d)."""
    return two_stage(raw.flatten(-2).unsqueeze(-1)).squeeze(-1).unflatten(-1, raw.shape[-2:])


def node_weights(coefficients: Tensor, signatures: Tensor, normalisation: Normalisation = "two_stage") -> Tensor:
    """Eq. 7, then Eq. 8 (`two_stage`) or Eq. 10 (`joint`): [..., K], [..., K, d] -> [..., K, d]."""
    if normalisation not in ("two_stage", "joint"):
        raise SettingsError("No such normalisation.", met=repr(normalisation), mend="choose two_stage or joint")
    raw = raw_weights(coefficients, signatures)
    return two_stage(raw) if normalisation == "two_stage" else joint(raw)


def posterior(log_prior: Tensor, losses: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Share of each candidate: softmax of log prior - loss / temperature: [..., K], [..., K] (nats a token) -> [..., K].

    Bayes' rule with the likelihood of a text of 1 / temperature tokens of the query's mean loss: a longer query would let one
    candidate take all, while parameters mix well. Candidates whose loss is not known (NaN) in a row count by their prior alone,
    and so do all others of that row. Raises SettingsError for a temperature that is not positive.
    """
    if not temperature > 0:
        raise SettingsError("A temperature is positive.", met=temperature, mend="e.g. 0.2 nats a token")
    scores = _wide(log_prior)
    if losses is not None:
        known = losses.isfinite().all(dim=-1, keepdim=True)
        scores = scores - torch.where(known, _wide(losses), 0) / temperature
    return scores.softmax(dim=-1)


def entropy_bits(weights: Tensor) -> Tensor:
    """Entropy of each node's weights over the specialists, in bits: [..., K, d] -> [..., d] (Eq. 11, 0 log 0 = 0)."""
    return torch.special.entr(_wide(weights)).sum(dim=-2) / torch.log(torch.tensor(2.0, dtype=torch.float64)).item()


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
