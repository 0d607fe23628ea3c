"""Train, index, diagnose, evaluate and report: composition on real text.

    python -m experiments.compose --data ../shared/data --data CODE [--scale lab|pocket] [--runs runs/compose]

CODE is a folder that holds the code domain, made by `../shared/tools/code_corpus.py`. Everything resumes where it stopped;
trained models stay under `--runs`, the results are written beside this file (`--results`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asterism.constellation.diagnosis import diagnose
from asterism.constellation.index import Constellation
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.settings import IndexSettings
from asterism.core.corpus import Corpus, Probe, read_corpus
from asterism.core.storage import write_json
from asterism.evaluate.probes import draw
from asterism.evaluate.results import pool, read_results, write_results
from asterism.evaluate.run import evaluate
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.library import Library
from asterism.report.html import write_report
from experiments.compose.models import DOMAINS, SCALES, build_libraries

PROBES = 40
"""Index probes a domain, and as many general ones (section 4.1)."""
EXAMPLE = "Is a surgeon liable for a nerve injury when the consent form did not name the risk?"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the whole experiment for every seed, pool the seeds, write results and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of text; may be given more than once")
    parser.add_argument("--scale", choices=SCALES, default="lab", help="lab: the numbers in the docs; pocket: does it run")
    parser.add_argument("--runs", type=Path, default=Path("runs/compose"), help="where models and raw rows are kept")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent, help="where results.json is written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    corpus, runs = read_corpus(*given.data), given.runs / given.scale
    folders = build_libraries(corpus, runs, given.scale, tuple(given.seeds))
    probes = drawn_probes(corpus, given.scale)
    for seed, folder in folders.items():
        one_seed(opened(folder), corpus, probes, seed, given.scale)
    results, rows = pool([read_results(folder / "evaluation") for folder in folders.values()])
    write_results(runs, results, rows)
    write_report(results, runs / "report.html", title="Composition per query on real text")
    write_json(given.results / "results.json", kept(results))
    print(f"results: {given.results / 'results.json'}\nreport:  {runs / 'report.html'}")


def kept(results: dict[str, Any]) -> dict[str, Any]:
    """What is committed of the results: everything, but of single groups only the compositions' rows."""

    def wanted(row: dict[str, Any]) -> bool:
        return row["group"] == "all" or row["candidate"] in ("default", "paper")

    return {**results, "table": list(filter(wanted, results["table"])), "losses": list(filter(wanted, results["losses"]))}


def drawn_probes(corpus: Corpus, scale: str) -> list[Probe]:
    """The same 160 single-domain and 150 cross-domain probes for every seed; nothing is tuned on them."""
    few = {} if scale == "lab" else {"single_per_domain": 2, "cross_per_pair": 1}
    return draw(corpus, DOMAINS, EvaluationSettings(seed=42, **few))


def opened(folder: Path) -> Library:
    """The library of one seed; its manifest is written on first use."""
    if not (folder / "library.json").exists():
        Library.create(folder, "generalist", {name: name for name in DOMAINS})
    return Library.open(folder)


def one_seed(library: Library, corpus: Corpus, probes: list[Probe], seed: int, scale: str) -> None:
    """Index, diagnosis and evaluation of one seed's specialists; the seed also draws the index probes."""
    index = draw_index_probes(corpus, DOMAINS, PROBES if scale == "lab" else 4, seed)
    length = SCALES[scale]["shape"]["n_positions"]
    constellation = Constellation.build(library, index, IndexSettings(max_length=length))
    constellation.save(library.root / "constellation")
    write_json(library.root / "diagnosis.json", diagnose(constellation).to_dict())
    settings = EvaluationSettings(seed=seed, scale=scale, max_length=length, example=EXAMPLE)
    if not (library.root / "evaluation" / "results.json").exists():
        evaluate(library, constellation, probes, settings, out=library.root / "evaluation", index_probes=index)


if __name__ == "__main__":
    main()
