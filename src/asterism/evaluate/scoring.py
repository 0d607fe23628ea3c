"""Forward passes that score: token losses and mean activations of a batch, and both protocols from the same pass.

A causal model's states over a text's first half are those of the first half alone, so one pass over the whole text
yields losses, fingerprint and signature for `whole` and `continuation` alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asterism.evaluate.probes import read_span, scored_span
from asterism.evaluate.settings import Protocol
from asterism.models.batching import Batch
from asterism.models.likelihood import token_losses

PROTOCOLS: tuple[Protocol, ...] = ("whole", "continuation")


@dataclass
class Scores:
    """What one model makes of n probes, by protocol: mean loss where it counts, and mean loss over what may be read."""

    loss: dict[Protocol, Tensor]
    """[n] mean loss in nats a token over the scored span."""
    read_loss: dict[Protocol, Tensor]
    """[n] mean loss in nats a token over the read span."""
    fingerprint: dict[Protocol, Tensor] = field(default_factory=dict)
    """[n, d] mean state over the read span."""
    signature: dict[Protocol, Tensor] = field(default_factory=dict)
    """[n, d] mean absolute final state over the read span (Eq. 6)."""

    @classmethod
    def empty(cls, n: int) -> Scores:
        """Room for n probes."""
        return cls({p: torch.full((n,), torch.nan) for p in PROTOCOLS}, {p: torch.full((n,), torch.nan) for p in PROTOCOLS})


def span_mean(values: Tensor, starts: Sequence[int], stops: Sequence[int]) -> Tensor:
    """Mean of values [B, T, ...] over positions [start, stop) of each row -> [B, ...]."""
    places = torch.arange(values.shape[1], device=values.device)
    first, last = (torch.tensor(list(edge), device=values.device)[:, None] for edge in (starts, stops))
    weight = ((places >= first) & (places < last)).to(values.dtype)
    weight = weight / weight.sum(dim=1, keepdim=True)
    return torch.einsum("bt,bt...->b...", weight, values)


def losses_of(losses: Tensor, lengths: Sequence[int], protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Mean loss over the scored and over the read span of token losses [B, T-1] (the loss of token t lies at t - 1)."""
    scored = [scored_span(protocol, n) for n in lengths]
    read = [read_span(protocol, n) for n in lengths]
    return (
        span_mean(losses, [s.start - 1 for s in scored], [s.stop - 1 for s in scored]),
        span_mean(losses, [0] * len(read), [s.stop - 1 for s in read]),
    )


def record(scores: Scores, batch: Batch, logits: Tensor) -> None:
    """Write the losses of one batch into `scores`."""
    losses, rows, lengths = token_losses(logits, batch.ids).cpu(), list(batch.rows), batch.lengths.tolist()
    for protocol in PROTOCOLS:
        scores.loss[protocol][rows], scores.read_loss[protocol][rows] = losses_of(losses, lengths, protocol)


def record_states(scores: Scores, batch: Batch, hidden: Tensor, n: int, *, absolute: bool) -> None:
    """Write mean states [B, T, d] of one batch as fingerprints, or as signatures where `absolute`."""
    target = scores.signature if absolute else scores.fingerprint
    values = (hidden.abs() if absolute else hidden).float()
    for protocol in PROTOCOLS:
        stops = [read_span(protocol, length).stop for length in batch.lengths.tolist()]
        means = span_mean(values, [0] * len(stops), stops).cpu()
        target.setdefault(protocol, torch.zeros(n, means.shape[1]))[list(batch.rows)] = means
