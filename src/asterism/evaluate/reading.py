"""The common pass: generalist and specialists read every probe once; losses, fingerprints, signatures and ensembles come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.constellation.mixture import Mixture
from asterism.core.progress import counting
from asterism.evaluate.scoring import PROTOCOLS, Scores, losses_of, record, record_states
from asterism.evaluate.settings import Protocol
from asterism.models.batching import Batch
from asterism.models.library import Library
from asterism.models.likelihood import logits_of, states_of, token_losses

LOGITS_BUDGET = 2**30
"""Bytes of logits held at once for the ensembles."""


@dataclass
class Reading:
    """Everything that the generalist and each specialist say of n probes."""

    generalist: Scores
    specialists: dict[str, Scores]
    ensembles: dict[str, dict[Protocol, Tensor]]
    """Ensemble name -> protocol -> [n] mean loss over the scored span."""


def read_all(library: Library, composer: Composer, batches: Sequence[Batch], n: int, *, layer: int | str, ensembles: bool) -> Reading:
    """Run the generalist and every specialist over all batches.

    `composer` composes all parameters, so that a specialist alone is that specialist exactly and only its changes are held.
    `layer` is the fingerprint's ("final" or a block). Cost: 1 + N forward passes; the ensembles add none.
    """
    width = library.anatomy.hidden_size
    alone = {name: Mixture.fixed({name: 1.0}, width) for name in library.names}
    reading = Reading(Scores.empty(n), {name: Scores.empty(n) for name in library.names}, {})
    path = None if layer == "final" else library.anatomy.block_path(int(layer))
    with counting("reading", len(batches) * (1 + len(library.names))) as advance, torch.inference_mode():
        for batch in batches:
            placed = batch.to(library.device)
            composer.restore()
            with states_of(composer.model, path) as states:
                logits = logits_of(composer.model, placed.ids)
            record(reading.generalist, placed, logits)
            record_states(reading.generalist, placed, states[0], n, absolute=False)
            advance(1)
            voices = []
            for name, scores in reading.specialists.items():
                with states_of(composer.materialise(alone[name]), None) as states:
                    logits = logits_of(composer.model, placed.ids)
                record(scores, placed, logits)
                record_states(scores, placed, states[0], n, absolute=True)
                if ensembles:
                    voices.append(logits)
                advance(1)
            if ensembles:
                _ensembles(reading, placed, voices, n)
        composer.restore()
    return reading


def ensemble_tokens(voices: int, vocabulary: int, max_tokens: int) -> int:
    """Padded tokens a batch may hold so that all voices' logits stay within the budget."""
    return max(1, min(max_tokens, LOGITS_BUDGET // (4 * vocabulary * (voices + 1))))


def _ensembles(reading: Reading, batch: Batch, voices: list[Tensor], n: int) -> None:
    rows, lengths = list(batch.rows), batch.lengths.tolist()
    for name in ("ensemble_uniform", "ensemble"):
        losses = reading.ensembles.setdefault(name, {p: torch.full((n,), torch.nan) for p in PROTOCOLS})
        for protocol in PROTOCOLS:
            known = torch.stack([scores.read_loss[protocol][rows] for scores in reading.specialists.values()])  # [N, B]
            weights = torch.softmax(-known, dim=0) if name == "ensemble" else torch.full_like(known, 1 / len(known))
            mixed = torch.zeros_like(voices[0], dtype=torch.float32)
            for weight, logits in zip(weights.to(mixed.device), voices, strict=True):
                mixed.addcmul_(weight[:, None, None], logits.float())
            losses[protocol][rows] = losses_of(token_losses(mixed, batch.ids).cpu(), lengths, protocol)[0]
