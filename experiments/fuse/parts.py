"""The eight parts. Each is {rows, facts}: what every candidate made of every held-out example, and what each fusion says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from asterism.core.storage import read_json
from asterism.fuse.card import RECORD
from experiments.fuse.rivals import FUSED, fused, plain, rivals, told
from experiments.fuse.setting import ANCHORS, FEWER, MULTI, NOISY, SHUFFLED, SINGLE, UNSEEN, Setting, ablations, sensitivity
from experiments.fuse.workshop import Row, Workshop, chosen_loss

CLEAN, UNTUNED = "clean", "untuned"
"""In the noisy part, the fusion without the noise; in the unseen part, the fusion as the recipe has it, where another was chosen."""
Part = dict[str, Any]


def single(shop: Workshop) -> Part:
    """One source of another family, and everyone who can do without it or with it."""
    return _main(shop, shop.settings[SINGLE])


def multi(shop: Workshop) -> Part:
    """Sources of two families."""
    return _main(shop, shop.settings[MULTI])


def noisy(shop: Workshop) -> Part:
    """The single source among task-irrelevant experts, among random weights, and among both; rivals among the irrelevant ones."""
    rows, facts = [], []
    for name in NOISY:
        setting = shop.settings[name]
        rows += plain(shop, setting) + told(setting, CLEAN, fused(shop, shop.settings[SINGLE])) + told(setting, FUSED, fused(shop, setting))
        facts.append(fact(shop, setting))
        if name == NOISY[0]:
            rows += rivals(shop, setting)
    return {"rows": rows, "facts": facts}


def unseen(shop: Workshop) -> Part:
    """What suits the source's family best, by the validation examples, applied to a family that nothing was chosen by."""
    setting = shop.settings[UNSEEN]
    name, changes = best(shop)
    rows = plain(shop, setting) + told(setting, UNTUNED, fused(shop, setting, UNTUNED))
    facts = [fact(shop, setting, UNTUNED)]
    if name == FUSED:  # nothing was better than the recipe's own
        rows += told(setting, FUSED, fused(shop, setting, UNTUNED))
        facts.append({**facts[0], "candidate": FUSED})
    else:
        rows += told(setting, FUSED, fused(shop, setting, FUSED, **changes))
        facts.append(fact(shop, setting, FUSED, **changes))
    return {"rows": rows, "facts": [*facts[:1], {**facts[1], "picked": name}]}


def anchors(shop: Workshop) -> Part:
    """Other targets: of another task, another rank, another family."""
    rows, facts = [], []
    for name in ANCHORS:
        setting = shop.settings[name]
        rows += plain(shop, setting) + told(setting, FUSED, fused(shop, setting))
        facts.append(fact(shop, setting))
    return {"rows": rows, "facts": facts}


def scarce(shop: Workshop) -> Part:
    """The single source where fewer examples can be replayed, beside the control that has no more, and beside the source shuffled."""
    rows, facts = [], []
    for name in FEWER:
        setting = shop.settings[name]
        rows += plain(shop, setting) + told(setting, FUSED, fused(shop, setting))
        rows += told(setting, SHUFFLED, fused(shop, setting, SHUFFLED, **ablations()[SHUFFLED]))
        facts.append(fact(shop, setting))
    return {"rows": rows, "facts": facts}


def varied(changes: Mapping[str, Mapping[str, Any]]) -> Callable[[Workshop], Part]:
    """A part that fuses the single source by other settings."""

    def part(shop: Workshop) -> Part:
        setting = shop.settings[SINGLE]
        rows = plain(shop, setting) + told(setting, FUSED, fused(shop, setting))
        facts = [fact(shop, setting)]
        for name, own in changes.items():
            rows += told(setting, name, fused(shop, setting, name, **own))
            facts.append(fact(shop, setting, name, **own))
        return {"rows": rows, "facts": facts}

    return part


def sensitive(shop: Workshop) -> Part:
    """Other starts of alpha, other mu_gate."""
    return varied(sensitivity(shop.recipe))(shop)


def ablated(shop: Workshop) -> Part:
    """Each piece taken away; other maps of layers."""
    return varied(ablations())(shop)


PARTS: dict[str, Callable[[Workshop], Part]] = {
    "single": single, "multi": multi, "noisy": noisy, "sensitivity": sensitive, "ablations": ablated, "unseen": unseen, "anchors": anchors,
    "scarce": scarce,
}  # fmt: skip
"""In this order: what an earlier part trained a later one finds."""


def best(shop: Workshop) -> tuple[str, Mapping[str, Any]]:
    """The settings of the single source, as they are or as `sensitivity` has them, that lose least on the validation examples."""
    setting, tried = shop.settings[SINGLE], {FUSED: {}, **sensitivity(shop.recipe)}
    losses = {name: chosen_loss(shop.fused(setting, name, changes)) for name, changes in tried.items()}
    name = min(losses, key=losses.__getitem__)
    return name, tried[name]


def fact(shop: Workshop, setting: Setting, candidate: str = FUSED, **changes: Any) -> Row:
    """What a fusion says of itself: gates, change of B, its condition, alpha, and the loss on validation examples."""
    made = read_json(shop.fused(setting, candidate, changes) / RECORD)
    return {"setting": setting.name, "candidate": candidate, **summed(made)}


def summed(made: Mapping[str, Any]) -> Row:
    """A fusion's record in few figures; conditions as their growth from B to B_new, slots where B is singular left out."""
    ratios = [slot["norm_ratio"] for slot in made["slots"] if slot["norm_ratio"] is not None]
    pairs = [(slot["condition_before"], slot["condition_after"]) for slot in made["slots"]]
    growth = [after / before for before, after in pairs if before and after]
    changed: dict[str, list[float]] = {}
    for slot in made["slots"]:
        if slot["norm_ratio"] is not None:
            changed.setdefault(slot["function"], []).append(slot["norm_ratio"])
    return {
        "open": {name: own["open"] for name, own in made["openness"].items()},
        "families": {name: own["family"] for name, own in made["sources"].items()},
        "norm_ratio": _mean(ratios),
        "norm_ratio_most": max(ratios, default=None),
        "condition_growth": _median(growth),
        "condition_growth_most": max(growth, default=None),
        "by_function": {function: _mean(own) for function, own in changed.items()},
        "alpha": _mean(list(made["alpha"].values())),
        "start_loss": made.get("start_loss"),
        "chosen_loss": made.get("held_out_loss"),
        "pairs": len(made["alignment"]["pairs"]),
    }


def _main(shop: Workshop, setting: Setting) -> Part:
    rows = plain(shop, setting) + told(setting, FUSED, fused(shop, setting)) + rivals(shop, setting)
    return {"rows": rows, "facts": [fact(shop, setting)]}


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None
