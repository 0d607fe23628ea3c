"""Made-up measurements of the experiment on routing, in which every claim of the paper holds unless it is told otherwise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from experiments.route import gather
from experiments.route.compared import KINDS
from experiments.route.data import TARGETS
from experiments.route.recipe import recipe

SEEDS, TEXTS, BLOCKS = (42, 43, 44), 30, 6
LADDER = {
    "generalist": 3.0, "expert:math": 2.6, "expert:code": 2.7, "expert:code2": 2.8, "lerp": 2.5, "slerp": 2.5, "activation": 2.45,
    "interpolation": 2.45, "single": 2.4, "layer": 2.3, "with_generalist": 2.28, "depth2": 2.2, "depth3": 2.18,
    "top1": 2.35, "balanced": 2.31, "two_layer": 2.27,
}  # fmt: skip
TUNED = {"finetuned": 2.0, "finetuned_expert": 1.95, "mix_layer": 2.35}
TABLE = {
    "default": 2.42, "fast": 2.5, "best_single": 2.55, "ensemble": 2.6, "ensemble_uniform": 2.65, "linear": 2.52, "task_arithmetic": 2.51,
    "ties": 2.53, "untrained:prompts": 2.55, "untrained:average": 2.54, "untrained:arrow": 2.56,
}  # fmt: skip
STEPS = (100, 200, 300, 400)
CURVE = {
    "lerp": (2.6, 2.5, 2.55, 2.65),
    "slerp": (2.6, 2.5, 2.55, 2.65),
    "activation": (2.55, 2.45, 2.5, 2.6),
    "layer": (2.35, 2.3, 2.33, 2.4),
    "default": (2.5,) * 4,
}
CKA = {"target": (0.95, 0.9, 0.8, 0.6), "general": (0.96, 0.92, 0.85, 0.7)}


def results(
    ladder: dict[str, float] | None = None,
    curve: dict[str, tuple[float, ...]] | None = None,
    tuned: dict[str, float] | None = None,
    cka: dict[str, tuple[float, ...]] | None = None,
    seeds: tuple[int, ...] = SEEDS,
    noise: float = 0.005,
    near: float = 0.9,
) -> dict[str, Any]:
    """The results that `gather` makes of these mean losses; `noise` is that of a text's loss around its candidate's mean."""
    made = recipe("lab").changed(long=recipe("lab").long.changed(steps=400))
    shops = [
        _shop(
            seed,
            made,
            {**LADDER, **(ladder or {})},
            {**CURVE, **(curve or {})},
            {**TUNED, **(tuned or {})},
            {**CKA, **(cka or {})},
            noise,
            near,
        )
        for seed in seeds
    ]
    size = {"model": {"parameters": 4_000_000, "hidden": 192, "blocks": BLOCKS}, "trained": {}, "called": dict(made.called)}
    targets = [{"name": name, "pair": list(pair), "adapt": 90, "chosen": 10, "tested": TEXTS} for name, pair in TARGETS.items()]
    with patch.object(gather, "described", lambda shop: {**size, "targets": targets}):
        return gather.gather(shops, ["ladder", "tuned", "table", "maps", "curve"], "lab", {"device": "cpu"})[0]  # pyright: ignore[reportArgumentType]


def _shop(seed, made, ladder, curve, tuned, cka, noise, near) -> Any:
    random = np.random.default_rng(seed)
    hard = np.random.default_rng(0).normal(0, 0.5, TEXTS)  # of a text, for every candidate and seed

    def row(target: str, candidate: str, mean: float, **facts: Any) -> dict[str, Any]:
        losses = (mean + hard + noise * random.normal(size=TEXTS)).tolist()
        return {"target": target, "candidate": candidate, "chosen": mean, **facts, "whole": losses, "continuation": losses}

    def rows(of: dict[str, float]) -> list[dict[str, Any]]:
        fits = {name: [x for x in of if not x.startswith("expert:") or x.removeprefix("expert:") in pair] for name, pair in TARGETS.items()}
        return [row(name, candidate, of[candidate]) for name, names in fits.items() for candidate in names]

    points = [
        {"target": name, "kind": kind, "share": share / 10, "loss": 2.7 - 0.2 * share / 10, "low": 2.4, "high": 2.9}
        for name in TARGETS for kind in KINDS for share in range(11)
    ]  # fmt: skip
    loads = [_load(name, block) for name in ("layer", "with_generalist", "depth3") for block in range(BLOCKS)]
    similar = [
        {"step": step, "texts": texts, "mode": mode, "cka": values[i] - 0.02 * (mode == "debiased") + 0.001 * random.normal()}
        for texts, values in cka.items() for mode in ("paper", "debiased") for i, step in enumerate(STEPS)
    ]  # fmt: skip
    along = [row("cross", "generalist", 3.0, step=0)]
    along += [row("cross", name, values[i], step=step) for name, values in curve.items() for i, step in enumerate(STEPS)]
    along += [row("cross", f"expert:{name}", 2.6, step=step) for name in TARGETS["cross"] for step in STEPS]
    own = [row(name, name, 2.5 - i / 10, step=step) for name in TARGETS["cross"] for i, step in enumerate((0, *STEPS))]
    told = {
        "advice": "merge", "barriers": {"lerp": {"height": 0.01}}, "similar": {"target": 0.8},
        "losses": {name: {"loss": loss} for name, loss in (("generalist", 3.0), ("math", 2.6), ("code", 2.7), ("code2", 2.8))},
        "ways": {"generalist": {"loss": 3.0}, "specialist": {"loss": 2.6}, "merge": {"loss": 2.5}},
    }  # fmt: skip
    found = {
        "ladder": {"rows": rows(ladder), "points": points, "loads": loads},
        "tuned": {"rows": [own for own in rows(tuned) if own["candidate"] != "mix_layer" or own["target"] == "cross"]},
        "table": {"rows": rows(TABLE)},
        "maps": {
            "maps": [_map(name, texts, pair, near, random) for name in TARGETS for texts in ("target", "general") for pair in _pairs(name)]
        },
        "curve": {"rows": along, "own": own, "similar": similar},
    }
    targets = {name: SimpleNamespace(name=name, pair=pair) for name, pair in TARGETS.items()}
    return SimpleNamespace(seed=seed, recipe=made, targets=targets, found=lambda name: found.get(name, told))


def _pairs(target: str) -> list[tuple[str, str]]:
    left, right = TARGETS[target]
    return [(left, left), (right, right), (left, right)]


def _map(target: str, texts: str, pair: tuple[str, str], near: float, random: np.random.Generator) -> dict[str, Any]:
    apart = np.abs(np.subtract.outer(np.arange(BLOCKS), np.arange(BLOCKS)))
    values = near**apart - 0.05 * (pair[0] != pair[1]) + 0.001 * random.normal(size=apart.shape)
    layers = [list(range(BLOCKS))] * 2
    settings = {"estimator": "debiased", "site": "mlp"}
    where = {"target": target, "texts": texts, "left": pair[0], "right": pair[1], "names": list(pair), "layers": layers}
    return {**where, "n": 900, "settings": settings, "map": values.tolist()}


def _load(name: str, block: int) -> dict[str, Any]:
    models = ["math", "code", *(["generalist"] if name == "with_generalist" else [])]
    reach = [(block + shift) % BLOCKS for shift in range(3)] if name == "depth3" else [block]
    experts = [{"model": model, "block": source} for source in reach for model in models]
    even = [1 / len(experts)] * len(experts)
    numbers = {"entropy": 0.9, "effective": 1.9, "mass": even, "chosen": even}
    return {"target": "cross", "candidate": name, "block": block, "experts": experts, **numbers}
