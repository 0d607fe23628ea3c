"""`/v1/completions` and `/v1/chat/completions`, health, readiness and metrics."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from asterism.serve.asking import Asking, Question
from asterism.serve.errors import Refused
from asterism.serve.metrics import CONTENT_TYPE
from asterism.serve.replies import ERRORS, ChatReply, CompletionReply, Health
from asterism.serve.schema import Asked, ChatRequest, CompletionRequest, Extras
from asterism.serve.shapes import Chats, Completions
from asterism.serve.streaming import JSON, answered

USUAL = 16
"""Tokens of a completion where max_tokens is not given, as OpenAI has it."""
STREAM: dict[str, Any] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


def routes(asking: Asking) -> APIRouter:
    """The routes, over what answers them."""
    router = APIRouter(responses=ERRORS)

    @router.post("/v1/completions", response_model=CompletionReply, responses={200: STREAM})
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several prompts, each under its own mixture."""
        asking.open()
        body.check()
        prompts, n, most = body.prompts, body.n or 1, asking.settings.most_answers
        if len(prompts) * n > most:
            met = f"{len(prompts)} prompts x {n}"
            raise Refused(400, "A request asks for too many answers.", met=met, mend=f"at most {most} in one request", param="n")
        read = await asyncio.gather(*(asking.tokens(prompt) for prompt in prompts))
        questions = [_question(body, tokens, max_tokens=body.max_tokens, usual=USUAL, logprobs=body.logprobs) for tokens in read]
        echoed = [asking.text(prompt) for prompt in prompts] if body.echo else []
        shape = Completions(body.model, asking.names, echoed)
        return await answered(request, asking, questions, shape, stream=bool(body.stream), with_usage=body.with_usage)

    @router.post("/v1/chat/completions", response_model=ChatReply, responses={200: STREAM})
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation under the mixture that its prompt asks for."""
        asking.open()
        body.check()
        tokens = await asking.chat_tokens([message.plain for message in body.messages])
        question = _question(body, tokens, max_tokens=body.longest, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
        shape = Chats(body.model, asking.names, streams=bool(body.stream))
        return await answered(request, asking, [question], shape, stream=bool(body.stream), with_usage=body.with_usage)

    @router.get("/health", response_model=Health)
    async def health() -> Response:
        """Whether this process is up, and its engine has not died."""
        asking.alive()
        return JSON({"status": "up", "running": asking.gate.inside})

    @router.get("/ready", response_model=Health)
    async def ready() -> Response:
        """Whether questions are answered: not while the engine starts, nor once the server is told to stop."""
        asking.open()
        asking.alive()
        return JSON({"status": "ready", "running": asking.gate.inside})

    @router.get("/metrics", response_class=Response, responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(asking.meter.page(), media_type=CONTENT_TYPE)

    return router


def _question(body: Asked, tokens: tuple[int, ...], **own: Any) -> Question:
    given = {name: value for name in ("n", "temperature", "top_p") if (value := getattr(body, name)) is not None}
    return Question(tokens=tokens, model=body.model, extras=body.asterism or Extras(), seed=body.seed, stops=body.stops, **given, **own)
