"""Answers in the shapes that OpenAI's clients read, whole and in chunks; what was composed stands beside, under `asterism`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asterism.serve.asking import Answer, Part, Whole
from asterism.serve.text import Names, Written

LEAST = -9999.0
"""What is told for the logarithm of a probability of 0, which JSON cannot hold."""


@dataclass
class Shape:
    """What both endpoints' answers have in common."""

    model: str
    names: Names
    kind: str = ""
    prefix: str = ""
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The object around choices."""
        return {"id": self.id, "object": self.kind, "created": self.created, "model": self.model, "choices": choices, **more}


class Completions(Shape):
    """`text_completion`, which is a chunk's name too."""

    def __init__(self, model: str, names: Names, echoed: Sequence[str] = ()) -> None:
        """`echoed`: each prompt's text, where it is to be told before its answers."""
        super().__init__(model, names, "text_completion", "cmpl")
        self._echoed = echoed

    def opening(self, answer: Answer, place: int) -> list[dict[str, Any]]:
        """The first chunk's choices of a prompt: empty, or its echo."""
        return [self._choice(place * answer.question.n + i, self._echo(place), None, None) for i in range(answer.question.n)]

    def chunk(self, answer: Answer, place: int, part: Part) -> dict[str, Any]:
        """A part as a choice."""
        return self._choice(place * answer.question.n + part.index, part.text, part.finish, self._logprobs(answer, part.tokens))

    def whole(self, answer: Answer, place: int, index: int, found: Whole) -> dict[str, Any]:
        """A whole answer as a choice."""
        told = self._logprobs(answer, found.tokens, always=True)
        return self._choice(place * answer.question.n + index, self._echo(place) + found.text, found.finish, told)

    def _choice(self, index: int, text: str, finish: str | None, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _echo(self, place: int) -> str:
        return self._echoed[place] if self._echoed else ""

    def _logprobs(self, answer: Answer, tokens: Sequence[Written], *, always: bool = False) -> dict[str, Any] | None:
        if answer.question.logprobs is None or not (tokens or always):
            return None
        name = self.names.name
        tops = [{name(id): _number(value) for id, value in one.token.top} for one in tokens]
        return {
            "tokens": [name(one.token.id) for one in tokens],
            "token_logprobs": [_number(one.token.logprob) for one in tokens],
            "top_logprobs": tops if answer.question.logprobs else None,
            "text_offset": [one.start for one in tokens],
        }


class Chats(Shape):
    """`chat.completion` and its chunks."""

    def __init__(self, model: str, names: Names, *, streams: bool) -> None:
        super().__init__(model, names, "chat.completion.chunk" if streams else "chat.completion", "chatcmpl")

    def opening(self, answer: Answer, place: int) -> list[dict[str, Any]]:
        """The first chunk's choices: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(answer.question.n)]

    def chunk(self, answer: Answer, place: int, part: Part) -> dict[str, Any]:
        """A part as a choice."""
        logprobs = self._logprobs(answer, part.tokens) if part.tokens else None
        delta = {"content": part.text} if part.text or not part.finish else {}
        return {"index": part.index, "delta": delta, "logprobs": logprobs, "finish_reason": part.finish}

    def whole(self, answer: Answer, place: int, index: int, found: Whole) -> dict[str, Any]:
        """A whole answer as a choice."""
        message = {"role": "assistant", "content": found.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(answer, found.tokens), "finish_reason": found.finish}

    def _logprobs(self, answer: Answer, tokens: Sequence[Written]) -> dict[str, Any] | None:
        if answer.question.logprobs is None:
            return None
        content = [self._token(one.token.id, one.token.logprob) for one in tokens]
        for told, one in zip(content, tokens, strict=True):
            told["top_logprobs"] = [self._token(id, value) for id, value in one.token.top]
        return {"content": content, "refusal": None}

    def _token(self, id: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self.names.name(id), "bytes": list(self.names.bytes(id)), "logprob": _number(logprob)}


def usage_of(answers: Sequence[Answer], found: Sequence[Sequence[Whole]]) -> dict[str, Any]:
    """Tokens of all prompts (each once) and of all answers."""
    prompt = sum(len(answer.question.tokens) for answer in answers)
    written = sum(one.written for own in found for one in own)
    cached = sum(max(one.cached for one in own) for own in found)
    told = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    return {**told, "prompt_tokens_details": {"cached_tokens": cached}}


def mixtures_of(answers: Sequence[Answer], found: Sequence[Sequence[Whole]] = ()) -> dict[str, Any]:
    """What is told under `asterism`: of one prompt its mixture, of several each one's under `prompts`."""
    told = [dict(answer.told) for answer in answers]
    for one, own in zip(told, found, strict=False):
        one["renewed"] = [renewed for whole in own for renewed in whole.renewed]
    return told[0] if len(told) == 1 else {"prompts": told}


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)
