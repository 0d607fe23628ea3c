"""What a tokenizer's tokens stand for."""

from __future__ import annotations

from asterism.core.token_alignment import Vocabulary
from asterism.models.types import PreTrainedTokenizerBase


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The bytes of every token of a tokenizer; its end token ends a text, its other special tokens stand for nothing."""
    added = tokenizer.added_tokens_decoder
    special = {id for id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return Vocabulary.of(tokenizer.get_vocab(), end=tokenizer.eos_token_id, special=special, literal=added.keys() - special)  # pyright: ignore
