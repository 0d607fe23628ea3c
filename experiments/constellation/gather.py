"""All finished rungs and seeds of a ladder as one results dict, with their raw rows; no model is run, and a diverged rung has no rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asterism.core.corpus import GENERAL
from asterism.core.progress import track
from asterism.core.statistics import bootstrap_mean, wilson
from asterism.core.storage import digest_of, read_json, write_json
from asterism.evaluate.candidates import DEFAULT, PAPER, TASK_ARITHMETIC
from asterism.evaluate.results import read_results
from asterism.evaluate.tables import tables
from asterism.models.anatomy import anatomy_of, skeleton
from asterism.models.loading import read_config
from experiments.constellation.advice import advice_rows, summary
from experiments.constellation.general import general_rows
from experiments.constellation.ladder import EVALUATION, FACTS, SWEPT, divergence, place, steps_done
from experiments.constellation.models import GENERALIST
from experiments.constellation.rung import DOMAINS, Rung
from experiments.constellation.sweeps import SWEEPS, due

FORMAT = 1
RIVALS = {"generalist": "rate_generalist", TASK_ARITHMETIC: "rate_ta"}
"""Whom a sweep's compositions are compared with -> the name of the win rate."""
SIZES_ROWS = Path("sizes", "rows.json")
"""Where sizes.py leaves its rows, within a ladder's runs."""
BESIDE = ("ideas", "updating")
"""Experiments on validation probes that keep their rows in a file of their own."""
GROUPED = (DEFAULT, PAPER)
"""Candidates whose rows are kept domain by domain and pair by pair."""
Row = dict[str, Any]


def gather(ladder: Sequence[Rung], runs: Path, seeds: Sequence[int], scale: str, machine: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """(results, rows) of the rungs that are finished for all `seeds`, and of those that diverged, which have no rows anywhere."""
    results: Row = {"format_version": FORMAT, "ladder": scale, "machine": dict(machine), "domains": list(DOMAINS), "seeds": list(seeds)}
    sections = ("rungs", "table", "losses", "collinearity", "retrieval", "correlation", "mixtures", "diagnosis", "calibration")
    results |= {name: [] for name in (*sections, "changes", "general", *SWEEPS)} | {"candidates": {}}
    rows: list[Row] = []
    for rung in track(ladder, "gathering"):
        folder = runs / rung.name
        if reason := divergence(rung, folder):
            results["rungs"].append(described(rung, folder) | {"diverged": reason})
        elif all(steps_done(rung, folder, seeds).values()):
            results["rungs"].append(described(rung, folder) | {"diverged": None})
            rows += _take(results, rung, folder, seeds)
    whole = [rung["name"] for rung in results["rungs"] if rung["diverged"] is None]
    sizes = read_json(runs / SIZES_ROWS) if (runs / SIZES_ROWS).exists() else []
    results["sizes"] = [row for row in sizes if row["scale"] in whole]
    results["advice"] = advice_rows(*_advised(results, runs))
    results["advisers"] = summary(results["advice"])
    for name in BESIDE if scale == "lab" else ():
        kept = Path(__file__).with_name(f"{name}.json")
        results[name] = [row for row in (read_json(kept)["rows"] if kept.exists() else []) if row["scale"] in whole]
    return results, rows


def _advised(results: Row, runs: Path) -> tuple[list[Row], list[Row]]:
    """(mean-loss rows, diagnoses) of every library: the rungs' own and those of the library-size experiment."""
    losses = [row for row in results["losses"] if row["seed"] != "all"]
    told = [{name: row[name] for name in ("scale", "seed", "advice", "geometry")} for row in results["diagnosis"]]
    for finished in sorted(runs.glob("sizes/seed-*/size-*/cost.json")):
        evaluated = read_json(finished.with_name(EVALUATION) / "results.json")
        losses += evaluated["losses"]
        found = {name: evaluated["diagnosis"][name] for name in ("advice", "geometry")}
        told.append({"scale": evaluated["scale"], "seed": evaluated["seeds"][0], **found})
    return losses, told


def described(rung: Rung, folder: Path) -> Row:
    """A rung's name, family, size and steps; the size is null until there is a generalist."""
    row: Row = {"name": rung.name, "family": rung.family, "parameters": None, "hidden": None, "blocks": None}
    if (folder / GENERALIST / "config.json").exists():
        anatomy = anatomy_of(skeleton(read_config(folder / GENERALIST)))
        count = sum(int(np.prod(shape)) for shape in anatomy.shapes.values())
        row |= {"parameters": count, "hidden": anatomy.hidden_size, "blocks": anatomy.n_blocks}
    return row | {"steps": {"generalist": rung.generalist.steps if rung.generalist else None, "specialist": rung.specialist.steps}}


def _take(results: Row, rung: Rung, folder: Path, seeds: Sequence[int]) -> list[Row]:
    """Add one rung's seeds to the results; returns their raw rows."""
    found = [read_results(place(folder, seed) / EVALUATION) for seed in seeds]
    rows = [row for _, part in found for row in part]
    wins, losses = _tables(folder / "tables.json", rows, rung.name)
    results["table"] += wins
    results["losses"] += losses
    results["candidates"][rung.name] = found[0][0]["candidates"]
    for seed, (evaluated, _) in zip(seeds, found, strict=True):
        where = {"scale": rung.name, "seed": seed}
        for name in ("retrieval", "correlation", "mixtures"):
            results[name] += [where | entry for entry in evaluated[name]]
        for name, measured in read_json(place(folder, seed) / FACTS).items():
            results[name] += [where | row for row in (measured if isinstance(measured, list) else [measured])]
    told = {seed: read_json(place(folder, seed) / SWEPT / GENERAL / "losses.json")["losses"] for seed in seeds}
    results["general"] += general_rows(rung.name, told)
    for name in SWEEPS:
        points = {seed: read_json(place(folder, seed) / SWEPT / f"{name}.json")["points"] for seed in seeds if name in due(seed, seeds)}
        compared, raw = swept(name, points, rows, rung.name)
        results[name] += compared
        rows = rows + raw
    return rows


def _tables(kept: Path, rows: Sequence[Row], scale: str) -> tuple[list[Row], list[Row]]:
    """Win rates and losses of the evaluation; kept beside the rung, because the bootstrap over every group takes a while.

    Groups are told of some candidates alone. Where there are several seeds, one alone is told of over all groups, against RIVALS.
    """
    origin = digest_of([list(row.values()) for row in rows])
    if not kept.exists() or read_json(kept)["origin"] != origin:
        wins, losses = tables(rows, scale)
        write_json(kept, {"origin": origin, "table": wins, "losses": losses})
    stored, pooled = read_json(kept), len({row["seed"] for row in rows}) > 1

    def told(row: Row) -> bool:
        if pooled and row["seed"] != "all":
            return row["group"] == "all" and row.get("rival") in (None, *RIVALS)
        return row["group"] == "all" or row["candidate"] in GROUPED

    return list(filter(told, stored["table"])), list(filter(told, stored["losses"]))


def swept(name: str, points: Mapping[int, Sequence[Row]], rows: Sequence[Row], scale: str) -> tuple[list[Row], list[Row]]:
    """(rows of one sweep's section, raw rows) from the points of each seed and the evaluation's raw rows of the same probes.

    With several seeds the seed "all" counts each probe once, as in the evaluation's tables.
    """
    rivals = _rivals(rows)
    cells: dict[str, list[Row]] = {}
    raw: list[Row] = []
    for seed, own in points.items():
        for point in own:
            where = {"scale": scale, "seed": seed, "protocol": point["protocol"], "task": point["task"]}
            probes = rivals[seed, point["protocol"], point["task"]]
            label = " ".join([name, *(_label(value) for value in point["key"].values())])
            raw += [
                where | {"group": row["group"], "probe": row["probe"], "candidate": label, "loss": loss, "tokens": row["tokens"]}
                for row, loss in zip(probes["generalist"], point["losses"], strict=True)
            ]
            cell = {**where, **point["key"]}
            mine = {rival: np.array([[row["loss"] for row in probes[rival]]]) for rival in RIVALS}
            entry = {"row": cell, "facts": point["facts"], "losses": np.array([point["losses"]]), "rivals": mine}
            cells.setdefault(json.dumps(cell | {"seed": None}), []).append(entry)
    found = []
    for entries in cells.values():
        found += [_compared(entry["row"], entry["facts"], entry["losses"], entry["rivals"]) for entry in entries]
        if len(entries) > 1:
            stacked = {rival: np.concatenate([entry["rivals"][rival] for entry in entries]) for rival in RIVALS}
            every = np.concatenate([entry["losses"] for entry in entries])
            found.append(_compared(entries[0]["row"] | {"seed": "all"}, {}, every, stacked))
    return found, raw


def _rivals(rows: Sequence[Row]) -> dict[tuple[int, str, str], dict[str, list[Row]]]:
    """(seed, protocol, task) -> rival -> the evaluation's rows in the order of the probes."""
    found: dict[tuple[int, str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if row["candidate"] in RIVALS:
            found.setdefault((row["seed"], row["protocol"], row["task"]), {}).setdefault(row["candidate"], []).append(row)
    return found


def _compared(row: Row, facts: Row, losses: np.ndarray, rivals: Mapping[str, np.ndarray]) -> Row:
    """Mean loss and win rates of losses [seeds, n] against each rival's; wins are averaged over seeds first."""
    mean, low, high = bootstrap_mean(losses.mean(axis=0))
    told: Row = {**row, **facts, "n": losses.shape[1], "loss": mean, "loss_low": low, "loss_high": high}
    for rival, name in RIVALS.items():
        wins = (losses < rivals[rival]).mean(axis=0) + (losses == rivals[rival]).mean(axis=0) / 2  # [n]
        rate, low, high = wilson(float(wins.sum()), len(wins))
        told |= {name: rate, f"{name}_low": low, f"{name}_high": high}
    told |= {"generalist_loss": float(rivals["generalist"].mean()), "ta_loss": float(rivals[TASK_ARITHMETIC].mean())}
    return told | {"rate": told["rate_ta"], "low": told["rate_ta_low"], "high": told["rate_ta_high"]}


def _label(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
