"""Library size 2 to 32 (the paper's section 7.6 leaves it open): the four domains divided further, one specialist a sub-domain.

    python -m experiments.constellation.sizes --data ../shared/data --data CODE [--scale lab] [--runs runs/constellation]

Each domain is divided into as many sub-domains as the largest library needs (subdomains.py), and every sub-domain has a small
specialist, trained from the ladder's own generalist. Libraries are nested: the sub-domains of the four domains take turns, largest
first, so that 2 hold one each of medicine and law, 4 one of every domain, 8 two of every domain, and so on.

What a library is asked: the held-out texts nearest to one of its sub-domains, and the ladder's cross-domain probes, each of which
stands for the nearest sub-domains of its two domains *among those in the library* (so the same texts are asked at every size from 4 on).
Rows with probes `common` count only what the smallest library is asked, too: there nothing changes but the specialists beside it.
Task arithmetic sums all N deltas, so beside the paper's scales it may use 1/N, 2/N and 4/N. Everything resumes where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asterism.constellation.index import Constellation
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.corpus import GENERAL, Corpus, Probe
from asterism.core.errors import DataError, SettingsError
from asterism.core.progress import track
from asterism.core.statistics import wilson
from asterism.core.storage import digest_of, read_json, write_json
from asterism.evaluate.calibrate import calibrate
from asterism.evaluate.probes import draw
from asterism.evaluate.results import read_results
from asterism.evaluate.run import evaluate
from asterism.evaluate.settings import EvaluationSettings
from asterism.evaluate.tables import tables
from asterism.models.library import Library
from asterism.models.training import train
from experiments.commands import ended, parser
from experiments.constellation.ladder import read_text
from experiments.constellation.models import GENERALIST, generalist
from experiments.constellation.rung import DOMAINS, Rung, rungs
from experiments.constellation.subdomains import Split, split

SIZES = (2, 4, 8, 16, 32)
STEPS = 0.4
"""Share of the rung's steps that a sub-domain's specialist trains: it has an eighth of the domain's text."""
TESTED, VALIDATED = 20, 64
"""Held-out texts of each sub-domain that are scored, and of all together that calibration may see (two each, at least)."""
CROSS, CROSS_VALIDATED = 25, 8
"""Cross-domain probes of a pair of domains: the ladder's own that are scored, and others that calibration may see, at most."""
TIMED = 8
"""Queries whose mixtures are timed."""
CANDIDATES = ("default", "fast", "nodes", "paper")
HEADLINE = {"probes": "all", "protocol": "whole", "task": "cross", "candidate": "default"}
RIVALS = {"generalist": "generalist", "ta": "task_arithmetic", "best_single": "best_single", "ensemble": "ensemble"}
"""Rival in a row's keys -> its name in the evaluation."""
SCALES = (0.3, 0.5, 1.0)
"""Task arithmetic's own scales (section 4.3)."""


@dataclass(frozen=True, eq=False)
class Domains:
    """The sub-domains in the order in which libraries take them, their training texts, and what libraries are asked."""

    splits: Mapping[str, Split]
    """Domain -> its division."""
    train: Mapping[str, list[str]]
    """Sub-domain, `medical_1` being medicine's largest -> its training texts, in the libraries' order; `general` last."""
    heldout: Mapping[str, list[Probe]]
    """Sub-domain -> its held-out texts, shuffled once for all seeds."""
    cross: Sequence[Probe]
    """The ladder's scored cross-domain probes, of whole domains."""
    cross_validation: Sequence[Probe]
    """Others, which calibration may see."""

    def names(self, size: int) -> tuple[str, ...]:
        """The sub-domains of the library of a size."""
        return tuple(self.train)[:size]

    def asked(self, size: int) -> tuple[list[Probe], list[Probe]]:
        """What the library of a size is scored on, and what it may be calibrated on."""
        names, kept = self.names(size), max(2, VALIDATED // size)
        tested = [probe for name in names for probe in self.heldout[name][:TESTED]]
        validated = [probe for name in names for probe in self.heldout[name][TESTED : TESTED + kept]]
        return tested + self._placed(self.cross, names), validated + self._placed(self.cross_validation, names)

    def _placed(self, probes: Iterable[Probe], names: Sequence[str]) -> list[Probe]:
        """Cross-domain probes under the nearest sub-domains of their domains among `names`; those of an absent domain are left out."""
        present = {domain: [int(name.rpartition("_")[2]) - 1 for name in names if name.startswith(f"{domain}_")] for domain in DOMAINS}
        kept = [probe for probe in probes if all(present[domain] for domain in probe.domains)]
        texts = [probe.text for probe in kept]
        near = {domain: self.splits[domain].nearest(texts, among=own) if own and texts else [] for domain, own in present.items()}
        return [
            Probe(probe.id, probe.text, tuple(f"{domain}_{near[domain][row] + 1}" for domain in probe.domains))
            for row, probe in enumerate(kept)
        ]


def divided(corpus: Corpus, largest: int) -> Domains:
    """The domains of a corpus divided for libraries of up to `largest` specialists; DataError for a domain without text."""
    each = max(1, largest // len(DOMAINS))
    missing = [name for name in (GENERAL, *DOMAINS) if not corpus.train.get(name)]
    if missing:
        raise DataError("The data lack training text.", met=", ".join(missing), mend="give every folder with --data")
    splits = {domain: split(corpus.train[domain], each) for domain in track(DOMAINS, "dividing")}
    names = [f"{domain}_{number}" for number in range(1, each + 1) for domain in DOMAINS]
    texts: dict[str, list[str]] = {name: [] for name in names}
    probes: dict[str, list[Probe]] = {name: [] for name in names}
    for domain, own in splits.items():
        for at, text in zip(own.nearest(corpus.train[domain]), corpus.train[domain], strict=True):
            texts[f"{domain}_{at + 1}"].append(text)
        heldout = corpus.heldout.get(domain, [])
        for at, probe in zip(own.nearest([probe.text for probe in heldout]), heldout, strict=True):
            name = f"{domain}_{at + 1}"
            probes[name].append(Probe(probe.id, probe.text, (name,)))
    for name, members in probes.items():
        Random(name).shuffle(members)
    cross = [probe for probe in draw(corpus, DOMAINS, EvaluationSettings(cross_per_pair=CROSS)) if probe.is_cross]
    return Domains(splits, {**texts, GENERAL: list(corpus.train[GENERAL])}, probes, cross, _left_over(corpus, cross))


def _left_over(corpus: Corpus, taken: Sequence[Probe]) -> list[Probe]:
    """Cross-domain probes that are not among those taken, at most so many a pair."""
    known, groups = {(probe.group, probe.id) for probe in taken}, {}
    for probe in draw(corpus, DOMAINS, EvaluationSettings(cross_per_pair=10**6)):
        if probe.is_cross and (probe.group, probe.id) not in known:
            groups.setdefault(probe.group, []).append(probe)
    return [probe for members in groups.values() for probe in members[:CROSS_VALIDATED]]


def specialists(rung: Rung, domains: Domains, first: Path, folder: Path, seed: int, size: int) -> dict[str, Path]:
    """Sub-domain -> the folder of its specialist, trained there unless it is finished."""
    settings = rung.specialist.changed(seed=seed, steps=max(1, round(STEPS * rung.specialist.steps)))
    tokenizer = AutoTokenizer.from_pretrained(first)
    return {
        name: train(AutoModelForCausalLM.from_pretrained(first), tokenizer, domains.train[name], folder / name, settings)
        for name in track(domains.names(size), "specialists")
    }


def run(rung: Rung, corpus: Corpus, runs: Path, seeds: Sequence[int], *, sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Rows of every library size and seed (and seed "all"), for the results' key `sizes`; `runs` is the ladder's folder.

    Raises SettingsError for sizes that cannot be nested libraries of these domains.
    """
    sizes = sorted(set(sizes))
    if not sizes or sizes[0] < 2 or any(size > len(DOMAINS) and size % len(DOMAINS) for size in sizes):
        raise SettingsError("Not sizes of nested libraries.", met=sizes, mend=f"2 to {len(DOMAINS)}, or multiples of {len(DOMAINS)}")
    domains, at = divided(corpus, sizes[-1]), runs / "sizes"
    first = runs / rung.name / GENERALIST
    if not first.exists():
        generalist(rung, corpus, runs / rung.name)
    tell(domains, corpus, at)
    parts = []
    for seed in seeds:
        folders = specialists(rung, domains, first, at / f"seed-{seed}", seed, sizes[-1])
        for size in track(sizes, f"libraries of seed {seed}"):
            chosen = {name: folders[name] for name in domains.names(size)}
            parts.append((size, *one(rung, domains, first, chosen, at / f"seed-{seed}" / f"size-{size:02d}", seed)))
    return rows_of(parts, rung.name)


def tell(domains: Domains, corpus: Corpus, folder: Path) -> None:
    """Write what the sub-domains are: how many texts each has, and its words."""
    told = {}
    for domain, own in domains.splits.items():
        for number, terms in enumerate(own.terms(corpus.train[domain]), 1):
            name = f"{domain}_{number}"
            told[name] = {"train": len(domains.train[name]), "heldout": len(domains.heldout[name]), "terms": terms}
    write_json(folder / "subdomains.json", {name: told[name] for name in domains.names(len(told))})


Part = tuple[dict[str, Any], list[dict], dict[str, float]]
"""Results and rows of an evaluation, and what the library cost."""


def one(rung: Rung, domains: Domains, first: Path, folders: Mapping[str, Path], out: Path, seed: int) -> Part:
    """Index, calibrate, time and evaluate one library; whatever is finished and made of the same is read."""
    library = _opened(first, folders, out)
    probes, validation = domains.asked(len(folders))
    index = draw_index_probes(Corpus(train=dict(domains.train)), library.names, rung.probes, seed)
    settings = evaluation_settings(rung, len(folders), seed)
    origin = digest_of(library.digests(), index, _told(probes), _told(validation), settings.digest())
    mark = out / "cost.json"
    if mark.exists() and read_json(mark)["origin"] == origin and (out / "evaluation" / "results.json").exists():
        return (*read_results(out / "evaluation"), read_json(mark)["cost"])
    start = time.perf_counter()
    constellation = Constellation.build(library, index, IndexSettings(max_length=rung.length))
    cost = {"index_s": time.perf_counter() - start}
    if validation:  # little held-out text may leave none; the default numbers stand then
        constellation = calibrate(library, constellation, validation, settings)
    place = constellation.save(out / "constellation")
    cost |= _query_cost(library, constellation, [probe.text for probe in probes[:: max(1, len(probes) // TIMED)]], settings.top_k)
    cost |= {"library_mib": _mebibytes(folders.values()), "index_mib": _mebibytes([place])}
    evaluate(library, constellation, probes, settings, out=out / "evaluation")
    write_json(mark, {"origin": origin, "cost": cost})
    return (*read_results(out / "evaluation"), cost)


def evaluation_settings(rung: Rung, size: int, seed: int) -> EvaluationSettings:
    """The evaluation of one library, with task arithmetic's scales for its number of deltas."""
    scales = sorted({*SCALES, *(round(total / size, 6) for total in (1, 2, 4))})
    return EvaluationSettings(
        seed=seed, scale=f"{rung.name}/{size}", max_length=rung.length, paper_layers=rung.last, task_arithmetic=tuple(scales)
    )


def _opened(first: Path, folders: Mapping[str, Path], out: Path) -> Library:
    """The library of some specialists, all of which may be live at once; its manifest is written on first use."""
    if not (out / "library.json").exists():
        Library.create(out, first.resolve(), {name: folder.resolve() for name, folder in folders.items()})
    return Library.open(out, max_models=len(folders))


def _told(probes: Iterable[Probe]) -> list[list[str]]:
    return [[probe.id, probe.group, probe.text] for probe in probes]


def _query_cost(library: Library, constellation: Constellation, texts: Sequence[str], top_k: int) -> dict[str, float]:
    """Seconds until a query's mixture is known (median over texts, models loaded), and the models that read the query."""
    k = min(top_k, len(library.names))
    modes = {"": MixtureSettings(top_k=k), "fast_": MixtureSettings(top_k=k, mode="fast")}
    cost: dict[str, float] = {"passes": 1 + k, "fast_passes": 1, "ensemble_passes": len(library.names)}
    for name, settings in modes.items():
        seconds = []
        for text in [*texts, *texts]:  # the first round loads
            start = time.perf_counter()
            constellation.mixture(text, settings)
            seconds.append(time.perf_counter() - start)
        cost[f"{name}query_s"] = median(seconds[len(texts) :])
    return cost


def _mebibytes(folders: Iterable[Path]) -> float:
    """Size of the tensors in some folders."""
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")) / 2**20


def rows_of(parts: Sequence[tuple[int, dict, list[dict], dict[str, float]]], name: str) -> list[dict[str, Any]]:
    """One row a size and seed (and "all"): HEADLINE's retrieval, win rates and losses, what the library cost, and all `cells` beside it.

    A cell is one set of probes (`all`, or `common`: those that the smallest library is asked too), protocol, task and candidate.
    """
    smallest = min(size for size, *_ in parts)
    common = {row["probe"] for size, _, rows, _ in parts if size == smallest for row in rows}
    found = []
    for size in sorted({size for size, *_ in parts}):
        own = [(results, rows, cost) for at, results, rows, cost in parts if at == size]
        rows = [row for _, members, _ in own for row in members]
        cells = [{"probes": "all", **cell} for cell in _compared(rows)]
        cells += [{"probes": "common", **cell} for cell in _compared([row for row in rows if row["probe"] in common])]
        for seed in dict.fromkeys(cell["seed"] for cell in cells):
            mine = [cell | _retrieved(own, cell) for cell in cells if cell["seed"] == seed]
            headline = next((cell for cell in mine if cell.items() >= HEADLINE.items()), {})
            found.append({"scale": name, "seed": seed, "size": size, **headline, "cost": _cost(own, seed), "cells": mine})
    return found


def _compared(rows: Sequence[dict]) -> list[dict[str, Any]]:
    """Win rates and mean losses of every candidate, by seed, protocol and task; groups of probes are not told apart."""
    wanted = (*CANDIDATES, *RIVALS.values())
    kept = [{**row, "group": ""} for row in rows if row["candidate"] in wanted or row["candidate"].startswith(f"{RIVALS['ta']}@")]
    wins, losses = tables(kept, "")
    mean = {_cell(row): row["loss"] for row in losses if row["group"] == "all"}
    found: dict[tuple, dict[str, Any]] = {}
    for row in losses:
        if row["group"] == "all" and row["candidate"] in CANDIDATES:
            seed, protocol, task, candidate = _cell(row)
            rivals = {f"{key}_loss": mean.get((seed, protocol, task, rival)) for key, rival in RIVALS.items()}
            own = {"seed": seed, "protocol": protocol, "task": task, "candidate": candidate, "n": row["n"], "loss": row["loss"]}
            found[_cell(row)] = own | {"loss_low": row["low"], "loss_high": row["high"]} | rivals | {"ta_scale": _scale(mean, row)}
    keys = {rival: key for key, rival in RIVALS.items()}
    for row in wins:
        if row["group"] == "all" and row["candidate"] in CANDIDATES and row["rival"] in keys:
            key = f"rate_{keys[row['rival']]}"
            found[_cell(row)] |= {key: row["rate"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
    return list(found.values())


def _cell(row: Mapping[str, Any]) -> tuple:
    return row["seed"], row["protocol"], row["task"], row["candidate"]


def _scale(mean: Mapping[tuple, float], row: Mapping[str, Any]) -> float | None:
    """Task arithmetic's best scale by mean loss in the cell of a row."""
    prefix = f"{RIVALS['ta']}@"
    tried = {
        key[3]: loss for key, loss in mean.items() if key[:3] == (row["seed"], row["protocol"], row["task"]) and key[3].startswith(prefix)
    }
    return float(min(tried, key=lambda candidate: tried[candidate]).removeprefix(prefix)) if tried else None


def _retrieved(parts: Sequence[Part], row: Mapping[str, Any]) -> dict[str, float]:
    """Top-1 and top-3 of the candidate's basis over all single-domain probes; over seeds, each probe's hits are averaged first."""
    space = f"generalist, {'paper' if row['candidate'] == 'paper' else 'default'}'s basis"
    entries = [e for results, _, _ in parts for e in results["retrieval"] if e["space"] == space and row["seed"] in (e["seed"], "all")]
    found = {}
    for key in ("top1", "top3") if entries else ():
        n = round(sum(entry["n"] for entry in entries) / len(entries))
        rate, low, high = wilson(sum(entry[key] for entry in entries) / len(entries) * n, n)
        found |= {key: rate, f"{key}_low": low, f"{key}_high": high}
    return found


def _cost(parts: Sequence[Part], seed: int | str) -> dict[str, float]:
    """What the library of a seed cost; the mean over seeds for "all"."""
    own = [cost for results, _, cost in parts if seed in (results["seeds"][0], "all")]
    return {key: sum(cost[key] for cost in own) / len(own) for key in own[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every size for every seed, and write the rows."""
    own = parser(__doc__, "--data", "--scale", "--runs", "--seeds", "--threads")
    own.set_defaults(seeds=[42])
    own.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    given = own.parse_args(arguments)
    torch.set_num_threads(given.threads)
    rung, corpus, runs = rungs(given.scale)[0], read_text(given.data), given.runs / given.scale
    rows = run(rung, corpus, runs, given.seeds, sizes=given.sizes)
    write_json(runs / "sizes" / "rows.json", rows)
    print(f"rows: {runs / 'sizes' / 'rows.json'}")


if __name__ == "__main__":
    ended(main)
