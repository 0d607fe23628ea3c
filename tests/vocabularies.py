"""Tokenizers of other kinds and sizes than the tiny one."""

from __future__ import annotations

import json
from functools import cache

from transformers import PreTrainedTokenizerFast

from asterism.models.tokenizers import train_tokenizer
from tests.tiny import PROBES


@cache
def larger() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 480 tokens, learnt from other texts than the tiny one."""
    return train_tokenizer([*PROBES["medical"], *PROBES["legal"], *PROBES["general"]], 480)


@cache
def sentence_piece() -> PreTrainedTokenizerFast:
    """Spaces are ▁, one leads every text, and what has no token is spelt in bytes, as in Llama 2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # pyright: ignore
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], show_progress=False)  # pyright: ignore
    learnt.train_from_iterator([*PROBES["medical"], *PROBES["legal"]], trainer)
    vocabulary = learnt.get_vocab()
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in json.loads(learnt.to_str())["model"]["merges"]]
    whole = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # pyright: ignore
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    whole.decoder = decoders.Sequence(steps)  # pyright: ignore
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", pad_token="</s>")
