"""From raw losses a probe to win rates and mean losses with intervals, for each seed and over all seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asterism.core.statistics import bootstrap_mean, wilson

RIVALS = ("generalist", "best_single", "task_arithmetic", "ensemble", "uniform", "routed_coefficient")
"""Whom every candidate is compared with, where they were scored."""

Row = Mapping[str, Any]
Losses = dict[tuple[str, str], dict[Any, float]]
"""(group, probe) -> seed -> loss."""


def tables(rows: Sequence[Row], scale: str, rivals: Sequence[str] = RIVALS) -> tuple[list[dict], list[dict]]:
    """(win rates of every candidate against the rivals, mean losses) from rows {seed, protocol, task, group, probe, candidate, loss}.

    With several seeds the seed "all" counts each probe once: its wins and losses are averaged over seeds first, so the
    intervals speak of probes, not of repeated measurements of the same probe.
    """
    seeds = sorted({row["seed"] for row in rows})
    wins, losses = [], []
    for seed in [*seeds, "all"] if len(seeds) > 1 else seeds:
        chosen = rows if seed == "all" else [row for row in rows if row["seed"] == seed]
        for (protocol, task), cell in _split(chosen, "protocol", "task").items():
            for group, part in [("all", cell), *((g[0], p) for g, p in _split(cell, "group").items())]:
                where = {"scale": scale, "seed": seed, "protocol": protocol, "task": task, "group": group}
                table = _by_candidate(part)
                losses += [where | _loss(name, values) for name, values in table.items()]
                wins += [where | _win(name, rival, table) for name in table for rival in rivals if rival in table and rival != name]
    return wins, losses


def best_of(rows: list[dict], prefix: str, name: str) -> list[dict]:
    """Rows of `name`: in each seed, protocol and task, the candidate starting with `prefix` whose mean loss is lowest."""
    found = []
    for _, cell in _split(rows, "seed", "protocol", "task").items():
        means = {
            c: float(np.mean([row["loss"] for row in part])) for (c,), part in _split(cell, "candidate").items() if c.startswith(prefix)
        }
        if means:
            best = min(means, key=lambda c: means[c])
            found += [{**row, "candidate": name} for row in cell if row["candidate"] == best]
    return found


def _split(rows: Iterable[Row], *keys: str) -> dict[tuple, list]:
    parts: dict[tuple, list] = {}
    for row in rows:
        parts.setdefault(tuple(row[key] for key in keys), []).append(row)
    return parts


def _by_candidate(rows: Iterable[Row]) -> dict[str, Losses]:
    """candidate -> (group, probe) -> seed -> loss."""
    table: dict[str, Losses] = {}
    for row in rows:
        table.setdefault(row["candidate"], {}).setdefault((row["group"], row["probe"]), {})[row["seed"]] = row["loss"]
    return table


def _loss(candidate: str, probes: Losses) -> dict:
    mean, low, high = bootstrap_mean([float(np.mean(list(seeds.values()))) for seeds in probes.values()])
    return {"candidate": candidate, "n": len(probes), "loss": mean, "low": low, "high": high}


def _win(candidate: str, rival: str, table: dict[str, Losses]) -> dict:
    mine, theirs = table[candidate], table[rival]
    paired = [
        [(loss, theirs[probe][seed]) for seed, loss in seeds.items() if seed in theirs.get(probe, {})] for probe, seeds in mine.items()
    ]
    paired = [pairs for pairs in paired if pairs]
    won = sum(float(np.mean([1.0 if a < b else 0.5 if a == b else 0.0 for a, b in pairs])) for pairs in paired)
    rate, low, high = wilson(won, len(paired))
    sides = np.array([np.mean(pairs, axis=0) for pairs in paired])
    return {
        "candidate": candidate, "rival": rival, "n": len(paired), "rate": rate, "low": low, "high": high,
        "loss": float(sides[:, 0].mean()), "rival_loss": float(sides[:, 1].mean()),
    }  # fmt: skip
