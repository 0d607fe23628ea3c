"""Made-up measurements of the experiment on fusion, in which every claim holds unless it is told otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from asterism.core import statistics
from asterism.evaluate import answers
from asterism.models.examples import Example
from experiments.fuse import parts as made_parts
from experiments.fuse.data import Data, TaskData
from experiments.fuse.gather import gather
from experiments.fuse.parts import PARTS
from experiments.fuse.recipe import recipe
from experiments.fuse.workshop import Workshop

SEEDS, TEXTS = (42, 43, 44), 24
QUALITY = {
    "target": 0.3, "source": 0.35, "control": 0.5, "control_up": 0.45, "fused": 0.8, "fusellm": 0.55, "gac": 0.4, "unite": 0.42,
    "task_arithmetic": 0.45, "ties": 0.46, "dare_ties": 0.44, "breadcrumbs": 0.47, "della": 0.43, "emr": 0.5, "untuned": 0.78,
    "random pairing": 0.55, "no gate": 0.6, "no regulariser": 0.62, "A free": 0.64, "shuffled sources": 0.5, "layers proportional": 0.66,
    "layers by CKA": 0.8, "change within B": 0.7, "alpha 0.05": 0.8, "alpha 0.9": 0.8, "mu_gate -0.4": 0.8, "mu_gate 0.15": 0.8,
}  # fmt: skip
"""Candidate -> share of the examples that it gets right."""


def results(
    quality: Mapping[str, float] | None = None,
    parts: Sequence[str] = tuple(PARTS),
    seeds: Sequence[int] = SEEDS,
    noise: float = 0.0,
    opened: Mapping[str, float] | None = None,
    growth: float = 1.5,
    jitter: Mapping[int, float] | None = None,
    lacking: Mapping[int, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """The results that `gather` makes of these shares; `fused:SETTING` names the fused adapter of one setting.

    noise: of a candidate's difficulties around everyone's; opened: gates of `real` and `noise`; growth: of condition numbers; jitter: what
    is added to the share of `fused` with a seed; lacking: parts that a seed has not.
    """
    shops = [_Made(seed, {**QUALITY, **(quality or {})}, noise, (jitter or {}).get(seed, 0.0)) for seed in seeds]

    def fact(shop: Workshop, setting: Any, candidate: str = "fused", **changes: Any) -> dict[str, Any]:
        stand = {"real": 0.7, "noise": 0.2, **(opened or {})}
        gates = {own.name: stand["real"] for own in setting.sources} | {own.name: stand["noise"] for own in setting.noise}
        told = {"open": {} if candidate == "no gate" else gates, "norm_ratio": 0.1, "norm_ratio_most": 0.2, "alpha": 0.31, "pairs": 35}
        told |= {"condition_growth": growth / 1.5, "condition_growth_most": growth, "by_function": {"q": 0.1, "up": 0.15}}
        return {"setting": setting.name, "candidate": candidate, "start_loss": 2.0, "chosen_loss": 1.5, **told}

    best = {"alpha 0.05": {"alpha": 0.05}}
    with ExitStack() as stack:
        for owner, name, own in (
            (made_parts, "fact", fact),
            (made_parts, "best", lambda _shop: next(iter(best.items()))),
            (answers, "tables", lambda *_given: ([], [])),
            (answers, "bootstrap_mean", near_enough),
            *((answers, name, partial(getattr(statistics, name), resamples=40)) for name in ("bootstrap_ratio", "ratio_gain")),
        ):
            stack.enter_context(patch.object(owner, name, own))
        for shop in shops:
            for part in (part for part in parts if part not in (lacking or {}).get(shop.seed, ())):
                shop.done[part] = PARTS[part](shop) | {"minutes": 3.0}
        return gather(shops, list(PARTS), "lab", {"device": "cpu"})[0]


def near_enough(values: Any) -> tuple[float, float, float]:
    """A mean with a 95 % interval, quickly."""
    mean, error = float(np.mean(values)), 1.96 * float(np.std(values)) / len(values) ** 0.5
    return mean, mean - error, mean + error


class _Made(Workshop):
    """A workshop whose candidates are shares."""

    def __init__(self, seed: int, quality: Mapping[str, float], noise: float, jitter: float) -> None:
        made = recipe("lab").changed(ensembled=20)
        examples = [Example(f"question {number}", f"answer {number}") for number in range(TEXTS)]
        data = Data({name: TaskData(name, examples, examples, examples) for name in made.all_tasks}, [], [], [])
        super().__init__(made, data, Path("nowhere"), seed)
        self.quality, self.noise, self.jitter = quality, noise, jitter
        self.done: dict[str, Any] = {}
        self.targets = {setting.target.name for setting in self.settings.values()}

    def found(self, name: str) -> Any:
        return self.done.get(name, 3e-4 if name.startswith("rate-") else None)

    def known(self, name: str, names: Sequence[str], count: int | None = None) -> bool:
        return True

    def rows(self, candidate: Any, names: Sequence[str], count: int | None = None) -> list[dict[str, Any]]:
        share, rows = self._share(candidate.name), []
        for task in names:
            hard = np.random.default_rng([self.seed, *task.encode()]).permutation(TEXTS) / TEXTS
            own = np.random.default_rng([self.seed, *f"{task} {candidate.name}".encode()]).normal(0, self.noise, TEXTS)
            for place in range(min(count or TEXTS, TEXTS)):
                right = float(hard[place] + own[place] < share)
                marked = task not in self.recipe.unmarked
                loss = 2.0 - share + 0.5 * float(hard[place]) + float(own[place])
                rows.append(
                    {
                        "scale": "answers", "task": task, "mark": "items" if marked else "exact", "probe": f"{task}-{place}",
                        "nats": 4 * loss, "tokens": 4, "characters": 12, "loss": loss, "answer": "text" if marked else None,
                        "gained": right if marked else None, "possible": 1.0 if marked else None,
                    }
                )  # fmt: skip
        return rows

    def _share(self, key: str) -> float:
        kind, _, rest = key.partition("/")
        if kind == "alone":
            return self.quality["target" if rest in self.targets else "source"]
        if kind != "fused":
            return self.quality[kind]
        setting, _, candidate = rest.partition("/")
        own = self.quality.get(f"fused:{setting}", self.quality["fused"]) if candidate == "fused" else self.quality[candidate]
        return own + (self.jitter if candidate == "fused" else 0.0)
