"""A made-up ladder in the format of results.json: six rungs of two families and one that diverged, with findings built in."""

from itertools import combinations, permutations

import numpy as np

from asterism.core.statistics import wilson
from experiments.constellation.advice import advice_rows, summary

DOMAINS = ("medical", "legal", "code", "science")
PAIRS = tuple(f"{a}-{b}" for a, b in combinations(DOMAINS, 2))
SIZES = {"0.5m": (500_000, 64, 4), "2m": (2_000_000, 128, 6), "8m": (8_000_000, 256, 8)}
RUNGS = tuple(f"{family}-{size}" for family in ("gpt2", "qwen2") for size in SIZES)
RATES = {
    ("default", "generalist"): 0.99, ("default", "task_arithmetic"): 0.97, ("default", "best_single"): 0.7, ("default", "ensemble"): 0.6,
    ("paper", "generalist"): 0.55, ("paper", "task_arithmetic"): 0.3, ("paper", "best_single"): 0.05, ("paper", "ensemble"): 0.02,
    ("specialist_space", "generalist"): 0.5, ("specialist_space", "task_arithmetic"): 0.25, ("joint", "generalist"): 0.0,
    ("task_arithmetic", "generalist"): 0.65, ("nodes", "generalist"): 0.9, ("nodes", "task_arithmetic"): 0.8,
    ("nodes", "best_single"): 0.3, ("ensemble", "generalist"): 0.98, ("ensemble", "task_arithmetic"): 0.95,
    ("ensemble", "best_single"): 0.6,
    ("refined", "generalist"): 1.0, ("refined", "task_arithmetic"): 0.98, ("refined", "best_single"): 0.75,
    ("fast", "generalist"): 0.92, ("fast", "task_arithmetic"): 0.85, ("fast", "best_single"): 0.4,
}  # fmt: skip
"""(candidate, rival) -> win rate, at every rung unless `rates` says otherwise."""
LOSSES = {
    "generalist": 5.8, "paper": 5.78, "default": 5.4, "task_arithmetic": 5.75, "ensemble": 5.45, "best_single": 5.45, "joint": 6.3,
    "refined": 5.38, "fast": 5.55, "nodes": 5.6,
}  # fmt: skip
IDEAS = {
    "evidence, scale 1.3": (4, 5.15), "evidence, scale 1": (4, 5.17), "evidence, 3 gradient steps": (13, 5.14),
    "fast: the prior alone": (1, 5.33),
    "nodes: coefficient x activation": (4, 5.31), "evidence, last 4 blocks": (4, 5.5), "logit ensemble": (None, 5.34),
    "generalist": (None, 5.52),
}  # fmt: skip
"""Idea -> (passes over the query, mean loss at the first rung; each further one is 0.1 lower)."""
WAYS = {"fixed": 0.0, "every 16, rebuilt": 0.033, "every 16, kept": 0.0335, "every 64, rebuilt": 0.026, "every 64, kept": 0.0264}
"""Way to renew the mixture -> nats a token that it saves."""
LINES = {"default": "composition: ours; all parameters (100% of the parameters)", "paper": "theirs; 4 blocks (41% of the parameters)"}
FRACTIONS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
SPACES = {"generalist, default's basis": 0.85, "generalist, paper's basis": 0.6, "specialist": 0.8}


def cosines(base=0.5, step=0.01, place=0):
    """[4][4] cosines: medical-legal the most alike, the pairs with code the least; `place` shifts all of them."""
    table = np.eye(4)
    for (a, b), value in {(0, 1): 0.3, (0, 3): 0.2, (1, 3): 0.15, (0, 2): 0.05, (1, 2): 0.02, (2, 3): 0.0}.items():
        table[a, b] = table[b, a] = base + value + step * place
    return table


def ladder(rates=None, tables=None, noise=None, seeds=(42, 43, 44), sections=None):
    """A results dict. `rates` {(rung, candidate, rival): rate}, `tables` {rung: cosines}, `noise` {(rung, site): {fraction: rate}}."""
    rates, tables, noise = rates or {}, tables or {}, noise or {}
    rungs = []
    for name in RUNGS:
        family, _, size = name.partition("-")
        parameters, hidden, blocks = SIZES[size]
        steps = {"generalist": 2000, "specialist": 150}
        rungs.append(
            {"name": name, "family": family, "parameters": parameters, "hidden": hidden, "blocks": blocks, "diverged": None, "steps": steps}
        )
    rungs.append({**rungs[-1], "name": "qwen2-30m", "parameters": None, "hidden": None, "blocks": None, "diverged": "not finite"})
    results = {
        "format_version": 1, "ladder": "lab", "machine": {"device": "cpu", "cores": 2}, "domains": list(DOMAINS), "seeds": list(seeds),
        "rungs": rungs, "candidates": {name: dict(LINES) for name in RUNGS},
    }  # fmt: skip
    parts = (_wins, _losses, _geometry, _mixtures, _noise, _sweeps, _beside)
    for part in parts:
        for section, rows in part(seeds, rates if part is _wins else tables if part is _geometry else noise).items():
            results.setdefault(section, []).extend(rows)
    results["advice"] = advice_rows(results["losses"], results["diagnosis"])
    results["advisers"] = summary(results["advice"])
    return results if sections is None else {k: v for k, v in results.items() if k not in SECTIONS or k in sections}


SECTIONS = (
    "table", "losses", "collinearity", "retrieval", "correlation", "mixtures", "diagnosis", "noise", "orders", "layers", "top_k", "probes",
    "sizes", "advice", "calibration", "ideas", "updating",
)  # fmt: skip


def rate(share, n, key=""):
    """A rate and its interval as a row has them."""
    value, low, high = wilson(share * n, n)
    return {key: value, f"{key}_low": low, f"{key}_high": high} if key else {"rate": value, "low": low, "high": high}


def _all(seeds):
    return (*seeds, "all") if len(seeds) > 1 else tuple(seeds)


def _wins(seeds, rates):
    rows = []
    for name in RUNGS:
        for (candidate, rival), usual in RATES.items():
            share = rates.get((name, candidate, rival), usual)
            for seed in _all(seeds):
                for protocol in ("whole", "continuation"):
                    for task, n, groups in (("single", 160, DOMAINS), ("cross", 150, PAIRS)):
                        for group in ("all", *groups) if candidate in ("default", "paper") else ("all",):
                            size = n if group == "all" else n // len(groups)
                            where = {"scale": name, "seed": seed, "protocol": protocol, "task": task, "group": group}
                            loss = LOSSES.get(candidate, 5.7), LOSSES.get(rival, 5.7)
                            own = {"candidate": candidate, "rival": rival, "n": size, "loss": loss[0], "rival_loss": loss[1]}
                            rows.append(where | own | rate(share, size))
    return {"table": rows}


def _losses(seeds, _):
    return {
        "losses": [
            {
                "scale": name, "seed": seed, "protocol": protocol, "task": task, "group": "all", "candidate": candidate, "n": n,
                "loss": loss, "low": loss - 0.08, "high": loss + 0.08,
            }
            for name in RUNGS for seed in _all(seeds) for protocol in ("whole", "continuation")
            for task, n in (("single", 160), ("cross", 150)) for candidate, loss in LOSSES.items()
        ]
    }  # fmt: skip


def _geometry(seeds, tables):
    found = {"collinearity": [], "retrieval": [], "correlation": [], "diagnosis": [], "calibration": []}
    for place, name in enumerate(RUNGS):
        table = np.array(tables.get(name, cosines(place=place % 3)))
        for seed in seeds:
            where = {"scale": name, "seed": seed}
            raw = table + 0.001 * (seed - seeds[0]) * (1 - np.eye(len(table)))
            mean = float(raw[np.triu_indices(len(raw), 1)].mean())
            found["collinearity"].append(where | {"raw": raw.tolist(), "mean": mean, "post_mean": -0.333, "paper_post_mean": 2e-9})
            for space, top1 in SPACES.items():
                found["retrieval"].append(where | {"space": space, **rate(top1, 160, "top1"), "top3": 0.97, "n": 160})
            fitted = {"delta_scale": 1.3, "temperature": 0.15, "generalist": -1.0, "prior": 0.5}
            found["calibration"].append(where | fitted | {"fast_prior": 2.0, "fast_generalist": 0.0, "fast_scale": 1.0})
            found["correlation"].append(where | {"r": -0.4, "low": -0.45, "high": -0.35, "n": 640})
            advice = {"mean": mean, "advice": "compose", "geometry": "merge", "reason": "The index finds 85.0% of left-out probes."}
            found["diagnosis"].append(where | advice | {"collinearity": {"mean": mean}})
    return found


def _mixtures(seeds, _):
    groups = [("single", "all"), ("cross", "all"), *(("single", domain) for domain in DOMAINS)]
    return {
        "mixtures": [
            {
                "scale": name, "seed": seed, "candidate": candidate, "task": task, "group": group, "n": 160 if group == "all" else 40,
                "entropy": 1.02 if candidate == "paper" else 0.6,
                "gini": 0.3 + 0.05 * (place % 3) + 0.001 * (seed - seeds[0]),
                "first": {"medical": 0.65, "code": 0.25, "legal": 0.1},
            }
            for place, name in enumerate(RUNGS) for seed in seeds for candidate in ("default", "paper", "joint") for task, group in groups
        ]
    }  # fmt: skip


def _noise(seeds, noise):
    rows = []
    for name in RUNGS:
        for site in ("centroids", "weights", "control"):
            own = noise.get((name, site), {})
            for seed in _all(seeds):
                for fraction in FRACTIONS:
                    where = {"scale": name, "seed": seed, "site": site, "fraction": fraction, "protocol": "whole", "task": "cross"}
                    rows.append(where | rate(own.get(fraction, 0.3 - fraction), 150) | {"n": 150, "loss": 5.8, "ta_loss": 5.75})
    return {"noise": rows}


def _compared(loss, generalist, ta, n=150):
    return {
        "n": n, "loss": loss, "loss_low": loss - 0.08, "loss_high": loss + 0.08, **rate(generalist, n, "rate_generalist"),
        **rate(ta, n, "rate_ta"), **rate(ta, n), "generalist_loss": 5.8, "ta_loss": 5.75,
    }  # fmt: skip


def _sweeps(seeds, _):
    found = {"orders": [], "layers": [], "top_k": [], "probes": [], "sizes": []}
    for place, name in enumerate(RUNGS):
        where = {"scale": name, "seed": seeds[0], "protocol": "whole", "task": "cross"}
        for turn, order in enumerate(permutations(DOMAINS)):
            told = _compared(5.8 - 0.003 * turn, 0.5, 0.2 + 0.012 * turn)
            found["orders"].append(where | {"order": list(order), **rate(0.5 + 0.01 * (turn % 7), 160, "top1")} | told)
        blocks = SIZES[name.partition("-")[2]][2]
        labels = [*(f"last {count}" for count in sorted({1, *range(2, blocks, 2), blocks})), "first", "middle", "all"]
        for mixture, lift in (("default", 0.25), ("paper", 0.0)):
            for turn, label in enumerate(labels):
                for protocol in ("whole", "continuation"):
                    told = _compared(5.8 - 0.02 * turn, 0.5 + 0.02 * turn, 0.3 + lift + 0.02 * turn)
                    told |= {"share": (turn + 1) / len(labels), "chosen": label == "all", "validation_loss": 5.8 - 0.02 * turn}
                    found["layers"].append({**where, "protocol": protocol, "mixture": mixture, "layers": label, **told})
            for k in (1, 2, 3, 4):
                told = _compared(5.6 - 0.02 * k, 0.8, 0.5 + lift + 0.03 * k)
                found["top_k"].append(where | {"mixture": mixture, "top_k": k} | told)
        for count in (1, 4, 10, 40):
            for draw in range(3):
                for mixture in ("paper", "nodes", "fast"):
                    told = _compared(5.7, 0.6, 0.3 + 0.004 * count + 0.02 * draw + 0.01 * place)
                    found["probes"].append(where | {"count": count, "draw": draw, "mixture": mixture, "top1": 0.5 + 0.008 * count} | told)
    for size in (2, 4, 8, 16, 32):
        told = _compared(5.5, 0.95, 0.7 + 0.006 * size) | rate(0.5, 150, "rate_best_single") | rate(0.9 - 0.01 * size, 160, "top1")
        cost = {"query_s": 0.01 * size, "passes": 4.0}
        row = {"scale": RUNGS[0], "seed": seeds[0], "size": size, "candidate": "default", "cost": cost, "cells": []}
        found["sizes"].append(row | told | {"top3": 0.95})
    return found


def _beside(_, __):
    found = {"ideas": [], "updating": []}
    for place, name in enumerate(RUNGS):
        for idea, (cost, first) in IDEAS.items():
            mean = first - 0.1 * place
            cells = {f"{protocol}/{task}": mean for protocol in ("whole", "continuation") for task in ("cross", "single")}
            won = {} if cost is None else {"whole/cross > best single": 0.9}
            found["ideas"].append({"scale": name, "idea": idea, "cost": cost, "mean": mean, **cells, **won})
        for way, gain in WAYS.items():
            spread = 0.02 if gain else 0.0
            told = {"n": 60, "loss": 5.22 - gain, "gain": gain, "gain_low": gain - spread, "gain_high": gain + spread}
            found["updating"].append({"scale": name, "way": way, **told, "rate": 0.6, "low": 0.5, "high": 0.7})
    return found
