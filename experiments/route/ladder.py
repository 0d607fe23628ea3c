"""Part 2: the ladder of degrees of freedom, from one share for a whole model to gates over the MLPs of three layers."""

from __future__ import annotations

from functools import cache
from typing import Any

from asterism.models.library import Library
from asterism.models.routed import RoutedForCausalLM
from asterism.route.load import load
from asterism.route.settings import RouterSettings
from experiments.route.compared import compared, interpolations
from experiments.route.data import Target
from experiments.route.workshop import Workshop

RUNGS = {
    "single": RouterSettings(scope="single"),
    "layer": RouterSettings(),
    "with_generalist": RouterSettings(with_generalist=True),
    "depth2": RouterSettings(depth=2),
    "depth3": RouterSettings(depth=3),
}
"""Routers by degrees of freedom (Fig. 4 and 5)."""
BESIDE = {
    "top1": RouterSettings(top_k=1),
    "balanced": RouterSettings(balance=0.01),
    "two_layer": RouterSettings(gate="mlp"),
}
"""Off the ladder, on the cross-domain target alone: sparse, load-balanced (the factor of Switch Transformers), and Table 3's router."""


def ladder(shop: Workshop) -> dict[str, Any]:
    """{rows: losses, points: the paths by the texts that choose, loads: where routers send tokens}, over all targets."""
    parts = [_on(shop, target) for target in shop.targets.values()]
    return {key: [row for part in parts for row in part[key]] for key in parts[0]}


def _on(shop: Workshop, target: Target) -> dict[str, list[dict[str, Any]]]:
    library = shop.library(target.pair)
    found = compared(shop, library, target, target.name)
    rows = [shop.row(target, "generalist", library.model)]
    rows += [shop.row(target, f"expert:{name}", lambda name=name: library.model(name)) for name in target.pair]
    rows += interpolations(shop, library, target, found)
    loads: list[dict[str, Any]] = []
    for name in routers_of(target):
        routed = cache(lambda name=name: shop.router(library, target, name, routers_of(target)[name]))
        rows.append(shop.row(target, name, routed))
        kept = shop.kept(f"load/{target.name}-{name}", lambda routed=routed: _loads(shop, library, target, routed()))
        loads += [{"target": target.name, "candidate": name, **own} for own in kept]
    return {"rows": rows, "points": [{"target": target.name, **point} for point in found["paths"]], "loads": loads}


def routers_of(target: Target) -> dict[str, RouterSettings]:
    """The routers trained for a target."""
    return RUNGS | (BESIDE if target.name == "cross" else {})


def _loads(shop: Workshop, library: Library, target: Target, model: RoutedForCausalLM) -> list[dict[str, Any]]:
    return [own.to_dict() for own in load(model, library.tokenizer, target.chosen, max_length=shop.recipe.length)]
