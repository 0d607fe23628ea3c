"""What the benchmarks share: options, paired timing, the machine in words, and the report (a table, then one JSON line)."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from rich.console import Console
from rich.table import Table


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--quick`; a benchmark adds what else it needs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer repetitions: does it run, not how fast")
    return parser


def interleaved(rivals: Mapping[str, Callable[[], object]], repetitions: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each rival, one list entry a round: A B C, A B C, ... so that a slow moment of the machine meets them all.

    `warm` rounds run first and are thrown away (pages touched, caches and lazy imports filled).
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for round_ in range(-warm, repetitions):
        for name, rival in rivals.items():
            start = time.perf_counter()
            rival()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median over rounds of numerator / denominator measured in the same round."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def machine() -> dict[str, object]:
    """The machine and the libraries that matter to a timing, with the load it was under when asked."""
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def report(
    name: str,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    metrics: Mapping[str, float | None],
    *,
    notes: Iterable[str] = (),
) -> None:
    """Print the table for people, the notes, and as the last line one JSON object: name, machine, metrics.

    Cells that are floats are shown with three significant digits; metrics keep four.
    """
    where = machine()
    table = Table(
        title=title,
        title_justify="left",
        caption=f"{where['cpu']}, {where['threads']} threads, load {where['load']}",
        caption_justify="left",
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(cell) for cell in row))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
    rounded = {key: None if value is None else float(f"{value:.4g}") for key, value in metrics.items()}
    print(json.dumps({"name": name, "machine": where, "metrics": rounded}), flush=True)


def _shown(cell: object) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) and abs(cell) < 1000 else f"{cell:.0f}" if isinstance(cell, float) else str(cell)


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
