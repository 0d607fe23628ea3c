"""Tokens to text, piece by piece: no piece ends inside a character, none holds the beginning of a stop string that may yet be whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from asterism.models.spelling import vocabulary_of
from asterism.serve.jobs import Token

CONTEXT = 8
"""Tokens of the prompt that are decoded before an answer, for tokenizers whose first word loses its space."""
HALF = "�"
"""What the bytes of an unfinished character are decoded to."""


@dataclass(frozen=True)
class Written:
    """A token of an answer, and where its text begins in the answer's, in characters."""

    token: Token
    start: int


@dataclass(frozen=True)
class Piece:
    """The next part of an answer's text, and the tokens that begin in it."""

    text: str = ""
    tokens: tuple[Written, ...] = ()
    ended: bool = False
    """A stop string was met: the answer ends here, before it."""


class Decoding:
    """An incremental decoder: the texts that `feed` and `flush` return make up what the whole list decodes to."""

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self._tokenizer, self._ids = tokenizer, list(context[-CONTEXT:])
        if self._decoded(self._ids).endswith(HALF):
            self._ids = []
        self._sent = len(self._decoded(self._ids))

    def feed(self, token: int) -> str:
        """The text that a further token completes."""
        self._ids.append(token)
        now = self._decoded(self._ids)
        whole = not now.endswith(HALF)
        ready = len(now) if whole else len(now) - 1
        text = now[self._sent : ready]
        self._sent = max(self._sent, ready)
        if whole and len(self._ids) > 2 * CONTEXT:
            self._shorten()
        return text

    def flush(self) -> str:
        """What is left at the end: the replacement of a character that never became whole."""
        now = self._decoded(self._ids)
        text, self._sent = now[self._sent :], len(now)
        return text

    def _shorten(self) -> None:
        """Forget the first tokens, where what is left decodes to the end of the same text."""
        rest = self._ids[CONTEXT:]
        before, after = self._decoded(self._ids), self._decoded(rest)
        if before.endswith(after) and not self._decoded(self._ids[:CONTEXT]).endswith(HALF):
            self._ids, self._sent = rest, len(after)

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if ids else ""


@dataclass
class Text:
    """One answer's text as it grows. `ends` give no text, whether the tokenizer calls them special or not."""

    decoding: Decoding
    stops: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    _held: str = ""
    _told: int = 0
    _waiting: list[Written] = field(default_factory=list)

    def feed(self, token: Token) -> Piece:
        """What can be told once this token is known."""
        if token.id in self.ends:
            return Piece()
        self._waiting.append(Written(token, self._told + len(self._held)))
        self._held += self.decoding.feed(token.id)
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if found:
            return self._given(min(found), ended=True)
        return self._given(len(self._held) - self._beginning())

    def flush(self) -> Piece:
        """The rest, once no token follows."""
        self._held += self.decoding.flush()
        found = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        return self._given(min(found), ended=True) if found else self._given(len(self._held), last=True)

    def _given(self, length: int, *, ended: bool = False, last: bool = False) -> Piece:
        text, self._held = self._held[:length], "" if ended else self._held[length:]
        self._told += length
        ready = [one for one in self._waiting if last or one.start < self._told]
        self._waiting = [] if ended else self._waiting[len(ready) :]
        return Piece(text, tuple(ready), ended)

    def _beginning(self) -> int:
        """Characters at the end that may begin a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self.stops):
                return size
        return 0


class Names:
    """Tokens as `logprobs` tell them: a text, or `bytes:\\x..` where the bytes are no text by themselves."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _bytes(self) -> Sequence[bytes | None]:
        return vocabulary_of(self._tokenizer).texts

    def bytes(self, id: int) -> bytes:
        """The bytes that a token stands for; a special token's own name."""
        known = self._bytes[id] if id < len(self._bytes) else None
        return str(self._tokenizer.convert_ids_to_tokens(id) or f"<{id}>").encode("utf-8", "replace") if known is None else known

    def name(self, id: int) -> str:
        """A token's text."""
        own = self.bytes(id)
        try:
            return own.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in own)
