"""Answers over HTTP: whole as JSON, or as server-sent events while they are written. A client who goes away frees the rows."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from asterism.core.errors import AsterismError
from asterism.serve.asking import Answer, Asking, Question, Whole
from asterism.serve.errors import body_of, internal, status_of
from asterism.serve.merging import all_of, merged, while_connected
from asterism.serve.shapes import Chats, Completions, mixtures_of, usage_of

log = logging.getLogger("asterism.serve")
DONE = b"data: [DONE]\n\n"


async def answered(
    request: Request, asking: Asking, questions: Sequence[Question], shape: Completions | Chats, *, stream: bool, with_usage: bool
) -> Response:
    """The answer to a request of one or several prompts, in its endpoint's shape.

    What goes wrong before the first token is raised, so that it gets a status of its own; later it is told in the stream.
    """
    answers = await while_connected(request.receive, _begun(asking, questions))
    if answers is None:
        return Response(status_code=499)
    if stream:
        return Events(answers, _events(asking, answers, shape, with_usage=with_usage))
    try:
        found = await while_connected(request.receive, all_of([answer.whole() for answer in answers]))
    finally:
        await _close(answers)
    if found is None:
        return Response(status_code=499)
    choices = [
        shape.whole(answer, place, index, whole)
        for place, (answer, own) in enumerate(zip(answers, found, strict=True))
        for index, whole in enumerate(own)
    ]
    return JSON(shape.body(choices, usage=usage_of(answers, found), asterism=mixtures_of(answers, found)))


class JSON(Response):
    """JSON in ASCII, so that no text can break it, and without NaN."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return dumped(content)


class Events(StreamingResponse):
    """Server-sent events of answers, whose rows are freed however the response ends, even before it began."""

    def __init__(self, answers: Sequence[Answer], events: AsyncGenerator[bytes, None]) -> None:
        self._answers, self._events = answers, events
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until nobody listens."""
        try:
            await while_connected(receive, self.stream_response(send))
        finally:
            await self._events.aclose()
            await _close(self._answers)


def dumped(value: Any) -> bytes:
    """JSON, small and in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


async def _begun(asking: Asking, questions: Sequence[Question]) -> list[Answer]:
    """All answers, each with its first part there; none, with every place given back, where one cannot begin."""
    begun: list[Answer] = []

    async def one(question: Question) -> Answer:
        begun.append(answer := await asking.begin(question))
        return await answer.ready()

    try:
        return await all_of([one(question) for question in questions])
    except BaseException:
        await _close(begun)
        raise


async def _close(answers: Sequence[Answer]) -> None:
    for answer in answers:
        await answer.aclose()


async def _events(
    asking: Asking, answers: Sequence[Answer], shape: Completions | Chats, *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The chunks: who answers and under which mixture, the parts, then the usage if asked for, and the end."""
    found = [[Whole() for _ in range(answer.question.n)] for answer in answers]
    more: dict[str, Any] = {"usage": None} if with_usage else {}
    opening = [choice for place, answer in enumerate(answers) for choice in shape.opening(answer, place)]
    yield _event(shape.body(opening, asterism=mixtures_of(answers), **more))
    try:
        async with aclosing(merged([answer.parts() for answer in answers])) as parts:
            async for place, part in parts:
                found[place][part.index].add(part)
                told = {"asterism": {"renewed": part.renewed}} if part.renewed else {}
                yield _event(shape.body([shape.chunk(answers[place], place, part)], **told, **more))
        if with_usage:
            yield _event(shape.body([], usage=usage_of(answers, found), asterism=mixtures_of(answers, found)))
    except Exception as error:
        yield _event(_failure(asking, error))
    yield DONE


def _failure(asking: Asking, error: Exception) -> dict[str, Any]:
    """What is told of an error in the middle of a stream."""
    if not isinstance(error, AsterismError):
        log.exception("An error in the middle of an answer.", exc_info=error)
        error = internal()
    status = max(500, status_of(error))
    asking.meter.error(status)
    return body_of(error, status)


def _event(value: Any) -> bytes:
    return b"data: " + dumped(value) + b"\n\n"
