"""Realistic measurements of two models and of a router, as `Compatibility`, `Comparison` and `Trace` give them by `to_dict()`."""

from __future__ import annotations

import math
import re

TEXT = "def solve(price, count):\n    return price * count  # <b>A pen costs 2 & she buys 3</b>\n"

BLOCKS = 5


def similar(left: str, right: str, layers: int = 5, fall: float = 0.15) -> dict:
    """A map that is darkest on its diagonal."""
    table = [[(0.97 if left != right or i != j else 1.0) * math.exp(-fall * abs(i - j)) for j in range(layers)] for i in range(layers)]
    settings = {"site": "mlp", "unit": "token", "estimator": "debiased", "samples": 10000}
    return {"map": table, "names": [left, right], "layers": [list(range(layers))] * 2, "n": 4096, "settings": settings}


def compatibility(advice: str = "route") -> dict:
    """The finding built into it: weights have a barrier of 0.125 nats, MLP outputs mix, layers are alike."""
    shares = [step / 10 for step in range(11)]

    def loss(kind: str, share: float) -> float:
        return 3.2 - 0.3 * share + (0.5 if kind == "lerp" else -0.4) * share * (1 - share)

    paths = [_row(loss(kind, share)) | {"kind": kind, "share": share} for kind in ("lerp", "activation") for share in shares]
    delta = {"entries": 10, "cosine": 0.213, "signs": 0.47, "mass": 0.431, "norms": [12.1, 10.4]}
    ways = {"generalist": 3.4, "specialist": 2.9, "merge": 2.9, "compose": 2.85, "route": 2.8}
    return {
        "left": "math",
        "right": "code",
        "texts": 100,
        "losses": {"generalist": _row(3.4), "math": _row(2.9), "code": _row(3.2)},
        "paths": paths,
        "best": min(paths, key=lambda row: row["loss"]),
        "barriers": {
            "lerp": {"height": 0.125, "low": 0.11, "high": 0.14, "share": 0.5},
            "activation": {"height": 0.0, "low": 0.0, "high": 0.0, "share": 0.0},
        },
        "deltas": {"mlp": delta, "other": dict.fromkeys(delta, 0) | {"norms": [0.0, 0.0]}, "all": delta},
        "similar": {"target": 0.97, "general": 0.96},
        "similarity": {"target": similar("math", "code"), "general": similar("math", "code", fall=0.2)},
        "within": {name: similar(name, name, fall=0.3) for name in ("math", "code")},
        "ways": {name: {"what": f"what {name} is", **_row(own)} for name, own in ways.items()},
        "advice": advice,
        "reason": "On halves of texts not used to choose, in nats a token: MLP outputs 2.800, a mixture for each text 2.850.",
        "notes": ["100 texts do not decide whether it gains over a mixture for each text."],
        "settings": {"points": 11, "seed": 42},
    }


def router(depth: int = 1, models: tuple[str, ...] = ("math", "code"), scope: str = "layer") -> dict:
    """A router over five blocks and the models it beats, beside the text above; every model has its turn."""
    tokens = re.findall(r"\w+| \w+|\s+|.", TEXT)
    blocks = []
    for block in range(BLOCKS):
        experts = [
            {"model": name, "block": block + step if block + step < BLOCKS else BLOCKS - 1 - step}
            for step in range(depth)
            for name in models
        ]
        mass = [1.0 + 0.3 * math.sin(place + block) for place in range(len(experts))]
        mass = [share / sum(mass) for share in mass]
        numbers = {"entropy": 0.7 * math.log2(len(mass)), "effective": len(mass) - 0.2, "chosen": mass}
        blocks.append({"block": block, "experts": experts, "mass": mass, **numbers})

    def weight(name: int, block: int, token: int) -> float:
        return (1 + math.sin(0.9 * token + 0.2 * block + 2 * math.pi * name / len(models))) / len(models)

    shares = {name: [[weight(n, block, t) for t in range(len(tokens))] for block in range(BLOCKS)] for n, name in enumerate(models)}
    gain = {"gain": 0.21, "gain_low": 0.18, "gain_high": 0.24, "rate": 0.93, "rate_low": 0.88, "rate_high": 0.96}
    return {
        "settings": {"scope": scope, "depth": depth, "gate": "linear", "top_k": None},
        "models": list(models),
        "blocks": blocks,
        "texts": 120,
        "router_loss": _row(2.7),
        "rivals": [{"name": name, **_row(own), **gain} for name, own in (("generalist", 3.4), ("math", 2.91), ("code", 3.2))],
        "text": TEXT,
        "left_out": 0,
        "tokens": tokens,
        "shares": shares,
    }


def _row(loss: float) -> dict[str, float]:
    return {"loss": loss, "low": loss - 0.06, "high": loss + 0.05}
