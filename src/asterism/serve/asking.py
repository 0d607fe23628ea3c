"""One way to ask, for every endpoint, the playground and the terminal: a question, its composition, and the answer's text as it grows.

async with aclosing(await asking.begin(question)) as answer:
    print(answer.told)                       # the mixture
    async for part in answer:
        print(part.index, part.text)
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from asterism.core.errors import DataError
from asterism.models.batching import tokenise
from asterism.serve.chat import rendered, template_of
from asterism.serve.choosing import Recall, Way, told, way
from asterism.serve.engine import Engine
from asterism.serve.errors import Away, Refused, internal
from asterism.serve.jobs import Choice, Event, Failed, Finished, Job, Renewed, Sampling, Tokens
from asterism.serve.limits import Gate
from asterism.serve.merging import merged
from asterism.serve.metrics import Meter
from asterism.serve.schema import LONGEST_SEED, Extras
from asterism.serve.served import Served
from asterism.serve.settings import ServeSettings
from asterism.serve.text import Decoding, Names, Piece, Text, Written

ALL = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt, and how it is to be answered."""

    tokens: tuple[int, ...]
    """The prompt as the model reads it; see `Asking.tokens` and `Asking.chat_tokens`."""
    model: str
    """NAME, NAME-base, NAME:specialist or NAME@label."""
    extras: Extras = field(default_factory=Extras)
    max_tokens: int | None = None
    """None: all the room there is, `usual` at most."""
    usual: int | None = None
    """Longest answer where max_tokens is None; None: all the room."""
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """None: one is drawn."""
    stops: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Part:
    """The next part of answer `index` of a prompt."""

    index: int
    text: str = ""
    tokens: tuple[Written, ...] = ()
    """The tokens that begin in this text, where log-probabilities were asked for."""
    renewed: dict[str, Any] | None = None
    """From here on the answer runs under this mixture."""
    finish: Literal["stop", "length"] | None = None
    """Why the answer ends here."""
    written: int = 0
    """Tokens of this answer so far."""
    cached: int = 0
    """Tokens of the prompt whose states were known; told with `finish`."""


@dataclass
class Whole:
    """A whole answer."""

    text: str = ""
    tokens: list[Written] = field(default_factory=list)
    renewed: list[dict[str, Any]] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    written: int = 0
    cached: int = 0

    def add(self, part: Part) -> None:
        """Put the next part behind."""
        self.text += part.text
        self.tokens += part.tokens
        self.finish, self.written, self.cached = part.finish, part.written, part.cached
        if part.renewed:
            self.renewed.append(part.renewed)


class Asking:
    """Asks an engine on behalf of clients."""

    def __init__(self, engine: Engine, served: Served, settings: ServeSettings, recall: Recall) -> None:
        """`recall`: the saved composition of a label. Raises UnknownName or SettingsError for a chat template that cannot be used."""
        self.engine, self.served, self.settings, self.recall = engine, served, settings, recall
        self.gate, self.meter, self.names = Gate(settings.most_jobs), Meter(served.name, engine.stats), Names(served.tokenizer)
        self.template = template_of(settings.chat_template, served.tokenizer)
        self.away: Away | None = None
        """Why nothing is answered now, while the engine starts or the server stops."""
        self._thread = ThreadPoolExecutor(1, "asterism-tokens")  # the one user of the tokenizer's truncation, which it keeps in itself

    def open(self) -> None:
        """Away while nothing is answered."""
        if self.away is not None:
            raise self.away

    def alive(self) -> None:
        """Away once the engine itself has failed."""
        if not self.meter.stats().alive:
            raise Away("The engine has stopped working.", "an error of its own", after=60)

    async def tokens(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """A prompt's tokens; tokens are checked and taken as they are. DataError for a text that has none, or no such token."""
        if isinstance(prompt, str):
            return await self._apart(lambda: tuple(tokenise(self.served.tokenizer, [prompt], ALL)[0]))
        wrong = next((token for token in prompt if not 0 <= token < self.engine.facts.vocabulary), None)
        if wrong is not None or not prompt:
            mend = f"tokens are 0 to {self.engine.facts.vocabulary - 1}, at least one"
            raise DataError("A prompt's tokens cannot be read.", met="none" if wrong is None else wrong, mend=mend)
        return tuple(prompt)

    async def chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """A conversation's tokens, up to where the assistant answers; messages are `{"role", "content"}`."""

        def read() -> tuple[int, ...]:
            text = rendered(self.served.tokenizer, self.template, messages)
            if self.template is None or not text:
                return tuple(tokenise(self.served.tokenizer, [text], ALL)[0])
            text.encode()
            return tuple(self.served.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

        try:
            found = await self._apart(read)
        except UnicodeEncodeError:
            mend = "remove its lone surrogate (\\ud800-\\udfff)"
            raise DataError("A message is not valid Unicode.", met="a lone surrogate", mend=mend) from None
        if not found:
            raise DataError("The conversation has no tokens.", met="empty messages", mend="give it some words")
        return found

    def close(self) -> None:
        """Give the thread back."""
        self._thread.shutdown(wait=False)

    def text(self, prompt: str | Sequence[int]) -> str:
        """A prompt's text: itself, or what its tokens stand for."""
        return prompt if isinstance(prompt, str) else str(self.served.tokenizer.decode(list(prompt), skip_special_tokens=True))

    async def begin(self, question: Question) -> Answer:
        """Choose what the question is answered under, and begin. The caller closes the answer (`aclose`), however far it was read.

        Raises what `way` raises, DataError for a prompt that leaves no room, Busy and Away, and whatever the engine does.
        """
        self.open()
        begun, facts = time.perf_counter(), self.engine.facts
        asked = way(question.model, question.extras, self.served, facts.specialists, self.recall, renews=facts.renews)
        longest = self._longest(question)
        self.gate.enter(question.n)
        try:
            choice = await self.engine.choose(question.tokens, asked.wish) if asked.wish else None
            return Answer(self, question, asked.chosen(choice) if choice else asked, choice, longest, begun)
        except BaseException:
            self.gate.leave(question.n, time.perf_counter() - begun)
            raise

    def _longest(self, question: Question) -> int:
        """Tokens that an answer may have; DataError where prompt and answer do not fit."""
        room, prompt = self.engine.facts.room, len(question.tokens)
        left = ALL if room is None else room - prompt
        wanted = question.max_tokens or min(left, question.usual or ALL)
        if not 1 <= wanted <= left:
            met = f"{prompt} tokens" + (f" + {question.max_tokens} new ones" if question.max_tokens else "")
            mend = f"shorten the prompt or ask for fewer new tokens: the model has {room} positions"
            error = DataError("A prompt leaves no room for its answer.", met=met, mend=mend)
            raise Refused.of(error, 400, code="context_length_exceeded")
        if wanted == ALL:
            raise Refused(400, "The model has no limit of its own.", met="no max_tokens", mend="give one", param="max_tokens")
        return wanted

    async def _apart(self, work: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class Answer:
    """The n answers to one question, as they are written. Iterate once; then, or before, `aclose`."""

    def __init__(self, asking: Asking, question: Question, asked: Way, choice: Choice | None, longest: int, begun: float) -> None:
        self.question, self.way = question, asked
        self.seed = secrets.randbelow(LONGEST_SEED) if question.seed is None else question.seed
        self.told: dict[str, Any] = {**told(asked, asked.composition, choice), "seed": self.seed}
        """What the answer tells of its mixture, under `asterism`."""
        self._asking, self._longest, self._begun, self._open = asking, longest, begun, True
        self._parts = merged([self._follow(index) for index in range(question.n)])
        self._ahead: list[Part] = []

    async def ready(self) -> Answer:
        """Wait for the first part, so that what goes wrong before it is raised here."""
        if not self._ahead:
            async for _, part in self._parts:
                self._ahead.append(part)
                break
        return self

    def __aiter__(self) -> AsyncGenerator[Part, None]:
        return self.parts()

    async def whole(self) -> list[Whole]:
        """All answers to their ends, in order."""
        found = [Whole() for _ in range(self.question.n)]
        async for part in self:
            found[part.index].add(part)
        return found

    async def aclose(self) -> None:
        """Free the rows of whatever is still being written, at once."""
        if self._open:
            self._open = False
            try:
                await self._parts.aclose()
            finally:
                self._asking.gate.leave(self.question.n, time.perf_counter() - self._begun)

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The parts of all n answers, as they come."""
        while self._ahead:
            yield self._ahead.pop(0)
        async for _, part in self._parts:
            yield part

    async def _follow(self, index: int) -> AsyncGenerator[Part, None]:
        """One answer: its events, told as text."""
        engine, meter, job = self._asking.engine, self._asking.meter, self._job(index)
        served = self._asking.served
        text = Text(Decoding(served.tokenizer, job.tokens), self.question.stops, served.ends)
        events, written, reason = engine.submit(job), 0, "abort"
        part = partial(Part, index)
        try:
            async for event in events:
                piece, done = self._told(event, text)
                if isinstance(event, Tokens):
                    if not written:
                        meter.first(time.perf_counter() - self._begun)
                    written += done
                if isinstance(event, Renewed):
                    now = told(self.way, event.composition) | {"losses": event.composition.mixture.evidence}
                    yield part(renewed={"index": index, "after": written, **now}, written=written)
                elif piece.ended or isinstance(event, Finished):
                    at_length = isinstance(event, Finished) and event.reason == "length" and not piece.ended
                    reason = "length" if at_length else "stop"
                    cached = event.cached_tokens if isinstance(event, Finished) else 0
                    yield part(piece.text, self._asked_for(piece), finish=reason, written=written, cached=cached)
                    return
                elif piece.text or piece.tokens:
                    yield part(piece.text, self._asked_for(piece), written=written)
            raise internal()
        except Exception:
            reason = "error"
            raise
        finally:
            engine.cancel(job.id)
            await _closed(events)
            if reason != "error":
                meter.ended(reason, time.perf_counter() - self._begun)

    def _told(self, event: Event, text: Text) -> tuple[Piece, int]:
        """An event's text, and how many tokens it took; raises what the event says went wrong."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Finished):
            if event.reason == "cancelled":
                raise Away("The answer was broken off.", "the server is stopping")
            return text.flush(), 0
        if not isinstance(event, Tokens):
            return Piece(), 0
        pieces: list[Piece] = []
        for token in event.tokens:
            pieces.append(text.feed(token))
            if pieces[-1].ended:
                break
        tokens = tuple(one for piece in pieces for one in piece.tokens)
        return Piece("".join(piece.text for piece in pieces), tokens, pieces[-1].ended if pieces else False), len(pieces)

    def _asked_for(self, piece: Piece) -> tuple[Written, ...]:
        return piece.tokens if self.question.logprobs is not None else ()

    def _job(self, index: int) -> Job:
        asked, own = self.question, self._asking
        sampling = Sampling(self._longest, asked.temperature, asked.top_p, self.seed + index, asked.logprobs, own.served.ends)
        wish = {"wish": self.way.wish} if self.way.wish else {}
        return Job(secrets.token_hex(8), asked.tokens, sampling, self.way.composition, renew=self.way.renew, **wish)


async def _closed(events: Any) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
