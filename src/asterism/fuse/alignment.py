"""Topology alignment: which modules of the sources a target's module takes from, layer by layer and function by function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import floor
from typing import Any

import torch
from torch import Tensor

from asterism.core.draws import stream_key
from asterism.core.errors import DataError, MismatchError, SettingsError
from asterism.fuse.experts import Expert
from asterism.fuse.settings import FusionSettings
from asterism.models.functions import FUNCTIONS, Slot

Pairs = Mapping[Slot, tuple[tuple[str, Slot], ...]]


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which source slots every target slot takes from."""

    pairs: Pairs
    """Target slot -> (source's name, source slot), sources in the order given; only slots with a pair, in model order."""
    unpaired_target: tuple[Slot, ...]
    """Slots that the target's adapter changes and that take from nobody: they stay as they are."""
    unpaired_sources: Mapping[str, tuple[Slot, ...]]
    """Source -> slots that its adapter changes and that nobody takes from."""
    layers: Mapping[str, Mapping[int, int]]
    """Source -> target block -> source block, before it is known what is changed there; of random pairing too."""
    outside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Source, or "-" for the target -> parameters outside the blocks that its adapter changes (the head): they never pair."""

    def rows(self) -> list[tuple[str, str, str, str]]:
        """For a table: source, functions, target blocks, source blocks; runs of blocks are one row, also of what is not paired.

        What has no partner has "-" on the other side; the target's own unpaired modules have "-" for the source. Outside the blocks, the
        parameter stands for the function.
        """
        found = [row for name in self.unpaired_sources for row in _paired_rows(name, self.pairs)]
        found += [("-", functions, blocks, "-") for functions, blocks in _alone(self.unpaired_target)]
        for name, slots in self.unpaired_sources.items():
            found += [(name, functions, "-", blocks) for functions, blocks in _alone(slots)]
        for name, parameters in self.outside.items():
            target, source = ("outside", "-") if name == "-" else ("-", "outside")
            found += [(name, parameter, target, source) for parameter in parameters]
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: pairs, what is unpaired on either side (outside the blocks by parameter alone), and the layers' map."""
        outside = {name: [{"block": None, "function": None, "parameter": each} for each in own] for name, own in self.outside.items()}
        return {
            "pairs": [
                {**_told(slot), "sources": [{"source": name, **_told(other)} for name, other in others]}
                for slot, others in self.pairs.items()
            ],
            "unpaired_target": [*(_told(slot) for slot in self.unpaired_target), *outside.get("-", [])],
            "unpaired_sources": {
                name: [*(_told(slot) for slot in slots), *outside.get(name, [])] for name, slots in self.unpaired_sources.items()
            },
            "layers": {name: {str(target): source for target, source in each.items()} for name, each in self.layers.items()},
        }


def align(
    target: Expert,
    sources: Mapping[str, Expert],
    settings: FusionSettings | None = None,
    similarity: Mapping[str, Tensor] | None = None,
) -> Alignment:
    """Pair the modules of a target with those of each source, by function in paired layers. Source: HeteroFusion, topology alignment.

    Layers, each source by itself: `top` pairs t with t - (L_t - L_s), both counted from the bottom; `proportional` with
    round(t (L_s - 1) / (L_t - 1)); `cka` by `best_ascending` of similarity[source] [L_t, L_s]. transfer_ratio keeps that share of the
    layer pairs in which a module pairs, at least one, from the target's top. Random pairing then deals each source's paired slots out
    anew, by the seed. Raises DataError naming what each side has where a source pairs with nothing; SettingsError or MismatchError where
    `cka` lacks a similarity or has one of another shape.
    """
    settings = settings or FusionSettings()
    if not sources:
        raise DataError("There is nothing to fuse.", met="no sources", mend="give at least one source adapter")
    layers = {name: _layer_map(target, source, settings, (similarity or {}).get(name)) for name, source in sources.items()}
    found: dict[Slot, list[tuple[str, Slot]]] = {}
    unused: dict[str, tuple[Slot, ...]] = {}
    for name, source in sources.items():
        matched = _matched(target, source, layers[name], settings.transfer_ratio)
        if not matched:
            raise _nothing(target, source)
        for slot, other in _dealt(matched, stream_key(settings.seed, name)) if settings.pairing == "random" else matched:
            found.setdefault(slot, []).append((name, other))
        taken = {other for _, other in matched}
        unused[name] = tuple(slot for slot in source.factors if slot not in taken)
    pairs = {slot: tuple(found[slot]) for slot in target.factors if slot in found}
    outside = {"-": target.others} | {name: source.others for name, source in sources.items()}
    return Alignment(pairs, tuple(slot for slot in target.factors if slot not in found), unused, layers, outside)


def best_ascending(similarity: Tensor) -> list[int]:
    """For each row of [L_t, L_s] a column, never descending, with the largest sum: the layers' order is kept where single maxima cross.

    Dynamic programming, O(L_t L_s); of equal sums the one with lower columns. Raises DataError for values that are not finite.
    """
    if not bool(similarity.isfinite().all()):
        raise DataError("A similarity of layers is not finite.", met="NaN or infinity", mend="compute it anew, on other texts")
    best, steps = similarity[0].double(), []
    for row in similarity[1:].double():
        reached = best.cummax(0).values  # best sum of the rows above that ends at or before each column
        steps.append(torch.searchsorted(reached, reached))  # where it ends: the lowest such column
        best = reached + row
    column = int((best == best.max()).nonzero()[0])
    chosen = [column]
    for step in reversed(steps):
        column = int(step[column])
        chosen.append(column)
    return chosen[::-1]


def _layer_map(target: Expert, source: Expert, settings: FusionSettings, similarity: Tensor | None) -> dict[int, int]:
    depth, other = target.n_blocks, source.n_blocks
    if settings.layers == "top":
        return {block: block - (depth - other) for block in range(depth) if block >= depth - other}
    if settings.layers == "proportional":
        span = max(depth - 1, 1)
        shares = [block / span if depth > 1 else 1.0 for block in range(depth)]
        return {block: floor(share * (other - 1) + 0.5) for block, share in enumerate(shares)}
    if similarity is None:
        mend = "give texts and both models (`layer_similarity`), or choose layers: top"
        raise SettingsError("layers: cka needs the similarity of the layers.", met=f"none for {source.name}", mend=mend)
    if tuple(similarity.shape) != (depth, other):
        met = f"{list(similarity.shape)} for {source.name}, not [{depth}, {other}]"
        raise MismatchError("A similarity is of other layers.", met=met, mend="rows are the target's blocks, columns the source's")
    return dict(enumerate(best_ascending(similarity)))


def _matched(target: Expert, source: Expert, layers: Mapping[int, int], ratio: float) -> list[tuple[Slot, Slot]]:
    places = {(slot.block, slot.function): slot for slot in source.factors}
    pairs = [(slot, places.get((layers.get(slot.block, -1), slot.function))) for slot in target.factors]
    matched = [(slot, other) for slot, other in pairs if other is not None]
    blocks = sorted({slot.block for slot, _ in matched}, reverse=True)
    kept = set(blocks[: max(1, round(ratio * len(blocks)))])
    return [(slot, other) for slot, other in matched if slot.block in kept]


def _dealt(matched: Sequence[tuple[Slot, Slot]], key: int) -> list[tuple[Slot, Slot]]:
    """The same slots on both sides, paired at random."""
    order = torch.randperm(len(matched), generator=torch.Generator().manual_seed(key % 2**63)).tolist()
    return [(slot, matched[place][1]) for (slot, _), place in zip(matched, order, strict=True)]


def _nothing(target: Expert, source: Expert) -> DataError:
    has = "; ".join(
        f"{each.name}: "
        + ", ".join(f"{functions} in blocks {blocks} of 0-{each.n_blocks - 1}" for functions, blocks in _alone(each.factors))
        for each in (target, source)
    )
    mend = "give an adapter with some of the target's functions in layers that meet, or choose layers: proportional"
    raise DataError("No module of a source pairs with the target's.", met=has, mend=mend)


def _told(slot: Slot) -> dict[str, Any]:
    return {"block": slot.block, "function": slot.function, "parameter": slot.parameter}


def _paired_rows(name: str, pairs: Pairs) -> list[tuple[str, str, str, str]]:
    """Runs of consecutive blocks whose partners are consecutive or stay, for each pair of functions; functions with equal runs together."""
    links: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for slot, others in pairs.items():
        for source, other in others:
            if source == name:
                links.setdefault((slot.function, other.function), []).append((slot.block, other.block))
    runs: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for (function, other), blocks in sorted(links.items(), key=lambda item: [FUNCTIONS.index(each) for each in item[0]]):
        spans = tuple((_span([t for t, _ in run]), _span([s for _, s in run])) for run in _even(sorted(blocks)))
        runs.setdefault(spans, []).append(function if function == other else f"{function} from {other}")
    return [(name, " ".join(functions), target, source) for spans, functions in runs.items() for target, source in spans]


def _even(blocks: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut where the target's block is not the next one, or the source's step changes between 0, 1 and anything else."""
    runs: list[list[tuple[int, int]]] = []
    for target, source in blocks:
        run = runs[-1] if runs else []
        step = (target - run[-1][0], source - run[-1][1]) if run else None
        usual = (1, run[1][1] - run[0][1]) if len(run) > 1 else step
        if step == usual and step in ((1, 0), (1, 1)):
            run.append((target, source))
        else:
            runs.append([(target, source)])
    return runs


def _alone(slots: Sequence[Slot] | Mapping[Slot, Any]) -> list[tuple[str, str]]:
    """(functions, blocks) of slots by themselves: `q v`, `0-3 6`."""
    blocks: dict[str, list[int]] = {}
    for slot in slots:
        blocks.setdefault(slot.function, []).append(slot.block)
    together: dict[str, list[str]] = {}
    for function in sorted(blocks, key=lambda each: FUNCTIONS.index(each)):  # pyright: ignore[reportArgumentType]
        together.setdefault(_spans(sorted(blocks[function])), []).append(function)
    return [(" ".join(functions), spans) for spans, functions in together.items()]


def _spans(blocks: list[int]) -> str:
    runs = groupby(enumerate(blocks), key=lambda item: item[1] - item[0])
    return " ".join(_span([block for _, block in run]) for _, run in runs)


def _span(blocks: list[int]) -> str:
    return str(blocks[0]) if blocks[0] == blocks[-1] else f"{blocks[0]}-{blocks[-1]}"
