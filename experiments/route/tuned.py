"""Part 3: merging against training: MLPs fine-tuned on the target (Table 1), and experts that were kept compatible (Table 3)."""

from __future__ import annotations

from typing import Any

from asterism.route.settings import RouterSettings
from experiments.route.data import Target
from experiments.route.workshop import Make, Workshop

FINETUNED, FINETUNED_EXPERT, MIX = "finetuned", "finetuned_expert", "mix_layer"


def tuned(shop: Workshop) -> dict[str, Any]:
    """{rows}: the generalist and the better expert fine-tuned on every target, and the router over the experts of the data mix."""
    rows = [row for target in shop.targets.values() for row in _on(shop, target)]
    cross = shop.targets["cross"]
    library = shop.library(cross.pair, "mix")
    return {"rows": [*rows, shop.row(cross, MIX, lambda: shop.router(library, cross, MIX, RouterSettings()))]}


def _on(shop: Workshop, target: Target) -> list[dict[str, Any]]:
    library = shop.library(target.pair)
    losses = {name: shop.chosen(target, f"expert:{name}", lambda name=name: library.model(name)) for name in target.pair}
    expert = min(losses, key=losses.__getitem__)
    tried = {rate: shop.chosen(target, *_finetuned(shop, target, "generalist", rate)) for rate in shop.recipe.rates}
    rate = min(tried, key=tried.__getitem__)
    rows = []
    for name, start in {FINETUNED: "generalist", FINETUNED_EXPERT: expert}.items():
        rows.append(shop.row(target, *_finetuned(shop, target, start, rate), start=start, rate=rate) | {"candidate": name})
    return rows


def _finetuned(shop: Workshop, target: Target, start: str, rate: float) -> tuple[str, Make]:
    """A name and how the model is made."""
    name = f"{start}-{rate:g}"
    folder = shop.generalist if start == "generalist" else shop.expert(start)
    return f"finetuned {name}", lambda: shop.model(shop.finetuned(target, folder, rate, name))
