"""CKA of every layer with every other, within an expert and between two, on the target and on general text (Fig. 7 and 8)."""

from __future__ import annotations

from typing import Any

from asterism.constellation.settings import SimilaritySettings
from asterism.constellation.similarity import similarity
from asterism.core.corpus import GENERAL
from experiments.route.compared import compared, general
from experiments.route.data import Target
from experiments.route.workshop import Workshop


def maps(shop: Workshop) -> dict[str, Any]:
    """{maps}: {target, texts, left, right, map, n, ...} each; left is right within one expert."""
    return {"maps": [row for target in shop.targets.values() for row in _on(shop, target)]}


def _on(shop: Workshop, target: Target) -> list[dict[str, Any]]:
    library, settings = shop.library(target.pair), SimilaritySettings(max_length=shop.recipe.length)
    between = compared(shop, library, target, target.name)["similarity"]

    def within(name: str, texts: list[str]) -> dict[str, Any]:
        return similarity(library.model(name), None, library.tokenizer, texts, settings, names=(name, name)).to_dict()

    found = []
    left, right = target.pair
    for which, texts in {"target": target.chosen, GENERAL: general(shop)}.items():
        for name in target.pair:
            place = f"maps/{name}-{GENERAL if which == GENERAL else target.name}"  # general text is the same for every target
            own = shop.kept(place, lambda name=name, texts=texts: within(name, texts))
            found.append({"target": target.name, "texts": which, "left": name, "right": name, **own})
        found.append({"target": target.name, "texts": which, "left": left, "right": right, **between[which]})
    return found
