"""HeteroFusion: fuse experts of three families in seven ways, beside their rivals, and see which of the paper's claims hold.

    python -m experiments.fuse --data ../shared/data [--scale lab|pocket|paper] [--only PART] [--seeds 42 43 44] [--dry-run]

Everything resumes where it stopped. Models, raw rows and the report stay under `--out`; results.json is written beside this file for
the lab scale, else under `--out`, unless `--results` names a place.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from asterism.core.errors import UnknownName
from asterism.evaluate.results import write_results
from experiments.commands import ended, machine, parser
from experiments.compact import write_compact
from experiments.fuse.data import read_data
from experiments.fuse.gather import gather
from experiments.fuse.parts import PARTS
from experiments.fuse.plan import plan
from experiments.fuse.recipe import recipe
from experiments.fuse.report import write
from experiments.fuse.workshop import Workshop


def main(arguments: Sequence[str] | None = None) -> None:
    """Every part of every seed, then all that is finished as results and a report."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    made, root = recipe(given.scale), given.out / given.scale
    parts = chosen(given.only)
    if given.dry_run:
        print(plan(made, root, given.seeds, list(PARTS)))
        return
    logging.disable_progress_bar()  # transformers' own, beside ours
    data = read_data(made, given.data)
    shops = [Workshop(made, data, root, seed) for seed in given.seeds]
    for shop in shops:
        for part in parts:
            print(f"seed {shop.seed}: {part}", file=sys.stderr)
            shop.kept(part, lambda shop=shop, part=part: timed(shop, part))
    results, rows = gather(shops, list(PARTS), given.scale, machine())
    write_results(root, results, rows)
    place = given.results or (Path(__file__).parent if given.scale == "lab" else root)
    write_compact(place / "results.json", results)
    page = write(results, root / "report.html")
    print(f"results: {place / 'results.json'}\nrows:    {root / 'rows.parquet'}\nreport:  {page}")


def timed(shop: Workshop, part: str) -> dict[str, Any]:
    """A part, with the core-minutes that this process took for it (of a part that was killed, those since)."""
    began = time.process_time()
    found = PARTS[part](shop)
    return found | {"minutes": (time.process_time() - began) / 60}


def chosen(only: Sequence[str] | None) -> list[str]:
    """The parts asked for, all of them where none is named."""
    for name in only or ():
        if name not in PARTS:
            raise UnknownName("part", name, PARTS)
    return [name for name in PARTS if not only or name in only]


def _parser() -> argparse.ArgumentParser:
    own = parser(__doc__, "--data", "--scale", "--results", "--seeds", "--threads")
    own.add_argument("--only", action="append", metavar="PART", help=f"this part alone ({', '.join(PARTS)}); may be given more than once")
    own.add_argument("--out", type=Path, default=Path("runs/fuse"), help="where models, raw rows and the report are kept")
    own.add_argument("--dry-run", action="store_true", help="print sizes, steps and what is done; run nothing")
    return own


if __name__ == "__main__":
    ended(main)
