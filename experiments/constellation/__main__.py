"""The ladder: train every rung, index, calibrate, evaluate and sweep it, and gather the paper's tables and open questions.

    python -m experiments.constellation --data ../shared/data --data CODE [--scale lab|pocket|paper] [--only RUNG] [--dry-run]

CODE is a folder that holds the code domain (README.md here). Everything resumes where it stopped; a rung whose training diverged
is marked and left out. Models, raw rows and the report stay under `--runs`; results.json is written beside this file for the lab
ladder, else under `--runs`, unless `--results` names a place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from asterism.core.errors import UnknownName
from asterism.core.storage import write_json
from asterism.evaluate.results import write_results
from experiments.commands import ended, machine, parser
from experiments.compact import write_compact
from experiments.constellation import sizes, texts
from experiments.constellation.gather import SIZES_ROWS, gather
from experiments.constellation.ladder import checked, climb, divergence, read_text, steps_done
from experiments.constellation.report import write
from experiments.constellation.rung import Rung, Scratch, rungs
from experiments.constellation.texts import corpus_of

SIZES = {"lab": sizes.SIZES, "pocket": (2, 4)}
"""Library sizes tried with the ladder's first rung and seed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Climb the ladder rung by rung, then gather what is finished."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    ladder, runs = rungs(given.scale), given.runs / given.scale
    asked = chosen(ladder, given.only)
    if given.dry_run:
        print(plan(asked, runs, given.seeds))
        return
    logging.disable_progress_bar()  # transformers' own, beside ours
    shared = None if all(rung.texts for rung in asked) else read_text(given.data)
    for rung in asked:
        corpus = shared if shared and not rung.texts else checked(corpus_of(rung, given.data))
        print(f"{rung.name}: training, index, evaluation, sweeps", file=sys.stderr)
        if reason := climb(rung, corpus, runs / rung.name, given.seeds, given.scale):
            print(f"{rung.name}: diverged and left out: {reason}", file=sys.stderr)
    if shared and ladder[0] in asked and given.scale in SIZES and not divergence(ladder[0], runs / ladder[0].name):
        write_json(runs / SIZES_ROWS, sizes.run(ladder[0], shared, runs, given.seeds[:1], sizes=SIZES[given.scale]))
    results, rows = gather(ladder, runs, given.seeds, given.scale, machine())
    write_results(runs, results, rows)
    place = given.results or (Path(__file__).parent if given.scale == "lab" else runs)
    write_compact(place / "results.json", results)
    page = write(results, runs / "report.html")
    print(f"results: {place / 'results.json'}\nrows:    {runs / 'rows.parquet'}\nreport:  {page}")


def chosen(ladder: Sequence[Rung], only: Sequence[str] | None) -> list[Rung]:
    """The rungs asked for, all of them where none is named."""
    known = {rung.name: rung for rung in ladder}
    for name in only or ():
        if name not in known:
            raise UnknownName("rung", name, known)
    return [known[name] for name in only or known]


def plan(ladder: Sequence[Rung], runs: Path, seeds: Sequence[int]) -> str:
    """What a run would do: rungs, sizes, steps, and which parts are done. Nothing is trained, read or fetched."""
    lines = []
    for rung in ladder:
        takes, done = texts.plan(rung), steps_done(rung, runs / rung.name, seeds)
        start = f"{rung.start.hidden} x {rung.start.blocks} from nothing" if isinstance(rung.start, Scratch) else rung.start
        size = f"{takes['parameters']:,} parameters" if takes["parameters"] else "of unknown size"
        steps = ", ".join(f"{who} {count} steps" for who, count in takes["steps"].items())
        lines.append(f"{rung.name} ({rung.family}, {start}, {size}): {steps}")
        if takes["gpu_memory_gib"] and rung.texts:
            memory = ", ".join(f"{what} {size:g} GiB" for what, size in takes["gpu_memory_gib"].items())
            lines.append(f"  reads {'; '.join(source for sources in takes['data'].values() for source in sources)}; needs {memory}")
        if reason := divergence(rung, runs / rung.name):
            lines.append(f"  diverged: {reason}")
            continue
        open_parts = [part for part, finished in done.items() if not finished]
        lines.append(f"  done {len(done) - len(open_parts)} of {len(done)} parts; to do: {', '.join(open_parts) or 'nothing'}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    own = parser(__doc__, "--data", "--scale", "--only", "--runs", "--results", "--seeds", "--threads")
    own.add_argument("--dry-run", action="store_true", help="print the plan and which parts are done; run nothing")
    return own


if __name__ == "__main__":
    ended(main)
