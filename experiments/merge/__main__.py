"""Every static merge on the ladder's libraries: tuned on validation probes, scored on the test probes beside what the ladder scored.

    python -m experiments.merge --data ../shared/data --data CODE [--only RUNG] [--scale lab|pocket] [--methods ties,dare_ties]

Needs the rungs that `python -m experiments.constellation` has trained and evaluated. A library that is finished is kept under `--out`;
results.json is written beside this file for the lab ladder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.constellation.index import Constellation
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.settings import IndexSettings
from asterism.core.corpus import Corpus
from asterism.core.errors import DataError
from asterism.core.storage import read_json, write_json
from asterism.evaluate.candidates import ROUTED, TASK_ARITHMETIC, derived, static_candidates
from asterism.evaluate.merges import Merged
from asterism.evaluate.passes import score_static
from asterism.evaluate.probes import draw, validation_probes
from asterism.evaluate.results import read_results
from asterism.evaluate.settings import Protocol
from asterism.evaluate.tables import best_of, tables
from asterism.evaluate.tuning import GRIDS, tuned
from asterism.models.batching import Batch, batches, pad_id
from asterism.models.library import Library
from experiments.commands import ended, parser
from experiments.compact import write_compact
from experiments.constellation.bench import Bench
from experiments.constellation.ladder import EVALUATION, HELD_OUT, drawing, place, read_text, settings_of
from experiments.constellation.models import device
from experiments.constellation.rung import DOMAINS, Rung, rungs

BESIDE = ("generalist", "best_single", "uniform", "ensemble", "default", "fast", "paper", ROUTED)
"""What the ladder scored that merges are told with."""
PAPER_ARITHMETIC = "task_arithmetic_paper"
"""The best of the paper's scales, the ladder's rival; `task_arithmetic` is the best of these and of smaller ones."""
SMALLER = (0.05, 0.1, 0.2)
"""Scales of task arithmetic below the paper's: its lowest, 0.3, was the best of it nearly everywhere."""
RIVALS = ("generalist", TASK_ARITHMETIC, "best_single", "default")
TOLD = {
    TASK_ARITHMETIC: "one model: task arithmetic at the best scale from 0.05 to 1, by the test itself",
    PAPER_ARITHMETIC: "one model: task arithmetic at the best of the paper's scales, 0.3, 0.5 and 1, by the test itself",
}
TEXTS = 200
"""Training texts of each domain that merges by data read."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune and score every finished library of a ladder, then gather."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    corpus = read_text(given.data)
    methods = given.methods.split(",") if given.methods else ["all"]
    ready = [rung for rung in rungs(given.scale) if any(_evaluated(given.runs / given.scale / rung.name, seed) for seed in given.seeds)]
    if not ready:
        raise DataError("No library of the ladder is ready.", met=given.runs / given.scale, mend="run python -m experiments.constellation")
    results: dict[str, Any] = {"methods": {}, "tuned": [], "losses": [], "table": []}
    for rung in ready:
        folder, rows = given.runs / given.scale / rung.name, []
        for seed in given.seeds:
            own = given.out / given.scale / rung.name / f"seed-{seed}.json"
            scaled = own.with_name(f"arithmetic-{seed}.json")
            if _evaluated(folder, seed) and (not given.only or rung.name in given.only):
                if not own.exists():
                    print(f"{rung.name}, seed {seed}", file=sys.stderr)
                    write_json(own, one(rung, corpus, folder, seed, methods, own.with_suffix(""), given.scale))
                if not scaled.exists():
                    print(f"{rung.name}, seed {seed}: task arithmetic", file=sys.stderr)
                    write_json(scaled, arithmetic(rung, corpus, folder, seed, own.with_suffix(""), given.scale))
            if own.exists() and scaled.exists():
                found = read_json(own)
                results["tuned"] += [{"scale": rung.name, "seed": seed, **row} for row in found["tuned"]]
                results["methods"] |= found["methods"] | TOLD
                rows += found["rows"] + _beside(folder, seed, read_json(scaled))
        if rows:
            wins, losses = (_told_of(part) for part in tables([{**row, "group": "all"} for row in rows], rung.name, RIVALS))
            results["table"] += wins
            results["losses"] += losses
    target = given.results or (Path(__file__).parent if given.scale == "lab" else given.out / given.scale)
    write_compact(target / "results.json", results)
    for line in lines(results):
        print(line)


@dataclass(frozen=True)
class Bed:
    """What merges of one library are scored on."""

    library: Library
    constellation: Constellation
    bench: Bench

    @classmethod
    def of(cls, rung: Rung, corpus: Corpus, folder: Path, seed: int, state: Path, scale: str) -> Bed:
        """The ladder's library, index and test probes; what is read of these is kept under `state`."""
        library = Library.open(place(folder, seed), device=device())
        index = draw_index_probes(corpus, DOMAINS, rung.probes, seed)
        constellation = Constellation.build(library, index, IndexSettings(max_length=rung.length))
        return cls(library, constellation, Bench(library, draw(corpus, DOMAINS, drawing(scale)), settings_of(rung, seed), state / "test"))

    @property
    def batched(self) -> list[Batch]:
        return batches(self.bench.tokens, max_tokens=self.bench.settings.max_tokens, pad=pad_id(self.library.tokenizer))

    def rows(self, candidate: str, losses: Mapping[Any, Tensor]) -> list[dict[str, Any]]:
        """A row a protocol and probe, as the ladder's evaluation has them."""
        settings = self.bench.settings
        return [
            {
                "scale": settings.scale, "seed": settings.seed, "protocol": protocol, "task": "cross" if probe.is_cross else "single",
                "group": probe.group, "probe": probe.id, "candidate": candidate, "loss": loss,
            }
            for protocol in settings.protocols
            for probe, loss in zip(self.bench.probes, losses[protocol].tolist(), strict=True)
        ]  # fmt: skip


def one(rung: Rung, corpus: Corpus, folder: Path, seed: int, methods: Sequence[str], state: Path, scale: str) -> dict[str, Any]:
    """One library's merges: {"tuned": settings and validation losses, "methods": what each is, "rows": a row a probe}."""
    bed = Bed.of(rung, corpus, folder, seed, state, scale)
    library, settings, batched = bed.library, bed.bench.settings, bed.batched
    held = validation_probes(corpus, DOMAINS, drawing(scale), per_group=1 if scale == "pocket" else HELD_OUT)
    texts = {name: corpus.train[name][:TEXTS] for name in DOMAINS}
    best = tuned(library, methods, held, settings, texts=texts, state=state / "tuning")
    picks: dict[Protocol, Tensor] = {
        protocol: derived(bed.bench.reading, bed.constellation, protocol)[ROUTED][1] for protocol in settings.protocols
    }
    rows = [row for merged in best for row in bed.rows(merged.name, merged.score(library, picks, batched, len(bed.bench.probes)))]
    return {
        "tuned": [_told(merged) for merged in best],
        "methods": {merged.name: merged.about.split(" (")[0] for merged in best},
        "rows": rows,
    }


def arithmetic(rung: Rung, corpus: Corpus, folder: Path, seed: int, state: Path, scale: str) -> list[dict[str, Any]]:
    """Rows of task arithmetic at each scale of SMALLER."""
    bed = Bed.of(rung, corpus, folder, seed, state, scale)
    wanted = static_candidates(bed.library, bed.bench.settings.changed(task_arithmetic=SMALLER))
    scaled = [each for each in wanted if each.name.startswith(f"{TASK_ARITHMETIC}@")]
    return [row for each in scaled for row in bed.rows(each.name, score_static(bed.library, each, bed.batched, len(bed.bench.probes)).loss)]


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """Mean loss on whole cross-domain probes, best first, rung by rung."""
    cell = {"protocol": "whole", "task": "cross"}
    for scale in dict.fromkeys(row["scale"] for row in results["losses"]):
        rows = [row for row in results["losses"] if row["scale"] == scale and all(row[key] == value for key, value in cell.items())]
        seed = "all" if any(row["seed"] == "all" for row in rows) else rows[0]["seed"]
        yield f"{scale}, two domains, whole"
        for row in sorted((row for row in rows if row["seed"] == seed), key=lambda row: row["loss"]):
            yield f"  {row['loss']:.4f}  {row['candidate']}"


def _told(merged: Merged) -> dict[str, Any]:
    found = {key: value for key, value in merged.told.items() if key != "texts"}
    return found | {"tried": prod(len(values) for values in GRIDS[merged.name].values())}


def _told_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows over all seeds, once each; of one seed alone where there is only one."""
    found = {(row["seed"], row["protocol"], row["task"], row["candidate"], row.get("rival")): row for row in rows}
    many = any(row["seed"] == "all" for row in rows)
    return [row for row in found.values() if (row["seed"] == "all") == many]


def _beside(folder: Path, seed: int, smaller: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ladder's rows of what merges are told with, and task arithmetic by the paper's scales and by smaller ones too."""
    known = read_results(place(folder, seed) / EVALUATION)[1]
    scaled, prefix = [row for row in known if row["candidate"].startswith(f"{TASK_ARITHMETIC}@")], f"{TASK_ARITHMETIC}@"
    best = best_of(scaled, prefix, PAPER_ARITHMETIC) + best_of([*scaled, *smaller], prefix, TASK_ARITHMETIC)
    return [*(row for row in known if row["candidate"] in BESIDE), *smaller, *best]


def _evaluated(folder: Path, seed: int) -> bool:
    return (place(folder, seed) / EVALUATION / "results.json").exists()


def _parser() -> argparse.ArgumentParser:
    own = parser(__doc__, "--data", "--scale", "--only", "--runs", "--results", "--seeds", "--threads")
    own.add_argument("--methods", help="these methods alone, with commas; all that fit by default")
    own.add_argument("--out", type=Path, default=Path("runs/merge"), help="where finished libraries' rows are kept")
    return own


if __name__ == "__main__":
    ended(main)
