"""Compatible specialization: train experts, combine them in every way, and see which of the paper's claims hold.

    python -m experiments.route --data ../shared/data --data CODE [--scale lab|pocket|paper] [--only PART] [--seeds 42 43 44] [--dry-run]

CODE is a folder that holds the code domain (README.md here). Everything resumes where it stopped. Models, raw rows and the report stay
under `--out`; results.json is written beside this file for the lab scale, else under `--out`, unless `--results` names a place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from asterism.core.errors import UnknownName
from asterism.evaluate.results import write_results
from experiments.commands import ended, machine, parser
from experiments.compact import write_compact
from experiments.route.curve import curve
from experiments.route.data import read_data
from experiments.route.gather import gather
from experiments.route.ladder import ladder
from experiments.route.maps import maps
from experiments.route.plan import plan
from experiments.route.recipe import recipe
from experiments.route.report import write
from experiments.route.table import table
from experiments.route.tuned import tuned
from experiments.route.workshop import Workshop

PARTS: dict[str, Callable[[Workshop], dict[str, Any]]] = {
    "ladder": ladder, "tuned": tuned, "table": table, "maps": maps, "curve": curve,
}  # fmt: skip
"""In this order: what an earlier part trained a later one finds."""


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
            shop.kept(part, lambda shop=shop, part=part: PARTS[part](shop))
    results, rows = gather(shops, list(PARTS), given.scale, machine())
    write_results(root, results, rows)
    place = given.results or (Path(__file__).parent if given.scale == "lab" else root)
    write_compact(place / "results.json", results)
    page = write(results, root / "report.html")
    print(f"results: {place / 'results.json'}\nrows:    {root / 'rows.parquet'}\nreport:  {page}")


def chosen(only: Sequence[str] | None) -> list[str]:
    """The parts asked for, all of them where none is named."""
    for name in only or ():
        if name not in PARTS:
            raise UnknownName("part", name, PARTS)
    return [name for name in PARTS if not only or name in only]


def _parser() -> argparse.ArgumentParser:
    own = parser(__doc__, "--data", "--scale", "--results", "--seeds", "--threads")
    own.add_argument("--only", action="append", metavar="PART", help=f"this part alone ({', '.join(PARTS)}); may be given more than once")
    own.add_argument("--out", type=Path, default=Path("runs/route"), help="where models, raw rows and the report are kept")
    own.add_argument("--dry-run", action="store_true", help="print sizes, steps and what is done; run nothing")
    return own


if __name__ == "__main__":
    ended(main)
