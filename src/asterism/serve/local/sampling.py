"""The next token of many rows, each by its own temperature, top-p and seed. No row's draw depends on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from asterism.serve.jobs import Sampling, Token

SORTED = 1024
"""Likeliest tokens among which top-p is looked for first; a row where they do not reach it sorts all."""


@dataclass(eq=False)
class Draw:
    """How one row draws: its settings and the state of its own random numbers."""

    sampling: Sampling
    numbers: Random

    @classmethod
    def of(cls, sampling: Sampling) -> Draw:
        """At the start of an answer."""
        return cls(sampling, Random(sampling.seed))


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
    """[n]: by the inverse of each row's distribution function, at one number of its own."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    heat = torch.tensor([row.sampling.temperature for row in rows], dtype=wide.dtype, device=wide.device)
    numbers = torch.tensor([row.numbers.random() for row in rows], dtype=wide.dtype, device=wide.device)
    shares = ((wide - wide.amax(dim=-1, keepdim=True)) / heat[:, None]).softmax(dim=-1)
    cut = [place for place, row in enumerate(rows) if row.sampling.top_p < 1]
    if not cut:
        return _inverse(shares, numbers)
    ids = torch.empty(len(rows), dtype=torch.long, device=wide.device)
    if rest := [place for place, row in enumerate(rows) if row.sampling.top_p >= 1]:
        ids[rest] = _inverse(shares[rest], numbers[rest])
    most = torch.tensor([rows[place].sampling.top_p for place in cut], dtype=wide.dtype, device=wide.device)
    ids[cut] = _nucleus(shares[cut], most, numbers[cut])
    return ids


def _nucleus(shares: Tensor, most: Tensor, numbers: Tensor) -> Tensor:
    """Among the fewest likeliest tokens whose shares reach `most` [n]."""
    size = min(SORTED, shares.shape[-1])
    values, order = shares.topk(size, dim=-1)
    ids = _among(values, order, most, numbers)
    if size < shares.shape[-1] and bool((short := values.sum(dim=-1) < most).any()):
        values, order = shares[short].sort(dim=-1, descending=True)
        ids[short] = _among(values, order, most[short], numbers[short])
    return ids


def _among(values: Tensor, order: Tensor, most: Tensor, numbers: Tensor) -> Tensor:
    """Shares [n, k], largest first, and the tokens that they are of."""
    before = values.cumsum(dim=-1) - values
    kept = torch.where(before < most[:, None], values, 0)
    kept[:, 0] = values[:, 0]
    return order.gather(-1, _inverse(kept, numbers)[:, None])[:, 0]


def _inverse(shares: Tensor, numbers: Tensor) -> Tensor:
    """The place where each row's running sum passes its number: [n, V], [n] -> [n]. Places of no share are never met."""
    sums = shares.cumsum(dim=-1)
    whole = sums[:, -1]
    below = torch.minimum(numbers * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(sums, below[:, None], right=True)[:, 0]


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
