"""The shapes of answers, for the OpenAPI document; tests hold what is sent to them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """Base of what is answered: nothing is told that does not stand here."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Parts(Reply):
    """An error of ours."""

    wrong: str
    met: str
    mend: str
    """How to put it right."""


class Fault(Reply):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    """The field at fault."""
    code: str | None
    asterism: Parts


class ErrorReply(Reply):
    """The body of every status from 400."""

    error: Fault


STATUSES = {
    400: "The request cannot be used.",
    401: "A key is needed.",
    403: "Not allowed.",
    404: "No such name.",
    405: "No such method.",
    409: "In the way, or changed since.",
    413: "Too long.",
    415: "Not JSON.",
    429: "Busy: see Retry-After.",
    500: "A fault of the server.",
    503: "Starting or stopping.",
}
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply, "description": told} for status, told in STATUSES.items()}


class Usage(Reply):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[Literal["cached_tokens"], int]


class TextLogprobs(Reply):
    """Log-probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None]] | None
    text_offset: list[int]


class TextChoice(Reply):
    """One answer."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionReply(Reply):
    """`POST /v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    asterism: dict[str, Any]
    """The mixture: specialists, shares, generalist, entropy in bits, mode, seed and more; of several prompts under `prompts`."""


class TopLogprob(Reply):
    """A token that might have stood there."""

    token: str
    bytes: list[int]
    logprob: float | None


class TokenLogprob(TopLogprob):
    """A token written."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """Log-probabilities of a message's tokens."""

    content: list[TokenLogprob]
    refusal: None


class MessageReply(Reply):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Reply):
    """One answer."""

    index: int
    message: MessageReply
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatReply(Reply):
    """`POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    asterism: dict[str, Any]
    """As in completions."""


class Model(Reply):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None
    """Positions for prompt and answer together."""


class Models(Reply):
    """`GET /v1/models`."""

    object: Literal["list"]
    data: list[Model]


class SpecialistOne(Reply):
    """A specialist."""

    name: str
    object: Literal["asterism.specialist"]
    model: str
    """Its model's name."""
    parent: str


class SpecialistList(Reply):
    """All of them."""

    object: Literal["list"]
    data: list[SpecialistOne]


class SavedOne(Reply):
    """A saved composition."""

    label: str
    object: Literal["asterism.composition"]
    model: str
    """Its model's name."""
    shares: dict[str, float] | None
    generalist: float | None
    scale: float | None
    settings: dict[str, Any] | None
    origin: dict[str, Any] | None
    """The text or the mixture that it was made of."""
    usable: bool
    """Whether the library still has the models it was made of."""
    why: str | None


class SavedList(Reply):
    """All of them."""

    object: Literal["list"]
    data: list[SavedOne]


class Removed(Reply):
    """Something is gone."""

    name: str
    object: str
    deleted: Literal[True]


class Health(Reply):
    """`GET /health` and `GET /ready`."""

    status: str
    running: int | None = Field(default=None)
    """Answers under way."""
