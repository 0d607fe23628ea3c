"""Part 1: what two experts are worth together, and how alike they are, along their training. Is there a point from which it gets worse?"""

from __future__ import annotations

from typing import Any

from asterism.evaluate.candidates import DEFAULT
from asterism.models.library import Library
from asterism.route.settings import RouterSettings
from experiments.route.compared import compared, interpolations, similarities
from experiments.route.table import MODES, composed
from experiments.route.workshop import Workshop, told

TARGET = "cross"
ROUTER = "layer"


def curve(shop: Workshop) -> dict[str, Any]:
    """{rows: losses by step on the target, own: each expert's loss on its own domain, similar: CKA by step}."""
    target = shop.targets[TARGET]
    start = shop.library(target.pair, "long", shop.recipe.steps[0])
    rows = [shop.row(target, "generalist", start.model, step=0)]
    own = _own(shop, start, 0)
    similar: list[dict[str, Any]] = []
    for step in shop.recipe.steps:
        library = shop.library(target.pair, "long", step)
        found = compared(shop, library, target, f"step-{step}")
        rows += interpolations(shop, library, target, found, step=step)
        own += _own(shop, library, step)
        kept = shop.kept(f"similar/step-{step}", lambda library=library, found=found: similarities(shop, library, target, found))
        similar += [{"step": step, **row} for row in kept]
        if step in shop.recipe.routed_steps:
            rows += _routed(shop, library, step)
    return {"rows": rows, "own": own, "similar": similar}


def _routed(shop: Workshop, library: Library, step: int) -> list[dict[str, Any]]:
    """The experts of one step each alone, their full-layer router and their composition."""
    target, name = shop.targets[TARGET], f"step-{step}"
    rows = [shop.row(target, f"{name} {expert}", lambda expert=expert: library.model(expert), step=step) for expert in target.pair]
    rows = [row | {"candidate": f"expert:{expert}"} for row, expert in zip(rows, target.pair, strict=True)]
    routed = shop.row(target, f"{name} {ROUTER}", lambda: shop.router(library, target, f"{name}-{ROUTER}", RouterSettings()), step=step)
    losses = composed(shop, library, target, f"{name} ", {DEFAULT: MODES[DEFAULT]})[DEFAULT]
    return [*rows, routed | {"candidate": ROUTER}, told(target.name, DEFAULT, losses, step=step)]


def _own(shop: Workshop, library: Library, step: int) -> list[dict[str, Any]]:
    """Each expert on held-out text of its own domain; the generalist at step 0."""
    rows = []
    for name in shop.targets[TARGET].pair:
        texts = shop.data.heldout[name][: shop.recipe.tested]
        losses = shop.losses(f"step-{step}", lambda name=name: library.model(name if step else None), texts, shop.folder / "scores" / name)
        rows.append(told(name, "generalist" if step == 0 else name, losses, step=step))
    return rows
