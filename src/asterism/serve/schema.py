"""Requests as clients write them: OpenAI's fields, and ours under `asterism`. What would change the answer and is not done is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from asterism.serve.errors import Refused


def _whole(value: Any) -> Any:
    """JSON writes 2 and 2.0 for one number; true is none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


LONGEST_SEED = 2**63 - 1
MOST_ANSWERS = 128
TOP = 20
"""Likeliest tokens that may be told beside one."""

Float = Annotated[float, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Size = Annotated[int, Field(strict=True, ge=1), BeforeValidator(_whole)]
Count = Annotated[int, Field(strict=True, ge=0), BeforeValidator(_whole)]
Answers = Annotated[int, Field(strict=True, ge=1, le=MOST_ANSWERS), BeforeValidator(_whole)]
Seed = Annotated[int, Field(strict=True, ge=0, le=LONGEST_SEED), BeforeValidator(_whole)]
Tops = Annotated[int, Field(strict=True, ge=0, le=TOP), BeforeValidator(_whole)]
Share = Annotated[Float, Field(ge=0, le=1)]
Name = Annotated[Text, Field(min_length=1, max_length=100)]
Mode = Literal["evidence", "fast", "nodes"]


class Body(BaseModel):
    """Base of what is asked: unknown fields are refused, numbers are taken as they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class Extras(Body):
    """What else may be asked of a composed answer (`extra_body={"asterism": {...}}` in OpenAI's client)."""

    top_k: Size | None = None
    """Specialists kept; 3 by default, or as many as there are."""
    mode: Mode | None = None
    """What weighs the specialists: how well each predicts the prompt (default), the fingerprint alone, or activations node by node."""
    layers: Size | Annotated[list[Count], Field(min_length=1)] | Literal["all"] | None = None
    """Blocks that are composed: the last so many, a list counted from 0, or all (default)."""
    node_map: Literal["hidden", "tiled", "mean", "per_module"] | None = None
    """How weights of hidden nodes reach other outputs; `tiled` by default."""
    mixture: Annotated[dict[Name, Share], Field(min_length=1)] | None = None
    """A fixed mixture, e.g. {"medical": 0.7, "legal": 0.3}; what is left of 1 is the generalist's."""
    exclude: list[Name] | None = None
    """Specialists that are left out, as though the library lacked them."""
    renew: Count | None = None
    """New tokens after which the mixture is made again; 0: never; 64 by default."""


class StreamOptions(Body):
    """What a stream tells beside the answer."""

    include_usage: Flag | None = None
    """One more chunk at the end, with the number of tokens."""
    include_obfuscation: Flag | None = None
    """Of OpenAI's own servers; nothing is added here either way."""


Stop = Annotated[Text, Field(min_length=1, max_length=1000)]


class Asked(Body):
    """The fields that both endpoints share."""

    model: Text
    """NAME (composed for the prompt), NAME-base, NAME:specialist or NAME@saved; see `/v1/models`."""
    n: Answers | None = None
    """Answers to each prompt; 1 by default."""
    temperature: Annotated[Float, Field(ge=0, le=2)] | None = None
    """1 by default; 0 takes the likeliest token every time."""
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = None
    """Draw from the likeliest tokens that together have this probability; 1 by default."""
    seed: Seed | None = None
    """Of the draws; answer i of a prompt draws with seed + i. Told under `asterism` where none is given."""
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    """Texts before which an answer ends."""
    max_tokens: Size | None = None
    """Longest answer, in tokens."""
    stream: Flag | None = None
    """Tell the answer as server-sent events, while it is written."""
    stream_options: StreamOptions | None = None
    asterism: Extras | None = None
    """What is asked of the composition."""
    frequency_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    """0 alone."""
    presence_penalty: Annotated[Float, Field(ge=-2, le=2)] | None = None
    """0 alone."""
    logit_bias: dict[str, Float] | None = None
    """Empty alone."""
    user: Text | None = None
    """Heeded by nothing here, and changes no answer."""
    metadata: dict[str, Text] | None = None
    """As `user`."""
    service_tier: Text | None = None
    """As `user`."""

    @model_validator(mode="after")
    def _streams_have_options(self) -> Asked:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def neutral(self) -> dict[str, tuple[Any, ...]]:
        """Fields of OpenAI's that are not done here -> values that ask for nothing; anything else is refused."""
        return {"frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {})}

    def check(self) -> None:
        """Refused, with the field, for what OpenAI's servers do and this one does not."""
        for name, values in self.neutral().items():
            met = getattr(self, name)
            if met not in values:
                mend = "leave it out" if values[-1] is None else f"leave it out, or {values[-1]!r}"
                raise Refused(400, f"{name} is not supported.", met=repr(met)[:80], mend=mend, code="unsupported", param=name)


class CompletionRequest(Asked):
    """`POST /v1/completions`."""

    prompt: (
        Annotated[Text, Field(min_length=1)]
        | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1)]
        | Annotated[list[Count], Field(min_length=1)]
        | Annotated[list[Annotated[list[Count], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text, several, the tokens of one, or of several; each prompt gets its own mixture."""
    logprobs: Tops | None = None
    """So many of the likeliest tokens beside each token written, and its own log-probability."""
    echo: Flag | None = None
    """Tell the prompt before the answer; not with logprobs, which would be the prompt's as well."""
    best_of: Answers | None = None
    """As `n`, alone."""
    suffix: Text | None = None
    """Empty alone."""

    def neutral(self) -> dict[str, tuple[Any, ...]]:
        """As the shared ones; all n answers are told, so best_of is n."""
        return super().neutral() | {"best_of": (None, self.n or 1), "suffix": (None, "")}

    def check(self) -> None:
        """As the shared ones; the log-probabilities of a prompt are not told."""
        super().check()
        if self.echo and self.logprobs is not None:
            mend = "leave one out"
            raise Refused(400, "echo with logprobs is not supported.", met="both", mend=mend, code="unsupported", param="echo")

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        given: Any = self.prompt
        alone = isinstance(given, str) or isinstance(given[0], int)
        return [given] if alone else list(given)


class TextPart(Body):
    """A part of a message: text alone."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1)]
    """A text, or parts of one."""
    name: Text | None = None
    """Given to the chat template."""
    refusal: None = None
    """As OpenAI's client sends an earlier answer back; nothing alone, like those below."""
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def plain(self) -> dict[str, str]:
        """As chat templates read it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text} | ({"name": self.name} if self.name else {})


class ChatRequest(Asked):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    """The conversation so far."""
    max_completion_tokens: Size | None = None
    """Longest answer, in tokens; all the room there is by default. `max_tokens` is its older name."""
    logprobs: Flag | None = None
    """Tell the log-probability of every token written."""
    top_logprobs: Tops | None = None
    """And of so many of the likeliest."""
    tools: list[Any] | None = None
    """Empty alone; so are the fields below."""
    tool_choice: Any = None
    parallel_tool_calls: Flag | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: Any = None
    modalities: list[Any] | None = None
    reasoning_effort: Any = None
    verbosity: Any = None
    prediction: Any = None
    audio: Any = None
    web_search_options: Any = None
    store: Flag | None = None
    """As `user`; so are the fields below."""
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs: true")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens are one thing by two names, and differ")
        return self

    def neutral(self) -> dict[str, tuple[Any, ...]]:
        """As the shared ones, and those of chats alone."""
        none = ("function_call", "reasoning_effort", "verbosity", "prediction", "audio", "web_search_options")
        own: dict[str, tuple[Any, ...]] = dict.fromkeys(none, (None,))
        own |= {"tools": (None, []), "functions": (None, []), "tool_choice": (None, "auto", "none")}
        return super().neutral() | own | {"response_format": (None, {"type": "text"}), "modalities": (None, ["text"])}

    @property
    def longest(self) -> int | None:
        """The longest answer asked for."""
        return self.max_completion_tokens or self.max_tokens
