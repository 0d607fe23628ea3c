"""The five passes of the paper's section 4.2 over one library: index, retrieval, correlation, single-domain, cross-domain.

Pass 1 is the constellation itself; passes 2 and 3 read what the common pass recorded; passes 4 and 5 score compositions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.cost import cheaper
from asterism.compose.refining import refined
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.core.corpus import Probe
from asterism.core.progress import counting
from asterism.core.statistics import pearson, wilson
from asterism.core.weights import top_k
from asterism.evaluate.candidates import Composed, OneModel
from asterism.evaluate.probes import read_span
from asterism.evaluate.reading import Reading
from asterism.evaluate.scoring import Scores, losses_of, record
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.models.batching import Batch
from asterism.models.library import Library
from asterism.models.likelihood import logits_of, token_losses


def retrieval(space: str, coefficients: Tensor, probes: Sequence[Probe], domains: Sequence[str], *, signed: bool) -> dict:
    """Pass 2: how often a single-domain probe's own specialist is first, and among the first three, of coefficients [n, N]."""
    own = [(row, list(domains).index(probe.domains[0])) for row, probe in enumerate(probes) if not probe.is_cross]
    ranked = top_k(coefficients.float(), min(3, len(domains)), signed=signed)
    first = sum(int(ranked[row, 0]) == target for row, target in own)
    among = sum(target in ranked[row].tolist() for row, target in own)
    top1, low, high = wilson(first, len(own))
    return {"space": space, "top1": top1, "top1_low": low, "top1_high": high, "top3": among / len(own), "n": len(own)}


def correlation(reading: Reading, coefficients: Tensor) -> dict:
    """Pass 3: Pearson correlation, over (probe, specialist) pairs, of coefficient x activation norm with perplexity."""
    norms = torch.stack([scores.signature["whole"].norm(dim=1) for scores in reading.specialists.values()], dim=1)  # [n, N]
    perplexity = torch.stack([scores.loss["whole"].exp() for scores in reading.specialists.values()], dim=1)
    r, low, high = pearson((coefficients * norms).flatten().tolist(), perplexity.flatten().tolist())
    return {"r": r, "low": low, "high": high, "n": perplexity.numel()}


def score_static(library: Library, candidate: OneModel, batches: Sequence[Batch], n: int) -> Scores:
    """Both protocols of one merged model, built once."""
    model, scores = candidate.build(library).eval(), Scores.empty(n)
    with counting(candidate.name, len(batches)) as advance, torch.inference_mode():
        for batch in batches:
            placed = batch.to(library.device)
            record(scores, placed, logits_of(model, placed.ids))
            advance(1)
    return scores


def score_composed(
    composer: Composer,
    candidate: Composed,
    mixtures: Sequence[Mixture],
    batches: Sequence[Batch],
    protocol: Protocol,
    settings: EvaluationSettings,
) -> Tensor:
    """Passes 4 and 5: [n] mean loss over the scored span, each probe under its own mixture; `composer` has the candidate's settings."""
    library, losses = composer.library, torch.full((len(mixtures),), torch.nan)
    with counting(f"{candidate.name} ({protocol})", len(mixtures)) as advance, torch.inference_mode():
        for batch in batches:
            placed, rows = batch.to(library.device), list(batch.rows)
            if _mixed(library, candidate, placed, settings):
                with composer.mixed([mixtures[row] for row in rows]) as model:
                    logits = logits_of(model, placed.ids)
                losses[rows] = losses_of(token_losses(logits, placed.ids).cpu(), batch.lengths.tolist(), protocol)[0]
            else:
                for place, row in enumerate(rows):
                    length = int(batch.lengths[place])
                    ids = placed.ids[place : place + 1, :length]
                    logits = logits_of(composer.materialise(mixtures[row]), ids)
                    losses[row] = losses_of(token_losses(logits, ids).cpu(), [length], protocol)[0][0]
            advance(len(rows))
    return losses


def refine(
    composer: Composer, candidate: Composed, mixtures: Sequence[Mixture], tokens: Sequence[Sequence[int]], protocol: Protocol
) -> list[Mixture]:
    """The mixtures after the candidate's gradient steps on the read span of each probe."""
    found = []
    with counting(f"{candidate.name} ({protocol}), gradients", len(mixtures)) as advance:
        for mixture, ids in zip(mixtures, tokens, strict=True):
            found.append(refined(composer, mixture, ids[: read_span(protocol, len(ids)).stop], steps=candidate.refine))
            advance(1)
    return found


def _mixed(library: Library, candidate: Composed, batch: Batch, settings: EvaluationSettings) -> bool:
    if settings.execution != "auto":
        return settings.execution == "mixed"
    tokens, rows = float(batch.lengths.float().mean()), len(batch.rows)
    k = min(candidate.mixture.top_k, len(library.names))
    return cheaper(library.anatomy, candidate.composition, k=k, tokens=tokens, rows=rows, device=str(library.device)) == "mixed"


def mixture_facts(name: str, mixtures: Sequence[Mixture], coefficients: Tensor, probes: Sequence[Probe]) -> list[dict]:
    """Mean node entropy in bits (Eq. 11), mean Gini of the coefficients, and who weighs most, by task and group."""
    from asterism.core.geometry import gini

    groups: dict[tuple[str, str], list[int]] = {}
    for row, probe in enumerate(probes):
        task = "cross" if probe.is_cross else "single"
        groups.setdefault((task, "all"), []).append(row)
        groups.setdefault((task, probe.group), []).append(row)
    facts = []
    for (task, group), rows in groups.items():
        entropy = sum(mixtures[row].entropy for row in rows) / len(rows)
        leaders = [max(shares := mixtures[row].shares, key=shares.__getitem__) for row in rows]
        first = {leader: leaders.count(leader) / len(leaders) for leader in sorted(set(leaders))}
        sparsity = gini(coefficients[rows]).mean()
        facts.append(
            {
                "candidate": name,
                "task": task,
                "group": group,
                "entropy": entropy,
                "gini": float(sparsity),
                "first": first,
                "n": len(rows),
            }
        )
    return facts


def collinearity(constellation: Constellation) -> dict:
    """Cosines between centroids before, and between basis vectors after, orthogonalisation."""
    from asterism.core.geometry import cosine_matrix, mean_collinearity

    raw, post = constellation.centroids, constellation.basis.vectors
    return {
        "raw": cosine_matrix(raw).tolist(),
        "post": cosine_matrix(post).tolist(),
        "mean": float(mean_collinearity(raw)),
        "post_mean": float(mean_collinearity(post)),
    }
