"""Part 4: the same held-out texts by compositions, static merges, ensembles, single experts and routers that were not trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.corpus import GENERAL
from asterism.core.parts import Parts
from asterism.evaluate.candidates import BEST_SINGLE, DEFAULT, FAST, Composed, mixtures_of
from asterism.evaluate.packing import pack, unpack
from asterism.evaluate.passes import score_composed
from asterism.evaluate.reading import read_all
from asterism.evaluate.settings import EvaluationSettings
from asterism.evaluate.tuning import GRIDS
from asterism.merge.library import merge
from asterism.models.library import Library
from asterism.route.arrow import arrow_gates
from asterism.route.untrained import average_activation_gates, prompt_gates, route_untrained
from experiments.route.data import Target
from experiments.route.workshop import PROTOCOLS, Make, Workshop, told

MERGES: dict[str, list[dict[str, Any]]] = {
    "task_arithmetic": [{"lambda": scale} for scale in (0.3, 0.5, 0.7, 1.0)],
    "ties": [{"density": density, "lambda": scale} for density in GRIDS["ties"]["density"] for scale in GRIDS["ties"]["lambda"]],
    "linear": [{}],
}
"""Method -> settings tried; `lerp` of the ladder is the linear merge with its best share."""
MODES = {DEFAULT: "evidence", FAST: "fast"}
"""Composition -> how it weighs the experts."""
PROMPTS = {
    "math": ["Solve this math word problem step by step.", "How many apples are left? Natalia sold 48/2 = 24 clips in May.\n#### 24"],
    "code": ["Write a function that returns the result.", "def solution(numbers):\n    return sum(numbers)"],
    "code2": ["Write a shell command that finds files.", 'find . -type f -name "*.txt" | xargs grep -l word'],
}
"""What each expert is for, in words that a person might give."""


def table(shop: Workshop) -> dict[str, Any]:
    """{rows}: every way that needs no training on the target; those that do are in the other parts."""
    return {"rows": [row for target in shop.targets.values() for row in _on(shop, target)]}


def _on(shop: Workshop, target: Target) -> list[dict[str, Any]]:
    library = shop.library(target.pair)
    rows = [told(target.name, name, losses) for name, losses in composed(shop, library, target).items()]
    rows += [_merged(shop, library, target, method) for method in MERGES]
    for name, gates in UNTRAINED.items():
        rows.append(shop.row(target, f"untrained:{name}", lambda gates=gates: route_untrained(library, gates(shop, library))))
    return rows


def composed(
    shop: Workshop, library: Library, target: Target, stem: str = "", modes: Mapping[str, Any] = MODES
) -> dict[str, dict[str, Tensor]]:
    """Candidate -> protocol -> [n] losses: the compositions, both logit ensembles, and the oracle's pick of one expert a text."""
    parts = Parts(shop.folder / "scores" / target.name / "composed", shop.origin)
    batched, n = shop.batched(target.tested), len(target.tested)
    settings = EvaluationSettings(max_length=shop.recipe.length, seed=shop.seed)

    def read() -> dict[str, Tensor]:
        composer = Composer(library, CompositionSettings(layers="all", node_map="mean"))
        return pack(read_all(library, composer, batched, n, layer="final", ensembles=True))

    reading = unpack(parts.tensors(f"{stem}reading", read), library.names)
    single = {p: torch.stack([own.loss[p] for own in reading.specialists.values()]).amin(dim=0) for p in PROTOCOLS}
    found: dict[str, dict[str, Tensor]] = {BEST_SINGLE: single} | {name: {**own} for name, own in reading.ensembles.items()}

    @cache
    def index() -> Constellation:
        probes = own_texts(shop, (*library.names, GENERAL))
        return Constellation.build(library, probes, IndexSettings(max_length=shop.recipe.length))

    def score(name: str, mode: Any) -> dict[str, Tensor]:
        mixture = MixtureSettings(top_k=min(settings.top_k, len(library.names)), mode=mode)
        candidate = Composed(name, CompositionSettings(), mixture, index())
        composer = Composer(library, candidate.composition)
        return {
            p: score_composed(composer, candidate, mixtures_of(candidate, reading, p, shop.seed), batched, p, settings) for p in PROTOCOLS
        }

    for name, mode in modes.items():
        found[name] = parts.tensors(f"{stem}{name}", lambda name=name, mode=mode: score(name, mode))
    return found


def own_texts(shop: Workshop, names: Sequence[str]) -> dict[str, list[str]]:
    """Training texts of the experts, and general ones: what an index and untrained gates are made from."""
    return {name: shop.data.train[name][: shop.recipe.probes] for name in names}


def _merged(shop: Workshop, library: Library, target: Target, method: str) -> dict[str, Any]:
    """A static merge at the setting that loses least on the texts that choose."""

    def named(parameters: Mapping[str, Any]) -> tuple[str, Make]:
        name = " ".join([method, *(f"{key}={value:g}" for key, value in parameters.items())])
        return name, lambda: merge(library, method, **parameters)

    best = min(MERGES[method], key=lambda parameters: shop.chosen(target, *named(parameters)))
    return shop.row(target, *named(best), parameters=best) | {"candidate": method}


UNTRAINED = {
    "prompts": lambda shop, library: prompt_gates(library, {name: PROMPTS[name] for name in library.names}),
    "average": lambda shop, library: average_activation_gates(
        library, own_texts(shop, library.names), temperature=0.1, max_length=shop.recipe.length
    ),
    "arrow": lambda shop, library: arrow_gates(library),
}
"""Gates that no text of the target has trained."""
