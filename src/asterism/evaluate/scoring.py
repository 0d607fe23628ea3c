"""Forward passes that score: token losses and mean activations of a batch, and both protocols from the same pass.

A causal model's states over a text's first half are those of the first half alone, so one pass over the whole text
yields losses, fingerprint and signature for `whole` and `continuation` alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.evaluate.probes import read_span, scored_span
from asterism.evaluate.settings import Protocol
from asterism.models.batching import Batch

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


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Loss in nats of every token but the first, given those before it: logits [B, T, V], ids [B, T] -> [B, T-1]."""
    flat = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return flat.view(ids.shape[0], ids.shape[1] - 1)


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


@contextmanager
def states_of(model: Any, module_path: str | None) -> Iterator[list[Tensor]]:
    """Collect, while the model runs, the final hidden state (what the head reads) or a module's output: [B, T, d] each."""
    seen: list[Tensor] = []
    if module_path is None:
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    else:
        first = lambda output: output if isinstance(output, Tensor) else output[0]  # noqa: E731
        handle = model.get_submodule(module_path).register_forward_hook(lambda module, inputs, output: seen.append(first(output)))
    try:
        yield seen
    finally:
        handle.remove()


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Logits [B, T, V] of right-padded ids [B, T]; padded positions hold values without meaning and are never scored.

    Attention is causal, so padding on the right needs no mask; one of ones keeps transformers from advising one.
    """
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
