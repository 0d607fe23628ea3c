"""What a query costs before its answer: its mixture beside bare forward passes of the generalist and the K specialists that read it.

    python benchmarks/mixture.py [--quick]

Ours also tokenises, pools the fingerprint, shortlists, and turns losses into weights. `fast` reads with the generalist alone. Every model
is loaded before the clock starts. Random weights; speed does not depend on them.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from common import interleaved, options, ratio, report
from libraries import random_library, random_texts
from transformers.utils import logging

from asterism.constellation.index import Constellation
from asterism.core.progress import quiet

TOP_K = 3


def main() -> None:
    """Measure, compare, print."""
    given = options(__doc__).parse_args()
    logging.disable_progress_bar()
    hidden, blocks, rounds = (64, 2, 3) if given.quick else (256, 6, 25)
    with tempfile.TemporaryDirectory() as folder, quiet():
        library = random_library(Path(folder), hidden=hidden, blocks=blocks, vocabulary=4096)
        index = {name: random_texts(library, 4, shortest=30, longest=60, seed=2 + i) for i, name in enumerate([*library.names, "general"])}
        constellation = Constellation.build(library, index)
        text = random_texts(library, 1, shortest=200, longest=200, seed=1)[0]
        ids = torch.tensor([library.tokenizer(text)["input_ids"]])
        models = [library.model(name) for name in (None, *constellation.mixture(text, top_k=TOP_K).specialists)]

        def passes(count: int):
            def run() -> None:
                with torch.no_grad():
                    for model in models[:count]:
                        model(input_ids=ids, use_cache=False)

            return run

        ways = {"bare": passes(1 + TOP_K), "bare fast": passes(1)}
        ways |= {"evidence": lambda: constellation.mixture(text, top_k=TOP_K)}
        ways |= {"fast": lambda: constellation.mixture(text, top_k=TOP_K, mode="fast")}
        seconds = interleaved(ways, rounds)
    told = {
        "bare": f"{1 + TOP_K} bare forward passes", "evidence": f"mixture by evidence, K = {TOP_K}",
        "bare fast": "1 bare forward pass", "fast": "mixture, mode fast",
    }  # fmt: skip
    report(
        "mixture",
        f"One query of {ids.shape[1]} tokens, {sum(p.numel() for p in models[0].parameters()) / 1e6:.1f} M parameters a model",
        ["way", "milliseconds"],
        [[name, 1000 * statistics.median(seconds[key])] for key, name in told.items()],
        {"prefill_ratio": ratio(seconds["bare"], seconds["evidence"]), "fast_ratio": ratio(seconds["bare fast"], seconds["fast"])},
    )


if __name__ == "__main__":
    main()
