"""Tiny voices of three vocabularies."""

from __future__ import annotations

from functools import cache

from asterism.fuse.voices import Voice
from tests.tiny import tiny_model, tiny_tokenizer
from tests.vocabularies import larger, sentence_piece


@cache
def voice(kind: str) -> Voice:
    """`tiny` (Llama), `larger` (GPT-2), `pieces` (Qwen2, SentencePiece), `sliding` (Mistral with a window of 9)."""
    family, seed, tokenizer = {
        "tiny": ("llama", 1, tiny_tokenizer()),
        "larger": ("gpt2", 2, larger()),
        "pieces": ("qwen2", 3, sentence_piece()),
        "sliding": ("mistral", 4, larger()),
    }[kind]
    size = len(tokenizer) + (8 if kind == "larger" else 0)  # an embedding wider than its vocabulary
    return Voice(kind, tiny_model(family, seed, vocab_size=size), tokenizer)
