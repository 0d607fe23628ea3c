"""Every static merge on the ladder's libraries: tuned on validation probes, scored on the test probes beside what the ladder scored.

    python -m experiments.merge --data ../shared/data --data CODE [--only RUNG] [--scale lab|pocket] [--methods ties,dare_ties]

Needs the rungs that `python -m experiments.constellation` has trained and evaluated. A library that is finished is kept under `--out`;
results.json is written beside this file for the lab ladder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from asterism.constellation.index import Constellation
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.settings import IndexSettings
from asterism.core.corpus import Corpus
from asterism.core.errors import DataError
from asterism.core.storage import read_json, write_json
from asterism.evaluate.candidates import ROUTED, TASK_ARITHMETIC, derived
from asterism.evaluate.merges import Merged
from asterism.evaluate.probes import draw, validation_probes
from asterism.evaluate.results import read_results
from asterism.evaluate.tables import tables
from asterism.evaluate.tuning import GRIDS, tuned
from asterism.models.batching import batches, pad_id
from asterism.models.library import Library
from experiments.commands import ended, parser
from experiments.compact import write_compact
from experiments.constellation.bench import Bench
from experiments.constellation.ladder import EVALUATION, HELD_OUT, drawing, place, read_text, settings_of
from experiments.constellation.models import device
from experiments.constellation.rung import DOMAINS, Rung, rungs

BESIDE = ("generalist", "best_single", TASK_ARITHMETIC, "uniform", "ensemble", "default", "fast", "paper", ROUTED)
"""What the ladder scored that merges are told with."""
RIVALS = ("generalist", TASK_ARITHMETIC, "best_single", "default")
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
            if not own.exists() and _evaluated(folder, seed) and (not given.only or rung.name in given.only):
                print(f"{rung.name}, seed {seed}", file=sys.stderr)
                write_json(own, one(rung, corpus, folder, seed, methods, own.with_suffix(""), given.scale))
            if own.exists():
                found = read_json(own)
                results["tuned"] += [{"scale": rung.name, "seed": seed, **row} for row in found["tuned"]]
                results["methods"] |= found["methods"]
                rows += found["rows"] + _beside(folder, seed)
        if rows:
            wins, losses = (_told_of(part) for part in tables([{**row, "group": "all"} for row in rows], rung.name, RIVALS))
            results["table"] += wins
            results["losses"] += losses
    target = given.results or (Path(__file__).parent if given.scale == "lab" else given.out / given.scale)
    write_compact(target / "results.json", results)
    for line in lines(results):
        print(line)


def one(rung: Rung, corpus: Corpus, folder: Path, seed: int, methods: Sequence[str], state: Path, scale: str) -> dict[str, Any]:
    """One library's merges: {"tuned": settings and validation losses, "methods": what each is, "rows": a row a probe}."""
    library = Library.open(place(folder, seed), device=device())
    settings = settings_of(rung, seed)
    index = draw_index_probes(corpus, DOMAINS, rung.probes, seed)
    constellation = Constellation.build(library, index, IndexSettings(max_length=rung.length))
    test = draw(corpus, DOMAINS, drawing(scale))
    held = validation_probes(corpus, DOMAINS, drawing(scale), per_group=1 if scale == "pocket" else HELD_OUT)
    texts = {name: corpus.train[name][:TEXTS] for name in DOMAINS}
    best = tuned(library, methods, held, settings, texts=texts, state=state / "tuning")
    bench = Bench(library, test, settings, state / "test")
    picks = {protocol: derived(bench.reading, constellation, protocol)[ROUTED][1] for protocol in settings.protocols}
    batched = batches(bench.tokens, max_tokens=settings.max_tokens, pad=pad_id(library.tokenizer))
    rows: list[dict[str, Any]] = []
    for merged in best:
        losses = merged.score(library, picks, batched, len(test))
        rows += [
            {
                "scale": rung.name, "seed": seed, "protocol": protocol, "task": "cross" if probe.is_cross else "single",
                "group": probe.group, "probe": probe.id, "candidate": merged.name, "loss": loss,
            }
            for protocol in settings.protocols
            for probe, loss in zip(test, losses[protocol].tolist(), strict=True)
        ]  # fmt: skip
    return {
        "tuned": [_told(merged) for merged in best],
        "methods": {merged.name: merged.about.split(" (")[0] for merged in best},
        "rows": rows,
    }


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


def _beside(folder: Path, seed: int) -> list[dict[str, Any]]:
    """The ladder's rows of what merges are told with."""
    return [row for row in read_results(place(folder, seed) / EVALUATION)[1] if row["candidate"] in BESIDE]


def _evaluated(folder: Path, seed: int) -> bool:
    return (place(folder, seed) / EVALUATION / "results.json").exists()


def _parser() -> argparse.ArgumentParser:
    own = parser(__doc__, "--data", "--scale", "--only", "--runs", "--results", "--seeds", "--threads")
    own.add_argument("--methods", help="these methods alone, with commas; all that fit by default")
    own.add_argument("--out", type=Path, default=Path("runs/merge"), help="where finished libraries' rows are kept")
    return own


if __name__ == "__main__":
    ended(main)
