"""All finished parts of all seeds as one results dict, with their raw rows; no model is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asterism.core.statistics import bootstrap_mean
from asterism.evaluate.candidates import DEFAULT
from asterism.models.anatomy import anatomy_of, skeleton
from asterism.models.loading import read_config
from experiments.constellation.models import GENERALIST
from experiments.route.advice import advice_rows, advisers
from experiments.route.compared import INTERPOLATION
from experiments.route.ladder import RUNGS
from experiments.route.tuned import FINETUNED
from experiments.route.workshop import PROTOCOLS, Workshop

FORMAT = 1
RIVALS = ("generalist", INTERPOLATION, "layer", FINETUNED, DEFAULT)
"""Whom every candidate is compared with, text by text."""
MERGING = "merging"
"""The rung of the ladder that loses least on the texts that choose."""
OPEN = ("generalist", DEFAULT)
"""Those that are also compared on the texts' second halves."""
FURTHER = (("layer", "single"), ("depth3", "depth2"), (FINETUNED, MERGING))
"""(candidate, rival): rungs that follow each other and are not among RIVALS."""
BEST_EXPERT = "best_expert"
TURNING = ("lerp", "activation", INTERPOLATION, "layer")
"""Whose curves are searched for a critical point."""
Row = dict[str, Any]


@dataclass
class Cell:
    """One candidate on one target (at one step), seed by seed."""

    losses: dict[str, list[list[float]]] = field(default_factory=lambda: {protocol: [] for protocol in PROTOCOLS})
    """Protocol -> [seeds][n]."""
    facts: list[Row] = field(default_factory=list)
    """What a row says beside, seed by seed."""

    def add(self, row: Row) -> None:
        """Take one seed's row."""
        for protocol in PROTOCOLS:
            self.losses[protocol].append(row[protocol])
        self.facts.append({key: value for key, value in row.items() if key not in (*PROTOCOLS, "target", "candidate", "step")})

    def table(self, protocol: str = "whole") -> np.ndarray:
        """[seeds, n]."""
        return np.array(self.losses[protocol], dtype=float)

    def chosen(self, place: int) -> float:
        """The mean loss of one seed on the texts that choose; infinite where it was not measured."""
        return self.facts[place].get("chosen", np.inf)


Cells = dict[tuple[str, str], Cell]
"""(target, candidate) -> losses."""


def gather(shops: Sequence[Workshop], parts: Sequence[str], scale: str, machine: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """(results, raw rows) of the parts that are finished for all seeds."""
    found = {part: [value for shop in shops if (value := shop.found(part)) is not None] for part in parts}
    found = {part: values for part, values in found.items() if len(values) == len(shops)}
    cells = {}
    for part in ("ladder", "tuned", "table"):
        for value in found.get(part, []):
            for row in value["rows"]:
                cells.setdefault((row["target"], row["candidate"]), Cell()).add(row)
    cells |= picked(cells)
    results: Row = {"format_version": FORMAT, "scale": scale, "machine": dict(machine), "seeds": [shop.seed for shop in shops]}
    results |= described(shops[0])
    results["losses"] = [
        {"target": target, "candidate": candidate, "protocol": protocol} | mean_loss(cell.table(protocol)) | _facts(cell)
        for (target, candidate), cell in cells.items()
        for protocol in PROTOCOLS
    ]
    results["gains"] = list(gains(cells))
    results["plateau"] = list(plateau(cells))
    results["points"] = [{"seed": shop.seed, **row} for shop, value in _each(shops, found, "ladder") for row in value["points"]]
    results["loads"] = [{"seed": shop.seed, **row} for shop, value in _each(shops[:1], found, "ladder") for row in value["loads"]]
    results["maps"] = map_rows([value["maps"] for value in found.get("maps", [])])
    results |= along(found.get("curve", []))
    advised = [{"seed": shop.seed, **row} for shop in shops for row in advice_rows(shop)] if {"ladder", "table"} <= found.keys() else []
    results |= {"advice": advised, "advisers": advisers(advised)}
    return results, list(raw(shops, found))


def described(shop: Workshop) -> Row:
    """The models' sizes, the trainings, and how many texts each target has."""
    anatomy = anatomy_of(skeleton(read_config(shop.root / GENERALIST)))
    size = {"parameters": sum(int(np.prod(shape)) for shape in anatomy.shapes.values()), "hidden": anatomy.hidden_size}
    names = ("generalist", "expert", "long", "mix", "router", "target")
    trained = {name: own and [own.steps, own.batch_size, own.max_length] for name in names for own in [getattr(shop.recipe, name)]}
    targets = [
        {"name": own.name, "pair": list(own.pair), "adapt": len(own.adapt), "chosen": len(own.chosen), "tested": len(own.tested)}
        for own in shop.targets.values()
    ]
    return {"model": size | {"blocks": anatomy.n_blocks}, "trained": trained, "called": dict(shop.recipe.called), "targets": targets}


def picked(cells: Cells) -> Cells:
    """What the texts that choose pick, seed by seed: the best rung of the ladder, and the better expert."""
    found: Cells = {}
    for target in dict.fromkeys(target for target, _ in cells):
        here = {candidate: cell for (own, candidate), cell in cells.items() if own == target}
        groups = {MERGING: (INTERPOLATION, *RUNGS), BEST_EXPERT: [name for name in here if name.startswith("expert:")]}
        for called, names in groups.items():
            ready = [name for name in names if name in here]
            for place in range(len(here[ready[0]].facts) if ready else 0):
                best = min(ready, key=lambda name: here[name].chosen(place))
                cell, losses = here[best], {protocol: here[best].losses[protocol][place] for protocol in PROTOCOLS}
                found.setdefault((target, called), Cell()).add({**cell.facts[place], "picked": best, **losses})
    return found


def mean_loss(table: np.ndarray) -> Row:
    """Mean loss of [seeds, n], 95 % bootstrap interval over texts (each text's mean over seeds), and the mean of every seed."""
    mean, low, high = bootstrap_mean(table.mean(axis=0))
    return {"n": table.shape[1], "loss": mean, "low": low, "high": high, "by_seed": table.mean(axis=1).tolist()}


def gain(candidate: np.ndarray, rival: np.ndarray) -> Row:
    """How much less the candidate loses than the rival, paired text by text: mean, interval over texts, and the mean of every seed."""
    return {("gain" if key == "loss" else key): value for key, value in mean_loss(rival - candidate).items()}


def gains(cells: Cells) -> Iterable[Row]:
    """Every candidate against RIVALS, and FURTHER."""
    for (target, candidate), cell in cells.items():
        rivals = [*RIVALS, *(rival for own, rival in FURTHER if own == candidate)]
        for rival in rivals:
            other = cells.get((target, rival))
            if other is not None and rival != candidate:
                for protocol in PROTOCOLS if rival in OPEN else PROTOCOLS[:1]:
                    where = {"target": target, "candidate": candidate, "rival": rival, "protocol": protocol}
                    yield where | gain(cell.table(protocol), other.table(protocol))


def plateau(cells: Cells) -> Iterable[Row]:
    """On each target, by how much the second layer of routing gains more over the first than the third over the second."""
    for target in dict.fromkeys(target for target, _ in cells):
        first, second, third = (cells.get((target, name)) for name in ("layer", "depth2", "depth3"))
        if first and second and third:
            yield {"target": target} | gain(second.table() - third.table(), first.table() - second.table())


def along(values: Sequence[Row]) -> Row:
    """The curve: losses by step on the target, of each expert on its own domain, CKA by step, and where the losses turn."""
    curve, own = (_by_step(values, key) for key in ("rows", "own"))
    similar: dict[tuple, list[float]] = {}
    for row in (row for value in values for row in value["similar"]):
        similar.setdefault((row["step"], row["texts"], row["mode"]), []).append(row["cka"])
    return {
        "curve": [{"candidate": candidate, "step": step} | mean_loss(cell.table()) for (_, candidate, step), cell in curve.items()],
        "own": list(_own(own)),
        "similar": [
            {"step": step, "texts": texts, "mode": mode, "cka": float(np.mean(found)), "by_seed": found}
            for (step, texts, mode), found in similar.items()
        ],
        "turns": [row for name in TURNING if (row := turn(curve, name))],
    }


def _by_step(values: Sequence[Row], key: str) -> dict[tuple[str, str, int], Cell]:
    found: dict[tuple[str, str, int], Cell] = {}
    for row in (row for value in values for row in value[key]):
        found.setdefault((row["target"], row["candidate"], row["step"]), Cell()).add(row)
    return found


def turn(curve: Mapping[tuple[str, str, int], Cell], candidate: str) -> Row | None:
    """Where a curve is lowest by the texts that choose, seed by seed, and what it gains there over its beginning and its end."""
    cells = {step: cell for (_, name, step), cell in curve.items() if name == candidate or step == 0}
    if len(cells) < 3:
        return None
    seeds, last = range(len(cells[0].facts)), max(cells)
    steps = [min(cells, key=lambda step: cells[step].chosen(place)) for place in seeds]
    best = np.array([cells[step].table()[place] for place, step in enumerate(steps)])
    fall, rise = gain(best, cells[0].table()), gain(best, cells[last].table())
    return {"candidate": candidate, "steps": steps, "last": last, "fall": fall, "rise": rise}


def _own(cells: Mapping[tuple[str, str, int], Cell]) -> Iterable[Row]:
    """Each expert on its own domain by step, with what a step gains over the one before."""
    for name in dict.fromkeys(name for name, _, _ in cells):
        before: np.ndarray | None = None
        for (_, _, step), cell in sorted((item for item in cells.items() if item[0][0] == name), key=lambda item: item[0][2]):
            table = cell.table()
            yield {"expert": name, "step": step} | mean_loss(table) | {"over_before": None if before is None else gain(table, before)}
            before = table


def map_rows(values: Sequence[Sequence[Row]]) -> list[Row]:
    """Each map as its mean over seeds, with what is near and far in it, seed by seed."""
    found = []
    for own in zip(*values, strict=True):
        tables = [np.array(row["map"]) for row in own]
        mean = np.mean(tables, axis=0)
        kept = {key: own[0][key] for key in ("target", "texts", "left", "right", "names", "layers", "n", "settings")}
        regions = {name: [float(table[mask].mean()) for table in tables] for name, mask in _regions(len(mean)).items()}
        found.append(kept | {"map": mean.tolist()} | regions)
    return found


def _regions(blocks: int) -> dict[str, np.ndarray]:
    """Which pairs of layers are the same, neighbours, and at least half the depth apart."""
    apart = np.abs(np.subtract.outer(np.arange(blocks), np.arange(blocks)))
    return {"same": apart == 0, "near": apart == 1, "far": apart >= max(2, blocks // 2)}


def raw(shops: Sequence[Workshop], found: Mapping[str, Sequence[Row]]) -> Iterable[Row]:
    """A row a text: everything that was scored."""
    for part in found:
        for shop, value in _each(shops, found, part):
            for row in [*value.get("rows", ()), *value.get("own", ())]:
                where = {"seed": shop.seed, "part": part, "target": row["target"], "candidate": row["candidate"], "step": row.get("step")}
                for text, losses in enumerate(zip(*(row[protocol] for protocol in PROTOCOLS), strict=True)):
                    yield where | {"text": text} | dict(zip(PROTOCOLS, losses, strict=True))


def _each(shops: Sequence[Workshop], found: Mapping[str, Sequence[Row]], part: str) -> Iterable[tuple[Workshop, Row]]:
    return zip(shops, found.get(part, []), strict=False)


def _facts(cell: Cell) -> Row:
    """What was chosen, seed by seed: shares, rates, parameters."""
    names = dict.fromkeys(key for facts in cell.facts for key in facts if key != "chosen")
    return {name: [facts.get(name) for facts in cell.facts] for name in names}
