"""Fingerprints of texts beside their limit: the bare forward pass of the base model on the same padded batches.

    python benchmarks/fingerprint.py [--quick]

Ours also tokenises, makes the batches, and averages each text's own positions. Random weights; speed does not depend on them.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from common import interleaved, options, ratio, report
from libraries import random_library, random_texts
from transformers.utils import logging

from asterism.constellation.fingerprints import fingerprints
from asterism.core.progress import quiet
from asterism.models.batching import batches, pad_id, tokenise

MAX_LENGTH, MAX_TOKENS = 256, 4096


def main() -> None:
    """Measure, compare, print."""
    given = options(__doc__).parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the bare pass is told that it pads; causal attention does not mind
    hidden, blocks, count, rounds = (64, 2, 40, 2) if given.quick else (256, 6, 48, 15)
    with tempfile.TemporaryDirectory() as folder, quiet():
        library = random_library(Path(folder), hidden=hidden, blocks=blocks, vocabulary=4096, names=())
        model, tokenizer = library.model(None), library.tokenizer
        texts = random_texts(library, count, shortest=40, longest=200, seed=1)
        made = batches(tokenise(tokenizer, texts, MAX_LENGTH), max_tokens=MAX_TOKENS, pad=pad_id(tokenizer))

        def bare() -> None:
            with torch.no_grad():
                for batch in made:
                    model.base_model(input_ids=batch.ids, use_cache=False)

        def ours() -> None:
            fingerprints(model, tokenizer, texts, max_length=MAX_LENGTH, max_tokens=MAX_TOKENS)

        seconds = interleaved({"bare": bare, "ours": ours}, rounds)
    tokens = sum(batch.tokens for batch in made)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    rows = [
        [name, statistics.median(seconds[key]), tokens / statistics.median(seconds[key])]
        for name, key in (("bare forward pass of the base model", "bare"), ("fingerprints(): tokens to means", "ours"))
    ]
    report(
        "fingerprint",
        f"{count} texts, {tokens} tokens in {len(made)} batches, {size:.1f} M parameters",
        ["way", "seconds", "tokens a second"],
        rows,
        {"forward_ratio": ratio(seconds["bare"], seconds["ours"])},
    )


if __name__ == "__main__":
    main()
