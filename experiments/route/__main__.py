"""Compatible specialization: train experts, combine them in every way, and see which of the paper's claims hold.

    python -m experiments.route --data ../shared/data --data CODE [--scale lab|pocket|paper] [--only PART] [--seeds 42 43 44] [--dry-run]

CODE is a folder that holds the code domain (README.md here). Everything resumes where it stopped. Models, raw rows and the report stay
under `--out`; results.json is written beside this file for the lab scale, else under `--out`, unless `--results` names a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.commands import ended
from experiments.parted import Experiment
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
    home, out = Path(__file__).parent, Path("runs/route")
    Experiment(__doc__, home, out, PARTS, recipe, read_data, Workshop, plan, gather, write).run(arguments)


if __name__ == "__main__":
    ended(main)
