"""A model as one voice among models of other vocabularies: what its tokens stand for, and what it gives to come behind a text of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import DataError
from asterism.core.token_alignment import Vocabulary
from asterism.models.batching import room_of
from asterism.models.spelling import vocabulary_of
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

AT_ONCE = 16
"""Beginnings of one answer that are read in one batch, where they are no part of a longer one."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A model and its tokenizer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What its tokens stand for."""
        return vocabulary_of(self.tokenizer)

    @cached_property
    def leads(self) -> bool:
        """Whether the tokenizer writes a space before a text, as SentencePiece does."""
        return b"".join(self.vocabulary.spelt(self._plain("a"))) == b" a"

    def limit(self, most: int) -> int:
        """Tokens that it reads, at most `most`: as many as it has positions."""
        return room_of(self.model, most)

    def ids(self, text: bytes) -> list[int]:
        """The tokens of an answer or its beginning, as they are trained on: the text by itself, no special tokens.

        Bytes that make no character (the last ones of a beginning) are tokens of their own where the vocabulary has them, else left out.
        """
        found: list[int] = []
        while text:
            try:
                whole, odd, text = text.decode(), b"", b""
            except UnicodeDecodeError as error:
                whole, odd, text = text[: error.start].decode(), text[error.start : error.end], text[error.end :]
            found += self._plain(whole)
            found += [
                self.vocabulary.ids[byte] for byte in (odd[place : place + 1] for place in range(len(odd))) if byte in self.vocabulary.ids
            ]
        return found

    def texts(self, *, first: bool) -> Sequence[bytes | None]:
        """What each token adds to a text: its bytes, but for the first of an answer without the space that the tokenizer leads with."""
        if not (first and self.leads):
            return self.vocabulary.texts
        return self._led

    @cached_property
    def _led(self) -> list[bytes | None]:
        return [text[1:] if text and text.startswith(b" ") else text for text in self.vocabulary.texts]

    @torch.inference_mode()
    def rows(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Tensor:
        """Probabilities [n, V] float32 on the CPU of what comes behind a prompt and each of n beginnings of an answer.

        Beginnings of the last one are read in one pass with it; others, which a tokenizer gives where it splits the rest of a word
        otherwise, in batches of their own.
        """
        if not prompt:
            raise DataError("There is nothing before the answer.", met="a prompt without tokens", mend="give every example a prompt")
        longest = list(answers[-1])
        logits = self._logits([[*prompt, *longest]])[0][len(prompt) - 1 :]
        found = {len(own): logits[len(own)] for own in answers if list(own) == longest[: len(own)]}
        other = [place for place, own in enumerate(answers) if list(own) != longest[: len(own)]]
        apart: dict[int, Tensor] = {}
        for start in range(0, len(other), AT_ONCE):
            some = other[start : start + AT_ONCE]
            read = self._logits([[*prompt, *answers[place]] for place in some])
            apart |= {place: read[row][len(prompt) + len(answers[place]) - 1] for row, place in enumerate(some)}
        rows = [apart[place] if place in apart else found[len(own)] for place, own in enumerate(answers)]
        return torch.softmax(torch.stack(rows).float(), dim=-1).cpu()

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []  # pyright: ignore

    def _logits(self, lists: Sequence[list[int]]) -> Tensor:
        """[B, T, V], padded on the right: causal attention never looks at the padding."""
        width = max(map(len, lists))
        ids = torch.tensor([own + [0] * (width - len(own)) for own in lists], device=self.model.device)
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


class Reader:
    """One answer being written: what a voice gives to come next. Keys and values are kept as far as the tokens stay what they were."""

    def __init__(self, voice: Voice, prompt: Sequence[int]) -> None:
        if not prompt:
            raise DataError("There is nothing before the answer.", met="a prompt without tokens", mend="give every example a prompt")
        self.voice, self.prompt = voice, list(prompt)
        self.read = 0
        """Tokens that went through the model so far, in all."""
        self._ids: list[int] = []
        self._cache: Any = None

    @torch.inference_mode()
    def next(self, text: bytes) -> Tensor:
        """Probabilities [V] float32 on the CPU of the token behind the prompt and `text`."""
        ids = [*self.prompt, *self.voice.ids(text)]
        ids = ids[-self.voice.limit(len(ids)) :]  # beyond its positions it forgets the beginning
        same = next((place for place, (a, b) in enumerate(zip(ids, self._ids, strict=False)) if a != b), min(len(ids), len(self._ids)))
        same = self._kept(min(same, len(ids) - 1))
        new = torch.tensor([ids[same:]], device=self.voice.model.device)
        mask = torch.ones(1, len(ids), dtype=torch.long, device=new.device)
        answer: Any = self.voice.model(input_ids=new, attention_mask=mask, past_key_values=self._cache, use_cache=True)
        self._ids, self._cache, self.read = ids, answer.past_key_values, self.read + len(ids) - same
        return torch.softmax(answer.logits[0, -1].float(), dim=-1).cpu()

    def _kept(self, same: int) -> int:
        """Cut keys and values to the first tokens; how many are left, 0 where they cannot be cut (a sliding window that is full)."""
        if self._cache is None or same == 0:
            self._cache = None
            return 0
        if beyond := len(self._ids) - same:
            try:
                self._cache.crop(-beyond)
            except (RuntimeError, ValueError):
                self._cache = None
                return 0
        return same
