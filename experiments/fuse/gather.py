"""All finished parts of all seeds as one results dict, with their raw rows; no model is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from asterism.core.storage import read_json
from asterism.evaluate.answers import ALL, summary
from asterism.fuse.ensembles import KINDS
from asterism.models.anatomy import anatomy_of, skeleton
from asterism.models.loading import read_config
from experiments.fuse.data import SLOTS
from experiments.fuse.rivals import CONTROL, FUSED, TARGET
from experiments.fuse.setting import Member
from experiments.fuse.workshop import Row, Workshop

FORMAT = 1
AGAINST = (TARGET, CONTROL, FUSED)
"""Whom every candidate is compared with."""


def gather(shops: Sequence[Workshop], parts: Sequence[str], scale: str, machine: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """(results, raw rows) of the parts that are finished, each for its seeds."""
    measured = {part: {shop.seed: value for shop in shops if (value := shop.found(part)) is not None} for part in parts}
    found = {part: values for part, values in measured.items() if values}
    results: Row = {"format_version": FORMAT, "scale": scale, "machine": dict(machine), "seeds": [shop.seed for shop in shops]}
    results |= described(shops)
    scores, gains, facts, raw = [], [], [], []
    for part, values in found.items():
        cells: dict[str, list[Row]] = {}
        for seed, value in values.items():
            rows = [{**row, "seed": seed} for row in value["rows"]]
            raw += [{"part": part, **row} for row in rows]
            facts += [{"part": part, "seed": seed, **fact} for fact in value["facts"]]
            for row in rows:
                cells.setdefault(row["setting"], []).append(row)
        for setting, rows in cells.items():
            where = {"part": part, "setting": setting}
            made = summed(rows, scale)
            scores += [where | row for row in made["scores"]]
            gains += [where | row for row in made["gains"] if row["task"] == ALL or {row["candidate"], row["rival"]} & {FUSED}]
    minutes = [
        {"part": part, "seeds": list(values), "by_seed": [value.get("minutes") for value in values.values()]}
        for part, values in found.items()
    ]
    return results | {"minutes": minutes, "scores": scores, "gains": gains, "facts": facts}, raw


def summed(rows: Sequence[Row], scale: str) -> dict[str, list[Row]]:
    """Scores and gains of one setting, all seeds together.

    Tasks that are told by their loss alone take no part in the mean of all tasks; ensembles answer fewer examples, and are compared with
    the others on those.
    """
    marked = [row for row in rows if row["possible"] is not None]
    plain = [row for row in rows if row["possible"] is None]
    found: dict[str, list[Row]] = {"scores": [], "gains": []}

    def take(own: Sequence[Row], candidates: Iterable[str] | None = None, *, whole: bool = True) -> None:
        if own:
            made = summary(own, scale, AGAINST)
            for part, name in (("scores", "score"), ("gains", "gain")):
                pooled = [row for row in pooled_rows(made[part], name) if whole or row["task"] != ALL]
                found[part] += [row for row in pooled if candidates is None or row["candidate"] in candidates]

    ensembles = [name for name in KINDS if any(row["candidate"] == name for row in rows)]
    take([row for row in marked if row["candidate"] not in KINDS])
    take([row for row in plain if row["candidate"] not in KINDS], whole=False)
    if ensembles:
        for own, whole in ((marked, True), (plain, False)):
            few = {row["probe"] for row in own if row["candidate"] in ensembles}
            beside = [row for row in own if row["candidate"] in (*AGAINST, *ensembles) and row["probe"] in few]
            take(beside, ensembles, whole=whole)
    return found


def pooled_rows(rows: Sequence[Row], name: str) -> Iterable[Row]:
    """Rows of all seeds together, with the figure of every seed beside: `by_seed` of the score or gain, `loss_by_seed` of the loss."""
    loss = "loss" if name == "score" else "saved"
    tasks = {row["task"] for row in rows}
    cells: dict[tuple, list[Row]] = {}
    for row in rows:
        cells.setdefault((row["task"], row["candidate"], row.get("rival")), []).append(row)
    for own in cells.values():
        single = [row for row in own if row["seed"] != ALL]
        whole = next((row for row in own if row["seed"] == ALL), single[0])
        kept = {key: value for key, value in whole.items() if key not in ("scale", "seed")}
        beside = {"by_seed": [row[name] for row in single], "loss_by_seed": [row[loss] for row in single]}
        yield kept | beside
        if len(tasks) == 1:  # one task is all there are
            yield kept | beside | {"task": ALL}


def described(shops: Sequence[Workshop]) -> Row:
    """Families, tasks and settings, and what was chosen."""
    shop = shops[0]
    recipe = shop.recipe
    roles = {family: role for role, family in recipe.roles.items()}
    families = []
    for name, family in recipe.families.items():
        place = shop.root / "backbones" / name
        size: Row = {}
        if (place / "config.json").exists():
            anatomy = anatomy_of(skeleton(read_config(place)))
            size = {"parameters": sum(int(np.prod(shape)) for shape in anatomy.shapes.values()), "hidden": anatomy.hidden_size}
            size |= {"blocks": anatomy.n_blocks, "vocabulary": read_json(place / "config.json")["vocab_size"]}
        families.append({"name": name, "role": roles.get(name), "rank": family.rank, **size})
    tasks = [
        {
            "name": name, "trained": len(own.train), "replayed": min(recipe.replay, len(own.train)), "chosen": len(own.chosen),
            "tested": len(own.tested), "generated": name.startswith(SLOTS), "marked": name not in recipe.unmarked,
        }
        for name, own in shop.data.tasks.items()
    ]  # fmt: skip
    settings = [
        {
            "name": own.name, "target": _member(own.target), "sources": [_member(each) for each in own.sources],
            "noise": [_member(each) for each in own.noise], "tasks": list(own.tasks), "share": own.share,
        }
        for own in shop.settings.values()
    ]  # fmt: skip
    return {
        "called": dict(recipe.called),
        "families": families,
        "tasks": tasks,
        "settings": settings,
        "rates": [dict(s.rates) for s in shops],
    }


def _member(member: Member) -> Row:
    return {
        "name": member.name,
        "family": member.family,
        "tasks": list(member.tasks),
        "rank": member.rank,
        "random": member.draw is not None,
    }
