"""Realistic synthetic results, in the format of results.json: losses drawn a probe and candidate, tables made from them."""

import math

import numpy as np

DOMAINS = ("medical", "legal", "code", "science")
PAIRS = tuple(f"{a}-{b}" for i, a in enumerate(DOMAINS) for b in DOMAINS[i + 1 :])
RIVALS = ("generalist", "best_single", "task_arithmetic", "ensemble", "uniform", "routed_coefficient")
GAINS = {
    "generalist": 0.0, "default": 0.17, "paper": 0.05, "joint": -0.6, "specialist_space": 0.02, "random": 0.04,
    "task_arithmetic": 0.12, "task_arithmetic@0.3": 0.12, "task_arithmetic@0.5": 0.09, "task_arithmetic@1": -0.25,
    "uniform": 0.11, "ensemble": 0.19, "ensemble_uniform": 0.15, "best_single": 0.26, "routed_coefficient": 0.22, "routed_activation": 0.16,
}  # fmt: skip


def sample_results(seeds=(42, 43, 44), protocols=("whole", "continuation"), nodes=192, single=20, pair=10):
    """A full results dict; the finding built into it: `default` beats the generalist and loses to the best single specialist."""
    random = np.random.default_rng(7)
    names = {**GAINS, **{f"specialist:{name}": -0.1 for name in DOMAINS}}
    rows = []
    for protocol in protocols:
        for task, groups, each in (("single", DOMAINS, single), ("cross", PAIRS, pair)):
            for group in groups:
                for probe in range(each):
                    hard = 3.4 + 0.35 * random.standard_normal()
                    for seed in seeds:
                        for name, gain in names.items():
                            own = 0.35 if name.startswith("specialist:") and name.split(":")[1] in group else 0.0
                            loss = hard - gain - own + 0.11 * random.standard_normal()
                            rows.append((seed, protocol, task, group, f"{group}-{probe}", name, float(loss)))
    table, losses = _tables(rows, seeds)
    weights = random.dirichlet((2.0, 1.2, 0.6), size=nodes).T
    probes = [
        _probe(random, group, task, i) for task, groups in (("single", DOMAINS), ("cross", PAIRS)) for group in groups for i in range(12)
    ]
    return {
        "format_version": 1,
        "scale": "sample",
        "seeds": list(seeds),
        "settings": {"protocols": list(protocols), "single_per_domain": single, "cross_per_pair": pair, "seed": seeds[0]},
        "origin": {"library": ["a1b2c3d4" * 8] * 5, "index": {"orthogonalisation": "lowdin", "centring": "none", "layer": "final"}},
        "domains": list(DOMAINS),
        "candidates": {name: f"what {name} is, over all parameters" for name in names},
        "table": table,
        "losses": losses,
        "retrieval": [
            {"seed": seed, "space": space, "top1": top1, "top1_low": top1 - 0.05, "top1_high": min(1.0, top1 + 0.04), "top3": 0.99, "n": 80}
            for seed in seeds
            for space, top1 in (("generalist, default's basis", 0.94), ("generalist, paper's basis", 0.41), ("specialist", 0.52))
        ],
        "correlation": [{"seed": seed, "r": -0.31, "low": -0.37, "high": -0.25, "n": 560} for seed in seeds],
        "collinearity": {
            "raw": [[1.0, 0.981, 0.902, 0.963], [0.981, 1.0, 0.911, 0.957], [0.902, 0.911, 1.0, 0.924], [0.963, 0.957, 0.924, 1.0]],
            "post": np.eye(4).tolist(),
            "mean": 0.940,
            "post_mean": 0.0,
        },
        "mixtures": [
            {"candidate": name, "task": task, "group": group, "entropy": 1.21, "gini": 0.43, "first": {"code": 0.7, "legal": 0.3}, "n": 9}
            for name in ("default", "paper")
            for task, groups in (("single", ("all", *DOMAINS)), ("cross", ("all", *PAIRS)))
            for group in groups
        ],
        "probes": probes,
        "example": {
            "text": "Is a surgeon liable for an infection <b>after</b> an operation & a discharge?",
            "group": "medical-legal",
            "specialists": ["medical", "legal", "science"],
            "coefficients": [9.1, 7.4, -2.2],
            "weights": weights.tolist(),
            "entropy": float(-(weights * np.log2(weights)).sum(axis=0).mean()),
        },
    }  # fmt: skip


def _tables(rows, seeds):
    table, losses = [], []
    for seed in [*seeds, "all"] if len(seeds) > 1 else seeds:
        cells = {}
        for s, protocol, task, group, probe, name, loss in rows:
            if seed in ("all", s):
                for at in (group, "all"):
                    cells.setdefault((protocol, task, at), {}).setdefault(name, {}).setdefault(probe, []).append(loss)
        for (protocol, task, group), found in cells.items():
            where = {"scale": "sample", "seed": seed, "protocol": protocol, "task": task, "group": group}
            means = {name: np.array([np.mean(values) for values in probes.values()]) for name, probes in found.items()}
            for name, values in means.items():
                half = 1.96 * values.std() / math.sqrt(len(values))
                mean = float(values.mean())
                losses.append({**where, "candidate": name, "n": len(values), "loss": mean, "low": mean - half, "high": mean + half})
                for rival in RIVALS:
                    if rival != name:
                        table.append({**where, "candidate": name, "rival": rival, **_win(values, means[rival])})
    return table, losses


def _win(values, others):
    n, rate = len(values), float((values < others).mean())
    centre, spread = rate + 1.92 / n, 1.96 * math.sqrt(rate * (1 - rate) / n + 0.96 / n**2)
    low, high = (centre - spread) / (1 + 3.84 / n), (centre + spread) / (1 + 3.84 / n)
    return {
        "n": n,
        "rate": rate,
        "low": max(0.0, low),
        "high": min(1.0, high),
        "loss": float(values.mean()),
        "rival_loss": float(others.mean()),
    }


def _probe(random, group, task, number):
    place = np.array([4.0 if name in group.split("-") else 0.0 for name in DOMAINS]) / (2 if task == "cross" else 1)
    return {"id": f"{group}-{number}", "group": group, "task": task, "coefficients": (place + random.standard_normal(4)).tolist()}
