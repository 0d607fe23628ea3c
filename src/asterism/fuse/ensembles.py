"""Ensembles of models with different vocabularies, which average probabilities at every step and keep all models in memory.

GAC (Yu et al. 2024, arXiv:2406.12585) averages over the union of the vocabularies; UniTE (Yao et al. 2025, arXiv:2410.03777) over the union
of each model's k likeliest tokens. Both work on text: what is one token to one model another reads as its own tokens of the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.fuse.voices import Reader, Voice

Kind = Literal["gac", "unite"]
KINDS: dict[Kind, str] = {
    "gac": "GAC: probabilities averaged over the union of the vocabularies",
    "unite": "UniTE: probabilities averaged over the union of each model's likeliest tokens",
}
TOP_K = 10
"""Of UniTE, as its paper has it."""
Piece = bytes | None
"""A piece of text that may come next; None ends the answer."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """What may come next."""

    pieces: Sequence[Piece]
    places: Mapping[Piece, int]
    """Piece -> where it stands."""
    probabilities: Tensor
    """[n], summing to 1."""

    def of(self, piece: Piece) -> float:
        """The probability of one piece; 0 where it is none of these."""
        return float(self.probabilities[self.places[piece]]) if piece in self.places else 0.0


class Ensemble:
    """Several voices that write one answer. The first is the target, whose tokens are those that losses are measured on.

    `weights`: each voice's share in the average, equal by default. One answer is written at a time: the voices' tokens of one text differ
    in number, so answers cannot share a batch. Raises SettingsError for fewer than two voices or weights that do not fit them.
    """

    def __init__(self, voices: Sequence[Voice], kind: Kind = "gac", *, weights: Sequence[float] | None = None, top_k: int = TOP_K) -> None:
        if kind not in KINDS:
            raise UnknownName("kind of ensemble", kind, KINDS)
        if len(voices) < 2:
            raise SettingsError("An ensemble has several models.", met=f"{len(voices)} of them", mend="give the target and its sources")
        shares = [1.0] * len(voices) if weights is None else list(weights)
        if len(shares) != len(voices) or min(shares) < 0 or not sum(shares):
            raise SettingsError(
                "The weights do not fit the voices.", met=repr(weights), mend=f"{len(voices)} shares of at least 0, not all 0"
            )
        if top_k < 1:
            raise SettingsError("UniTE takes at least one token of each model.", met=f"top_k {top_k}", mend="its paper takes 10")
        if lacking := [voice.name for voice in voices if voice.vocabulary.end is None]:
            raise SettingsError("A tokenizer has no end token.", met=lacking[0], mend="set its eos_token")
        self.voices, self.kind, self.top_k = tuple(voices), kind, top_k
        self.weights = torch.tensor([share / sum(shares) for share in shares])
        self._union, self._token = cache(self._made_union), cache(self._found_token)

    def distribution(self, probabilities: Sequence[Tensor], *, first: bool = False, scored: Sequence[Piece] = ()) -> Distribution:
        """The voices' probabilities [V_i] of their own next tokens as one distribution over pieces of text.

        first: whether the piece begins the answer. scored: pieces that must have a probability: UniTE gives those beyond its union none,
        so they join it (which favours UniTE). What a voice gives to special tokens other than the end is left out.
        """
        if self.kind == "gac":
            pieces, places, of_voices = self._union(first)
            rows = []
            for own, place in zip(probabilities, of_voices, strict=True):
                mapped = torch.zeros(len(pieces) + 1).index_add_(0, place[: len(own)], own)[:-1]
                rows.append(mapped / mapped.sum())
            return Distribution(pieces, places, self.weights @ torch.stack(rows))
        places = {piece: place for place, piece in enumerate(dict.fromkeys([*self._likeliest(probabilities, first), *scored]))}
        tokens = [[self._token(voice, piece, first) for piece in places] for voice in range(len(self.voices))]
        rows = [
            torch.stack([own[id] if id is not None else own.new_zeros(()) for id in ids])
            for own, ids in zip(probabilities, tokens, strict=True)
        ]
        return Distribution(list(places), places, self.weights @ torch.stack([row / row.sum() for row in rows]))

    def losses(self, prompts: Sequence[Sequence[int]], answer: Sequence[int]) -> Tensor:
        """Loss in nats [T] of each of the target's tokens of an answer, each voice behind its own tokens of the prompt.

        The voices read the text before a token as their tokenizers split that text alone. DataError for a special token but the end
        within the answer.
        """
        target = self.voices[0]
        pieces = [self._piece(id, first=place == 0, last=place == len(answer) - 1) for place, id in enumerate(answer)]
        before = [b"".join(piece or b"" for piece in pieces[:place]) for place in range(len(pieces))]
        rows = [target.rows(prompts[0], [answer[:place] for place in range(len(answer))])]
        rows += [
            voice.rows(prompt, [voice.ids(text) for text in before]) for voice, prompt in zip(self.voices[1:], prompts[1:], strict=True)
        ]
        likely = [
            self.distribution([own[place] for own in rows], first=not before[place], scored=[piece]).of(piece)
            for place, piece in enumerate(pieces)
        ]
        return -torch.tensor(likely, dtype=torch.float64).log().float()

    def write(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, stop: str | None = None, temperature: float = 0.0, seed: int = 42
    ) -> str:
        """An answer behind a prompt (its tokens for each voice), at most so many pieces long, ending before `stop`.

        Greedy at temperature 0; else probabilities to the power of 1 / temperature are drawn from.
        """
        generator = torch.Generator().manual_seed(seed)
        readers = [Reader(voice, prompt) for voice, prompt in zip(self.voices, prompts, strict=True)]
        text, ending = b"", stop.encode() if stop else None
        for _ in range(max_new_tokens):
            found = self.distribution([reader.next(text) for reader in readers], first=not text)
            if temperature > 0:
                place = int(torch.multinomial(found.probabilities.double().pow(1 / temperature), 1, generator=generator))
            else:
                place = int(found.probabilities.argmax())
            piece = found.pieces[place]
            if piece is None:
                break
            text += piece
            if ending and ending in text:
                text = text[: text.index(ending)]
                break
        return text.decode(errors="replace")

    def _piece(self, token: int, *, first: bool, last: bool) -> Piece:
        """What one of the target's tokens adds to an answer."""
        target = self.voices[0]
        if last and token == target.vocabulary.end:
            return None
        texts = target.texts(first=first)
        if token >= len(texts) or texts[token] is None:
            mend = "take the special token out of the text"
            raise DataError("A response holds a special token.", met=target.tokenizer.convert_ids_to_tokens(token), mend=mend)
        return texts[token]

    def _made_union(self, first: bool) -> tuple[list[Piece], dict[Piece, int], list[Tensor]]:
        """All pieces, the end first, and of each voice the place of every token [V]; tokens without a text go behind the last."""
        tables = [voice.texts(first=first) for voice in self.voices]
        pieces = list(dict.fromkeys([None, *(text for table in tables for text in table if text)]))
        places: dict[Piece, int] = {piece: place for place, piece in enumerate(pieces)}
        of_voices = []
        for voice, table in zip(self.voices, tables, strict=True):
            rows = max(len(table), voice.model.get_output_embeddings().weight.shape[0])  # pyright: ignore
            place = torch.full((rows,), len(pieces))
            place[: len(table)] = torch.tensor([places[text] if text else len(pieces) for text in table])
            place[voice.vocabulary.end] = 0
            of_voices.append(place)
        return pieces, places, of_voices

    def _likeliest(self, probabilities: Sequence[Tensor], first: bool) -> list[Piece]:
        found: list[Piece] = []
        for voice, own in zip(self.voices, probabilities, strict=True):
            texts, end = voice.texts(first=first), voice.vocabulary.end
            for id in own.topk(min(self.top_k, len(own))).indices.tolist():
                if id == end or (id < len(texts) and texts[id]):
                    found.append(None if id == end else texts[id])
        return found

    def _found_token(self, voice: int, piece: Piece, first: bool) -> int | None:
        """The voice's token for a piece; the first of its tokens where it has several for it, None where it has none."""
        own = self.voices[voice]
        if piece is None:
            return own.vocabulary.end
        spelt = b" " + piece if first and own.leads else piece
        if spelt in own.vocabulary.ids:
            return own.vocabulary.ids[spelt]
        if own.leads and not first:  # its tokenizer would lead with a space: one that is there stands for it
            if not piece.startswith(b" "):
                return next(
                    (own.vocabulary.ids[piece[:end]] for end in range(len(piece), 0, -1) if piece[:end] in own.vocabulary.ids), None
                )
            piece = piece[1:]
        return next(iter(own.ids(piece)), None)
