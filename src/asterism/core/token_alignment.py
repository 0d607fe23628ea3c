"""Two vocabularies side by side: what their tokens stand for, which tokens of two tokenisations of one text belong together, and which
token of one vocabulary is nearest to a token of the other.

The alignment by edit distance is FuseLLM's (Wan et al. 2024, arXiv:2401.10491, "MinED"); tokens are compared by the bytes that they stand
for, so a byte-level and a SentencePiece vocabulary meet as one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from asterism.core.errors import MismatchError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"
_BYTE_LEVEL_SPACE = "Ġ"

Pair = tuple[int, int]
"""Place in one tokenisation, place in the other."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What each token stands for."""

    texts: tuple[bytes | None, ...]
    """Token id -> its bytes; None for a special token and for an id without a token."""
    end: int | None = None
    """The token that ends a text."""

    @classmethod
    def of(
        cls, tokens: Mapping[str, int], *, end: int | None = None, special: Collection[int] = (), literal: Collection[int] = ()
    ) -> Vocabulary:
        """From a tokenizer's table. `special`: ids that stand for no text. `literal`: added tokens, which are written as they are.

        A table in which a token holds "Ġ" is byte-level (GPT-2's alphabet), one with "▁" is SentencePiece's (▁ a space, <0x0A> a byte);
        any other is taken as plain text.
        """
        plain = [token for token, id in tokens.items() if id not in literal]
        if any(_BYTE_LEVEL_SPACE in token for token in plain):
            spelt = _byte_level
        elif any(_SPACE in token for token in plain):
            spelt = _sentence_piece
        else:
            spelt = str.encode
        texts: list[bytes | None] = [None] * (1 + max(tokens.values(), default=-1))
        for token, id in tokens.items():
            if id not in special and id != end:
                texts[id] = token.encode() if id in literal else spelt(token)
        return cls(tuple(texts), end)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Bytes -> token; of tokens that stand for the same bytes the first."""
        found: dict[bytes, int] = {}
        for id, text in enumerate(self.texts):
            if text:
                found.setdefault(text, id)
        return found

    def spelt(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token; none for special ones."""
        return [(self.texts[id] if id < len(self.texts) else None) or b"" for id in ids]


def edit_distances(word: bytes, others: Sequence[bytes]) -> np.ndarray:
    """Levenshtein distances of `word` to each of the others, [n] int64: insertions, deletions and substitutions cost 1."""
    lengths = np.array([len(other) for other in others], dtype=np.int64)
    widest = int(lengths.max(initial=0))
    letters = np.full((len(others), widest), -1, dtype=np.int16)
    for row, other in enumerate(others):
        letters[row, : len(other)] = np.frombuffer(other, dtype=np.uint8)
    return _distances(word, letters)[np.arange(len(others)), lengths]


def edit_alignment(left: Sequence[bytes], right: Sequence[bytes]) -> list[Pair]:
    """Which tokens of two tokenisations belong together: a path from the first pair to the last that goes on by one token on either
    side or on both, of the least sum of edit distances; of equal paths the one that goes on on both.

    Every token is in one pair or more. O(n m). Source: Wan et al. 2024, section 3.2.
    """
    if not left or not right:
        return []
    rows, columns = ({word: place for place, word in enumerate(dict.fromkeys(side))} for side in (left, right))
    each = np.stack([edit_distances(word, list(columns)) for word in rows])
    cost = each[np.ix_([rows[word] for word in left], [columns[word] for word in right])]  # [n, m]
    total = np.full((len(left) + 1, len(right) + 1), np.inf)
    total[0, 0] = 0
    for i in range(len(left)):
        row, above, own = total[i + 1], total[i].tolist(), cost[i].tolist()
        last = np.inf
        for j, paid in enumerate(own):
            last = paid + min(above[j], above[j + 1], last)
            row[j + 1] = last
    pairs, i, j = [], len(left), len(right)
    while i and j:
        pairs.append((i - 1, j - 1))
        ways = ((total[i - 1, j - 1], i - 1, j - 1), (total[i - 1, j], i - 1, j), (total[i, j - 1], i, j - 1))
        _, i, j = min(ways, key=lambda way: way[0])
    return pairs[::-1]


def span_alignment(left: Sequence[bytes], right: Sequence[bytes]) -> list[Pair]:
    """Which tokens of two tokenisations share text, by the bytes that each covers; spaces before the text do not count.

    O(n + m). Raises MismatchError where the two do not spell the same text (a tokenizer that changes what it reads).
    """
    texts = [b"".join(side) for side in (left, right)]
    starts = [len(text) - len(text.lstrip(b" ")) for text in texts]
    if texts[0][starts[0] :] != texts[1][starts[1] :]:
        mend = "align by edit distance: one of the tokenizers changes the text that it reads"
        raise MismatchError("Two tokenisations are not of the same text.", met=f"{texts[0][:60]!r} and {texts[1][:60]!r}", mend=mend)
    edges = [np.cumsum([0, *map(len, side)]) - start for side, start in zip((left, right), starts, strict=True)]
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        ends = int(edges[0][i + 1]), int(edges[1][j + 1])
        if max(edges[0][i], edges[1][j], 0) < min(ends):
            pairs.append((i, j))
        i, j = i + (ends[0] <= ends[1]), j + (ends[1] <= ends[0])
    return pairs


def one_to_one(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose two tokens are in no other pair."""
    left, right = Counter(i for i, _ in pairs), Counter(j for _, j in pairs)
    return [(i, j) for i, j in pairs if left[i] == right[j] == 1]


class VocabularyMap:
    """A token of one vocabulary -> that of another that stands for the same bytes, else the nearest by edit distance.

    Of equally near ones the one nearest in length, then the shorter, then the first. The end goes to the end. None for other special
    tokens, and where not a byte is shared. Looked up when asked for, and kept.
    """

    def __init__(self, source: Vocabulary, target: Vocabulary) -> None:
        self.source, self.target = source, target
        self._known: dict[int, int | None] = {}

    def __call__(self, token: int) -> int | None:
        if token not in self._known:
            self._known[token] = self._found(token)
        return self._known[token]

    def _found(self, token: int) -> int | None:
        if token == self.source.end:
            return self.target.end
        text = self.source.texts[token] if token < len(self.source.texts) else None
        if not text:
            return None
        same = self.target.ids.get(text)
        return self._nearest(text) if same is None else same

    def _nearest(self, text: bytes) -> int | None:
        best, least = None, math.inf
        for length in sorted(self._by_length, key=lambda length: (abs(length - len(text)), length)):
            if abs(length - len(text)) >= least:
                break
            ids, letters = self._by_length[length]
            distances = _distances(text, letters)[:, length]
            place = int(distances.argmin())
            if distances[place] < min(least, max(length, len(text))):
                best, least = ids[place], int(distances[place])
        return best

    @cached_property
    def _by_length(self) -> dict[int, tuple[list[int], np.ndarray]]:
        """Length -> ids of the target's tokens of that length, and their bytes [n, length]."""
        groups: dict[int, list[tuple[int, bytes]]] = {}
        for text, id in self.target.ids.items():
            groups.setdefault(len(text), []).append((id, text))
        return {
            length: (
                [id for id, _ in sorted(own)],
                np.stack([np.frombuffer(text, dtype=np.uint8) for _, text in sorted(own)]).astype(np.int16),
            )
            for length, own in groups.items()
        }


def _distances(word: bytes, letters: np.ndarray) -> np.ndarray:
    """[n, L + 1]: the distance of `word` to every beginning of each row of letters [n, L]."""
    places = np.arange(letters.shape[1] + 1)
    row = np.broadcast_to(places, (len(letters), len(places))).astype(np.int64)
    for count, letter in enumerate(word, 1):
        direct = np.empty_like(row)
        direct[:, 0] = count
        direct[:, 1:] = np.minimum(row[:, 1:] + 1, row[:, :-1] + (letters != letter))
        row = np.minimum.accumulate(direct - places, axis=1) + places  # an insertion costs 1 more than the place before
    return row


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters -> bytes: printable Latin-1 stands for itself, the other bytes for letters from U+0100 on, in order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[letter] for letter in token)
    except KeyError:  # an added token that its tokenizer does not list as one
        return token.encode()


def _sentence_piece(token: str) -> bytes:
    if found := _BYTE.fullmatch(token):
        return bytes([int(found[1], 16)])
    return token.replace(_SPACE, " ").encode()
