"""The index at 1,000 domains of width 4096, and opening a library of 50 specialists.

    python benchmarks/index.py [--quick]

Coefficients of one fingerprint stand beside their limit, the bare matrix-vector product. A library is opened in fresh processes,
after the imports; what it then adds to the resident memory is its cost.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from common import interleaved, options, report
from libraries import random_library
from transformers.utils import logging

from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings
from asterism.core.progress import quiet
from asterism.models.library import Library

T = TypeVar("T")
WIDTH, PROBES = 4096, 4

OPEN = """
import gc, json, sys, time
import psutil, torch, transformers
from asterism.models.library import Library
gc.collect()
process = psutil.Process()
before, start = process.memory_info().rss, time.perf_counter()
library = Library.open(sys.argv[1])
seconds = time.perf_counter() - start
print(json.dumps([len(library.names), seconds, (process.memory_info().rss - before) / 2**20]))
"""


def main() -> None:
    """Measure, print."""
    given = options(__doc__).parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, quiet():
        index_rows, milliseconds = coefficients(Path(folder) / "index", 1000, 20 if given.quick else 200)
        count, seconds, megabytes = opened(Path(folder) / "library", *((64, 2) if given.quick else (192, 12)), 1 if given.quick else 5)
    rows = [*index_rows, [f"open a library of {count} specialists", seconds, f"{megabytes:.0f} MB"]]
    metrics = {"coefficients_ms_1000": milliseconds, "open_50_s": seconds, "open_50_mb": megabytes}
    report("index", f"Index of width {WIDTH}; library", ["step", "seconds", "note"], rows, metrics)


def coefficients(folder: Path, domains: int, rounds: int) -> tuple[list[list[Any]], float]:
    """Rows of the table, and milliseconds of one query's coefficients (median)."""
    names = tuple(f"domain-{n:04}" for n in range(domains))
    library: Any = SimpleNamespace(names=names, root=folder.parent, digest=lambda name=None: "benchmark")
    draw = torch.Generator().manual_seed(0)
    shared = 3 * torch.randn(WIDTH, generator=draw)  # collinear domains, as real ones are
    prints = {name: shared + torch.randn(PROBES, WIDTH, generator=draw) for name in names}
    settings, digests = IndexSettings.paper(), dict.fromkeys(names, "benchmark")
    built, building = timed(lambda: Constellation.from_fingerprints(library, prints, settings, digests=digests))
    _, changing = timed(lambda: built.with_settings(IndexSettings(orthogonalisation="lowdin")))
    _, saving = timed(lambda: built.save(folder))
    loaded, loading = timed(lambda: Constellation.load(folder, library))
    query, vectors = prints[names[7]][0], loaded.basis.vectors
    seconds = interleaved({"product": lambda: vectors @ query, "ours": lambda: loaded.basis.coefficients(query)}, rounds, warm=5)
    product, ours = (statistics.median(seconds[name]) for name in ("product", "ours"))
    rows = [
        [f"build {domains} domains from fingerprints", building, f"{PROBES} probes each, gram_schmidt"],
        ["another basis from the same fingerprints", changing, "lowdin"],
        ["save", saving, f"{sum(path.stat().st_size for path in folder.iterdir()) / 2**20:.0f} MB"],
        ["load", loading, "fingerprints stay on disk"],
        ["matrix-vector product alone", product, f"{product * 1000:.2f} ms"],
        ["coefficients of one fingerprint", ours, f"{ours * 1000:.2f} ms"],
    ]
    return rows, 1000 * ours


def opened(folder: Path, hidden: int, blocks: int, rounds: int) -> tuple[int, float, float]:
    """Specialists, and the medians over fresh processes of seconds and megabytes that opening their library takes."""
    random_library(folder / "made", hidden=hidden, blocks=blocks, vocabulary=4096, names=("one",))
    names = [f"specialist-{n:02}" for n in range(50)]
    for name in names:
        shutil.copytree(folder / "made" / "one", folder / "fifty" / name, copy_function=linked)
    shutil.copytree(folder / "made" / "generalist", folder / "fifty" / "generalist")
    Library.create(folder / "fifty", "generalist", {name: name for name in names})
    found = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-c", OPEN, str(folder / "fifty")], check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    count, seconds, megabytes = zip(*found, strict=True)
    assert set(count) == {50}
    return 50, statistics.median(seconds), statistics.median(megabytes)


def linked(source: str, target: str) -> None:
    """A hard link, so that fifty specialists take one specialist's disk; a copy where links do not work."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives, and its seconds."""
    start = time.perf_counter()
    given = work()
    return given, time.perf_counter() - start


if __name__ == "__main__":
    main()
