"""The next token of many rows, each by its own temperature, top-p and seed. No row's draw depends on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.serve.jobs import Sampling, Token

SORTED = 1024
"""Likeliest tokens among which top-p is looked for first; a row where they do not reach it sorts all."""


@dataclass(eq=False)
class Draw:
    """How one row draws: its settings and the state of its own random numbers."""

    sampling: Sampling
    numbers: torch.Generator | None
    """None where nothing is drawn."""

    @classmethod
    def of(cls, sampling: Sampling, device: torch.device | str = "cpu") -> Draw:
        """At the start of an answer."""
        return cls(sampling, torch.Generator(device).manual_seed(sampling.seed) if sampling.temperature > 0 else None)


def drawn(logits: Tensor, rows: Sequence[Draw]) -> tuple[Tensor, list[Token | None]]:
    """The next token of each row of logits [B, V]: ids [B] on their device, and what is told of them; None where a row is not finite."""
    best, ids = logits.max(dim=-1)
    sampled = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
    if sampled:
        whole = len(sampled) == len(rows)
        ids = ids.clone()
        at = torch.tensor(sampled, device=logits.device)
        ids[at] = _sampled(logits if whole else logits[at], [rows[place] for place in sampled])
    found = torch.where(best.isfinite(), ids, -1).tolist()
    tokens = [Token(token) if token >= 0 else None for token in found]
    told = [place for place, row in enumerate(rows) if row.sampling.logprobs is not None and tokens[place]]
    for place, token in zip(told, _told(logits, ids, told, rows), strict=True):
        tokens[place] = token
    return ids, tokens


def _sampled(logits: Tensor, rows: Sequence[Draw]) -> Tensor:
    """[n]: the largest of logits / temperature + Gumbel noise, which is a draw from their softmax.

    A draw by running sums would turn the last digits of the logits, in which batches differ, into other tokens far more often.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    heat = torch.tensor([row.sampling.temperature for row in rows], dtype=wide.dtype, device=wide.device)[:, None]
    cooled = (wide - wide.amax(dim=-1, keepdim=True)) / heat
    scores = cooled - _noise(rows, wide).log()
    most = torch.tensor([row.sampling.top_p for row in rows], dtype=wide.dtype, device=wide.device)
    cut = (most < 1).nonzero()[:, 0] if any(row.sampling.top_p < 1 for row in rows) else None
    if cut is not None:
        scores[cut] = scores[cut].where(_nucleus(cooled[cut].softmax(dim=-1), most[cut]), -torch.inf)
    return scores.argmax(dim=-1)


def _noise(rows: Sequence[Draw], like: Tensor) -> Tensor:
    """[n, V] draws from the exponential distribution, each row's from its own numbers."""
    noise = torch.empty(like.shape, dtype=torch.float64, device=like.device)
    for own, row in zip(noise, rows, strict=True):
        own.uniform_(generator=row.numbers)
    return noise.log_().neg_().to(like.dtype)


def _nucleus(shares: Tensor, most: Tensor) -> Tensor:
    """[n, V] whether a token is among the fewest likeliest ones whose shares reach `most` [n]."""
    size = min(SORTED, shares.shape[-1])
    values, order = shares.topk(size, dim=-1)
    kept = torch.zeros_like(shares, dtype=torch.bool).scatter_(-1, order, _first(values, most))
    if size < shares.shape[-1] and bool((short := values.sum(dim=-1) < most).any()):
        values, order = shares[short].sort(dim=-1, descending=True)
        kept[short] = torch.zeros_like(kept[short]).scatter_(-1, order, _first(values, most[short]))
    return kept


def _first(values: Tensor, most: Tensor) -> Tensor:
    """[n, k] of shares, largest first: those before which `most` is not reached, the first always."""
    kept = values.cumsum(dim=-1) - values < most[:, None]
    kept[:, 0] = True
    return kept


def _told(logits: Tensor, ids: Tensor, places: Sequence[int], rows: Sequence[Draw]) -> list[Token]:
    """Tokens with natural logarithms of the model's own probabilities, and the likeliest beside them."""
    if not places:
        return []
    own = logits[list(places)]
    known = (own if own.dtype == torch.float64 else own.float()).log_softmax(dim=-1)
    chosen = ids[list(places)]
    of_chosen = known.gather(-1, chosen[:, None])[:, 0].tolist()
    most = max(rows[place].sampling.logprobs or 0 for place in places)
    values, order = known.topk(min(most, known.shape[-1]), dim=-1)
    tops = [list(zip(tokens, found, strict=True)) for tokens, found in zip(order.tolist(), values.tolist(), strict=True)]
    asked = zip(places, chosen.tolist(), of_chosen, tops, strict=True)
    return [Token(token, logprob, tuple(top[: rows[place].sampling.logprobs or 0])) for place, token, logprob, top in asked]
