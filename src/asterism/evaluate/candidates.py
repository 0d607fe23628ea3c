"""What is compared: each candidate's name, what it is, and, for compositions, how its mixture is made."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.compose.build import compose
from asterism.compose.plan import composed_parameters
from asterism.compose.settings import CompositionSettings
from asterism.constellation.evidence import Evidence
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.constellation.specialist_space import cosine_coefficients
from asterism.evaluate.reading import Reading
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.models.library import Library
from asterism.models.types import PreTrainedModel

BEST_SINGLE, ROUTED, ROUTED_ACTIVATION = "best_single", "routed_coefficient", "routed_activation"
UNIFORM, TASK_ARITHMETIC = "uniform", "task_arithmetic"
ENSEMBLE, ENSEMBLE_UNIFORM = "ensemble", "ensemble_uniform"
DEFAULT, FAST, NODES, REFINED = "default", "fast", "nodes", "refined"
PAPER, JOINT, SPECIALIST_SPACE, RANDOM = "paper", "joint", "specialist_space", "random"


class OneModel(typing.Protocol):
    """A candidate that is one model for all probes."""

    @property
    def name(self) -> str:
        """In the tables."""
        ...

    def build(self, library: Library) -> PreTrainedModel:
        """The model."""
        ...


@dataclass(frozen=True)
class Composed:
    """A candidate whose mixture differs from probe to probe."""

    name: str
    composition: CompositionSettings
    mixture: MixtureSettings
    index: Constellation | None
    """Whose coefficients choose and weigh; None for the specialist-space contrast and for random mixtures."""
    refine: int = 0
    """Gradient steps on what may be read, from the mixture that the rest gives."""


@dataclass(frozen=True)
class Static:
    """One composition for all probes."""

    name: str
    composition: CompositionSettings
    mixture: Mixture

    def build(self, library: Library) -> PreTrainedModel:
        """The model."""
        return compose(library, self.mixture, self.composition)


def composed_candidates(library: Library, constellation: Constellation, settings: EvaluationSettings) -> list[Composed]:
    """The default, refined where asked, its fast mode and weights per node; the paper's composition and its contrasts: joint
    normalisation, specialist space, random mixtures."""
    k = min(settings.top_k, len(library.names))
    blocks = min(settings.paper_layers, library.anatomy.n_blocks)
    shared = constellation.settings
    paper_index = constellation.with_settings(IndexSettings.paper(layer=shared.layer, max_length=shared.max_length))
    two_stage, last = MixtureSettings.paper(top_k=k), CompositionSettings.paper(layers=blocks)
    further = Composed(REFINED, CompositionSettings(), MixtureSettings(top_k=k), constellation, refine=settings.refine)
    return [
        Composed(DEFAULT, CompositionSettings(), MixtureSettings(top_k=k), constellation),
        *([further] if settings.refine else []),
        Composed(FAST, CompositionSettings(), MixtureSettings(top_k=k, mode="fast"), constellation),
        Composed(NODES, CompositionSettings(), two_stage, constellation),
        Composed(PAPER, last, two_stage, paper_index),
        Composed(JOINT, last, MixtureSettings.paper(top_k=k, normalisation="joint"), paper_index),
        Composed(SPECIALIST_SPACE, last, two_stage, None),
        Composed(RANDOM, CompositionSettings(), two_stage, None),
    ]


def static_candidates(library: Library, settings: EvaluationSettings) -> list[Static]:
    """The uniform average of all specialists, and task arithmetic (Eq. 12) at each scale, over all parameters."""
    n, width = len(library.names), library.anatomy.hidden_size
    everyone = Mixture.uniform(library.names, width)
    merges = [
        Static(f"{TASK_ARITHMETIC}@{alpha:g}", CompositionSettings(layers="all", node_map="mean", mix="deltas", scale=alpha * n), everyone)
        for alpha in settings.task_arithmetic
    ]
    return [Static(UNIFORM, CompositionSettings(layers="all", node_map="mean"), everyone), *merges]


def mixtures_of(
    candidate: Composed, reading: Reading, protocol: Protocol, seed: int, space: Tensor | None = None, texts: Sequence[str] | None = None
) -> list[Mixture]:
    """One mixture a probe, from activations of the read span alone.

    `space` [N, d]: specialist-space centroids, for the candidate that uses them. `texts`: what is read of each probe, for an index
    with noise on the weights, which is drawn from the text.
    """
    fingerprints = reading.generalist.fingerprint[protocol]
    signatures = {name: scores.signature[protocol] for name, scores in reading.specialists.items()}
    if candidate.name == RANDOM:
        return _random(list(signatures), len(fingerprints), candidate.mixture.top_k, fingerprints.shape[1], seed)
    if candidate.index is not None:
        known = Evidence(reading.generalist.read_loss[protocol], {name: of.read_loss[protocol] for name, of in reading.specialists.items()})
        return candidate.index.mixture_from(fingerprints, signatures, candidate.mixture, evidence=known, texts=texts)
    assert space is not None
    return Constellation.mixture_of(cosine_coefficients(fingerprints, space), signatures, candidate.mixture)


def derived(reading: Reading, constellation: Constellation, protocol: Protocol) -> dict[str, tuple[Tensor, Tensor]]:
    """Candidates that pick one specialist a probe: name -> ([n] loss, [n] index of the specialist)."""
    losses = torch.stack([scores.loss[protocol] for scores in reading.specialists.values()])  # [N, n]
    fingerprints = reading.generalist.fingerprint[protocol]
    cosine = cosine_coefficients(fingerprints, constellation.centroids)
    picks = {
        BEST_SINGLE: losses.argmin(dim=0),
        ROUTED: constellation.basis.coefficients(fingerprints).argmax(dim=1),
        ROUTED_ACTIVATION: cosine.argmax(dim=1),
    }
    return {name: (losses.gather(0, pick[None])[0], pick) for name, pick in picks.items()}


def descriptions(library: Library, settings: EvaluationSettings, composed: Sequence[Composed]) -> dict[str, str]:
    """One line a candidate, with the parameters that it mixes."""
    n = len(library.names)
    lines: dict[str, str] = {"generalist": "the generalist alone"}
    lines |= {f"specialist:{name}": f"the {name} specialist alone, for every probe" for name in library.names}
    lines |= {
        BEST_SINGLE: "oracle: for each probe the specialist with the lowest loss on it",
        ROUTED: "for each probe the specialist with the largest coefficient",
        ROUTED_ACTIVATION: "for each probe the specialist whose domain's mean fingerprint is nearest by cosine",
        UNIFORM: f"one model: the mean of all {n} specialists, all parameters",
        TASK_ARITHMETIC: "the best of its scales by mean loss",
        ENSEMBLE_UNIFORM: f"mean of the {n} specialists' logits ({n} times the cost)",
        ENSEMBLE: f"mean of the {n} specialists' logits weighted by 1/perplexity on what may be read ({n} times the cost)",
    }
    lines |= {
        f"{TASK_ARITHMETIC}@{a:g}": f"one model: generalist + {a:g} x the sum of all {n} deltas, all parameters"
        for a in settings.task_arithmetic
    }
    lines |= {candidate.name: _line(candidate, library) for candidate in composed}
    return lines


def mixed_share(library: Library, composition: CompositionSettings) -> float:
    """Share of the model's parameters that a composition mixes."""
    sizes: Mapping[str, int] = {name: torch.Size(shape).numel() for name, shape in library.anatomy.shapes.items()}
    return sum(sizes[name] for name in composed_parameters(library.anatomy, composition)) / sum(sizes.values())


def _line(candidate: Composed, library: Library) -> str:
    what = candidate.composition
    where = {"all": "all parameters"}.get(
        str(what.layers), f"blocks {what.layers}" if isinstance(what.layers, tuple) else f"the last {what.layers} blocks"
    )
    share = f"{where} ({mixed_share(library, what):.0%} of the parameters), node map {what.node_map}, top {candidate.mixture.top_k}"
    if candidate.name == RANDOM:
        return f"control: random specialists with random shares; {share}"
    if candidate.index is None:
        return f"the paper's earlier version: cosine with centroids from each specialist's own activations; {share}"
    basis = f"{candidate.index.settings.orthogonalisation} basis, centring {candidate.index.settings.centring}"
    numbers = "calibrated" if candidate.index.calibration.fitted else "default numbers"
    how = {
        "evidence": f"weights by the query's likelihood under those and the generalist ({numbers})",
        "fast": f"weights by the fingerprint alone ({numbers})",
        "nodes": "weights per node" + (", joint normalisation (Eq. 10)" if candidate.mixture.normalisation == "joint" else ""),
    }
    steps = f", {candidate.refine} gradient step on the query (3 more passes)" if candidate.refine else ""
    return f"composition: {how[candidate.mixture.mode]}{steps}; {basis}; {share}"


def _random(names: Sequence[str], n: int, k: int, width: int, seed: int) -> list[Mixture]:
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(n):
        chosen = torch.randperm(len(names), generator=generator)[:k].tolist()
        shares = torch.rand(k, generator=generator).clamp_min(1e-6).log().neg()  # exponential draws: a flat Dirichlet once normalised
        shares = shares / shares.sum()
        drawn.append(Mixture.fixed({names[int(i)]: float(share) for i, share in zip(chosen, shares, strict=True)}, width))
    return drawn
