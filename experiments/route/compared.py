"""Two experts side by side on a target: `asterism compat`, its best points scored on held-out texts, and the paper's CKA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asterism.constellation.settings import SimilaritySettings
from asterism.constellation.similarity import similarity
from asterism.core.corpus import GENERAL
from asterism.models.library import Library
from asterism.route.compat import compat
from asterism.route.interpolation import Kind, path
from asterism.route.settings import CompatSettings
from experiments.route.data import Target
from experiments.route.workshop import Workshop

KINDS: tuple[Kind, ...] = ("lerp", "slerp", "activation")
INTERPOLATION = "interpolation"
"""The best of the three by the texts that choose."""


def compared(shop: Workshop, library: Library, target: Target, name: str) -> dict[str, Any]:
    """What `compat` says of the pair by the texts that choose, and of their layers on general text as well."""
    settings = CompatSettings(slerp=True, max_length=shop.recipe.length, seed=shop.seed)
    comparing = SimilaritySettings(max_length=shop.recipe.length)

    def measure() -> dict[str, Any]:
        left, right = target.pair
        return compat(library, left, right, target.chosen, general=general(shop), settings=settings, comparing=comparing).to_dict()

    return shop.kept(f"compat/{name}", measure)


def interpolations(shop: Workshop, library: Library, target: Target, found: Mapping[str, Any], **facts: Any) -> list[dict[str, Any]]:
    """A row a kind of path, at the share that loses least on the texts that choose, and one for the best of the kinds."""
    rows = []
    stem = f"step-{facts['step']} " if "step" in facts else ""
    for kind in KINDS:
        best = min((point for point in found["paths"] if point["kind"] == kind), key=lambda point: point["loss"])
        share = best["share"]

        def make(kind: Kind = kind, share: float = share) -> Any:
            return path(library, *target.pair, kind).at(share)

        rows.append(shop.row(target, f"{stem}{kind}", make, share=share, **facts) | {"candidate": kind})
    return [*rows, min(rows, key=lambda row: row["chosen"]) | {"candidate": INTERPOLATION}]


def middle(blocks: int) -> int:
    """The block whose output the paper's CKA looks at: the 7th of 12."""
    return blocks // 2


def similarities(shop: Workshop, library: Library, target: Target, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """CKA of the two experts at the middle block, {texts, mode, cka}: the paper's way and ours, on the target and on general text."""
    block, length = middle(library.anatomy.n_blocks), shop.recipe.length
    paper = SimilaritySettings.paper(layers=(block,), site="block", max_length=length)
    models = [library.model(name) for name in target.pair]
    count = shop.recipe.windows
    texts = {"target": target.adapt[:count], GENERAL: shop.data.train[GENERAL][:count]}
    rows = [{"texts": which, "mode": "debiased", "cka": own["map"][block][block]} for which, own in found["similarity"].items()]
    for which, own in texts.items():
        cka = similarity(models[0], models[1], library.tokenizer, own, paper).map
        rows.append({"texts": which, "mode": "paper", "cka": float(cka[0, 0])})
    return rows


def general(shop: Workshop) -> list[str]:
    """General text that nothing was trained on."""
    return shop.data.heldout[GENERAL][: shop.recipe.general]
