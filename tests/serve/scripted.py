"""An engine that plays a script: tests of the API need no model. It keeps every promise of `Engine`, and breaks some on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import AsterismError, DataError, SettingsError, UnknownName
from asterism.serve.jobs import Choice, Composition, Event, Facts, Failed, Finished, Job, Renewed, Stats, Token, Tokens, Wish

BROKEN = AsterismError("A step failed.", met="RuntimeError", mend="ask again; the other answers went on")


@dataclass
class Scripted:
    """Answers every job with `answer(job)`, one token a step, as `serve.engine.Engine`."""

    answer: Callable[[Job], Sequence[int]]
    """The tokens of a job's answer, its end included where there is one; cut at the job's max_tokens."""
    names: Sequence[str] = ("medical", "legal", "code", "science")
    nodes: int = 16
    room: int | None = 128
    vocabulary: int = 320
    pause: float = 0.0
    """Seconds a step takes."""
    endless: bool = False
    """Begin the script again at its end, until max_tokens."""
    breaks: Callable[[Job, int], bool] = lambda job, step: False
    """Whether a job fails at a step."""
    refuses: AsterismError | None = None
    """What `choose`, `explain`, `add` and `remove` raise."""
    starts: AsterismError | None = None
    """What `start` raises."""
    loading: asyncio.Event | None = None
    """What `start` waits for."""
    jobs: list[Job] = field(default_factory=list)
    """All that were submitted."""
    running: dict[str, Job] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    wishes: list[tuple[tuple[int, ...], Wish]] = field(default_factory=list)
    """What `choose` was asked."""
    composing: list[float] = field(default_factory=list)
    written: int = 0
    followed: int = 0
    drained: bool = False
    closed: bool = False

    @property
    def facts(self) -> Facts:
        return Facts("scripted", self.room, self.vocabulary, "cpu", "float32", tuple(self.names), renews=True)

    async def start(self) -> None:
        if self.loading is not None:
            await self.loading.wait()
        if self.starts is not None:
            raise self.starts

    async def choose(self, tokens: Sequence[int], wish: Wish) -> Choice:
        self.wishes.append((tuple(tokens), wish))
        await asyncio.sleep(self.pause)
        if self.refuses is not None:
            raise self.refuses
        left = [name for name in self.names if name not in wish.exclude]
        k = (wish.settings or MixtureSettings()).top_k
        if k > len(left):
            raise SettingsError("top_k is more than there are domains.", met=k, mend=f"1 to {len(left)}")
        mixture = Mixture.fixed(dict.fromkeys(left[:k], 0.75 / k), self.nodes, generalist=0.25)
        self.composing.append(0.002)
        return Choice(mixture, 0.002, len(tokens))

    async def explain(self, text: str, settings: MixtureSettings | None) -> dict[str, Any]:
        if self.refuses is not None:
            raise self.refuses
        return {"text": text, "mode": (settings or MixtureSettings()).mode, "shares": {self.names[0]: 1.0}}

    async def submit(self, job: Job) -> AsyncIterator[Event]:
        for name in job.composition.mixture.specialists if job.composition else ():
            if name not in self.names:
                raise UnknownName("specialist", name, self.names)
        if self.room is not None and len(job.tokens) + job.sampling.max_tokens > self.room:
            raise DataError("A prompt leaves no room for its answer.", met=len(job.tokens), mend="shorten it")
        self.jobs.append(job)
        self.running[job.id] = job
        try:
            async for event in self._played(job):
                yield event
        finally:
            self.running.pop(job.id, None)

    async def _played(self, job: Job) -> AsyncIterator[Event]:
        script, told = list(self.answer(job)), 0
        while told < job.sampling.max_tokens and (self.endless or told < len(script)):
            await asyncio.sleep(self.pause)
            if job.id in self.cancelled:
                yield Finished("cancelled", len(job.tokens), told)
                return
            if self.breaks(job, told):
                yield Failed(BROKEN)
                return
            token, told, self.written = script[told % len(script)], told + 1, self.written + 1
            yield Tokens((self._told(token, job),))
            if token in job.sampling.ends:
                yield Finished("stop", len(job.tokens), told, cached_tokens=len(job.tokens) // 2)
                return
            if job.renew and told % job.renew == 0:
                again = replace(Mixture.fixed({self.names[-1]: 1.0}, self.nodes), losses={self.names[-1]: 2.0, "": 2.5})
                yield Renewed(Composition(again, job.composition.settings if job.composition else None))  # type: ignore[arg-type]
        yield Finished("length", len(job.tokens), told)

    def _told(self, token: int, job: Job) -> Token:
        if job.sampling.logprobs is None:
            return Token(token)
        top = tuple((other, -1.0 - place) for place, other in enumerate(range(token, token + job.sampling.logprobs)))
        return Token(token, -1.0, top)

    def cancel(self, job: str) -> None:
        if job in self.running:
            self.cancelled.append(job)

    async def add(self, name: str, source: str, probes: Sequence[str]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.names = (*self.names, name)

    async def follow(self) -> None:
        self.followed += 1

    async def remove(self, name: str) -> None:
        if self.refuses is not None:
            raise self.refuses
        if name not in self.names:
            raise UnknownName("specialist", name, self.names)
        self.names = tuple(one for one in self.names if one != name)

    def stats(self) -> Stats:
        composing, self.composing = self.composing, []
        return Stats(
            running=len(self.running),
            live_mixtures=len({job.composition.key for job in self.running.values() if job.composition}),
            prompt_tokens_total=sum(len(job.tokens) for job in self.jobs),
            generation_tokens_total=self.written,
            compose_seconds=composing,
            selected={self.names[0]: len(self.wishes)},
        )

    async def drain(self, seconds: float) -> None:
        self.drained = True
        for _ in range(int(seconds / 0.01)):
            if not self.running:
                return
            await asyncio.sleep(0.01)
        self.cancelled += self.running

    async def close(self) -> None:
        self.cancelled += self.running
        self.closed = True
