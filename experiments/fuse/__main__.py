"""HeteroFusion: fuse experts of three families in eight ways, beside their rivals, and see which of the paper's claims hold.

    python -m experiments.fuse --data ../shared/data [--scale lab|pocket|paper] [--only PART] [--seeds 42 43 44] [--dry-run]

Everything resumes where it stopped. Models, raw rows and the report stay under `--out`; results.json is written beside this file for
the lab scale, else under `--out`, unless `--results` names a place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.commands import ended
from experiments.fuse.data import read_data
from experiments.fuse.gather import gather
from experiments.fuse.parts import PARTS
from experiments.fuse.plan import plan
from experiments.fuse.recipe import recipe
from experiments.fuse.report import write
from experiments.fuse.workshop import Workshop
from experiments.parted import Experiment


def main(arguments: Sequence[str] | None = None) -> None:
    """Every part of every seed, then all that is finished as results and a report."""
    parts = {name: partial(timed, part) for name, part in PARTS.items()}
    home, out = Path(__file__).parent, Path("runs/fuse")
    Experiment(__doc__, home, out, parts, recipe, read_data, Workshop, plan, gather, write).run(arguments)


def timed(part: Callable[[Workshop], dict[str, Any]], shop: Workshop) -> dict[str, Any]:
    """A part, with the core-minutes that this process took for it (of a part that was killed, those since)."""
    began = time.process_time()
    found = part(shop)
    return found | {"minutes": (time.process_time() - began) / 60}


if __name__ == "__main__":
    ended(main)
