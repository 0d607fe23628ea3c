"""A fusion and its evaluation as fusion.json and `evaluate.fusion.compare` tell them, with figures made up."""

from __future__ import annotations

import random

from asterism.evaluate.answers import summary

NAMES = ("target", "fused", "control", "fusellm", "gac", "unite", "task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", "emr")
TASKS = {"movies": "items", "reviews": "label"}
FUNCTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def told(blocks: int = 6, *, gates: bool = True) -> dict:
    """What fusion.json says of a fusion with two sources, the second nearly silenced."""
    generator = random.Random(3)
    slots = [
        {
            "block": block, "function": function, "parameter": f"layers.{block}.{function}",
            "norm_ratio": 0.02 + 0.3 * generator.random() * (block + 1) / blocks,
            "condition_before": 8 + block, "condition_after": 9.5 + block,
        }
        for function in FUNCTIONS for block in range(1, blocks)
    ]  # fmt: skip
    slot = {"block": 0, "function": "q", "parameter": "layers.0.q"}
    opened = {"qwen-movies": {"open": 0.62, "mean": 0.13}, "gpt2-noise": {"open": 0.04, "mean": 0.002}}
    return {
        "settings": {"layers": "top", "alpha": 0.3}, "training": {"steps": 100}, "slots": slots,
        "sources": {
            "qwen-movies": {"family": "qwen2", "rank": 8, "adapter": "qwen/movies"},
            "gpt2-noise": {"family": "gpt2", "rank": 4, "adapter": "n"},
        },
        "openness": opened if gates else {}, "examples": {"learnt": 270, "held_out": 30}, "start_loss": 1.2345, "held_out_loss": 1.1,
        "best_step": 80,
        "alignment": {
            "pairs": [{**own, "sources": []} for own in slots], "unpaired_target": [slot] * 7,
            "unpaired_sources": {"qwen-movies": [slot] * 14, "gpt2-noise": []},
        },
    }  # fmt: skip


def rows(names=NAMES, texts: int = 40, *, lift: float = 0.12, seed: int = 1, written: bool = True) -> list[dict]:
    """Rows of an evaluation in which `fused` is above the target by about `lift`, the control by half of it."""
    generator = random.Random(seed)
    level = {"target": 0.5, "fused": 0.5 + lift, "control": 0.5 + lift / 2}
    found = []
    for task, mark in TASKS.items():
        for text in range(texts):
            luck = generator.random()
            for place, name in enumerate(names):
                hit = luck < level.get(name, 0.5 + 0.02 * (place % 5))
                possible = 4.0 if mark == "items" else 1.0
                loss = 1.0 + luck - level.get(name, 0.5)
                found.append(
                    {
                        "scale": "tiny", "seed": seed, "task": task, "mark": mark, "probe": f"{task}-{text}", "candidate": name,
                        "nats": 8 * loss, "tokens": 8, "characters": 30, "loss": loss, "answer": "x: y" if written else None,
                        "gained": (possible if hit else possible / 4) * (mark == "items" or hit) if written else None,
                        "possible": possible if written else None,
                    }
                )  # fmt: skip
    return found


def results(names=NAMES, **more) -> dict:
    """As `compare` gives them."""
    own = rows(names, **more)
    return {
        "tasks": [{"name": task, "mark": mark, "n": 40, "about": mark} for task, mark in TASKS.items()],
        "candidates": {name: f"what {name} is" for name in names}, "scale": "tiny", "seeds": [1], "settings": {},
        **summary(own, "tiny", ("target", "control")),
        "answers": [{"task": "movies", "prompt": "List <b>all</b> titles.\nText: half baked", "wanted": " title: half baked",
                     "answers": {name: "" if name == "gac" else " title: half <i>baked</i>" for name in names}}],
    }  # fmt: skip


def fusion(**more) -> dict:
    """Everything that the page is made of."""
    return {"stages": {"fusion": told()}, "results": results(**more)}
