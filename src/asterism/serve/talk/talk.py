"""A conversation with a library in one's own process, for a terminal: its calls block, engine and event loop have their own threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from asterism.core.errors import UnknownName
from asterism.serve.asking import Answer, Asking, Part, Question
from asterism.serve.choosing import BASE, OF
from asterism.serve.engine import Engine
from asterism.serve.schema import Extras
from asterism.serve.served import Served
from asterism.serve.settings import ServeSettings
from asterism.serve.talk.settings import TalkSettings

T = TypeVar("T")
ALL, GENERALIST = "all", "generalist"
"""Who may answer beside each specialist: the library, composed for the conversation, and the generalist alone."""


class Talk:
    """A conversation; `close` it, or use it as a context."""

    def __init__(self, engine: Engine, served: Served, settings: TalkSettings, *, recall: Any = None, seed: int = 42) -> None:
        """Start the engine. Raises what keeps it from starting, and what `Asking` does."""
        self.settings, self.who, self._seed = settings, ALL, seed
        self.turns: list[dict[str, str]] = []
        self._asking = Asking(engine, served, ServeSettings(chat_template=settings.chat_template), recall or _no_label)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="asterism-talk", daemon=True)
        self._thread.start()
        try:
            self._wait(engine.start())
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def specialists(self) -> tuple[str, ...]:
        """Who there is."""
        return self._asking.engine.facts.specialists

    def choose(self, who: str) -> None:
        """Let `who` answer from now on: a specialist, ALL or GENERALIST. UnknownName for another one."""
        if who not in (known := (ALL, GENERALIST, *self.specialists)):
            raise UnknownName("one to answer", who, known)
        self.who = who

    def say(self, text: str) -> Generator[dict[str, Any] | str, None, None]:
        """What is answered: first the mixture as the API tells it, then the text piece by piece, and each further mixture when it is made.

        An answer that is broken off (the iterator closed) is part of the conversation as far as it was told; one that fails is not,
        nor is what was said.
        """
        messages = [*self._before(), *self.turns, {"role": "user", "content": text}]
        told, failed = "", True
        answer = self._wait(self._begun(messages))
        try:
            yield answer.told
            parts = answer.parts()
            while (part := self._wait(_next(parts))) is not None:
                told += part.text
                if part.renewed:
                    yield part.renewed
                if part.text:
                    yield part.text
            failed = False
        except (GeneratorExit, KeyboardInterrupt):
            failed = False
            raise
        finally:
            self._wait(answer.aclose())
            if not failed:
                self.turns += [messages[-1], {"role": "assistant", "content": told}]

    def close(self) -> None:
        """Give everything back."""
        try:
            self._wait(self._asking.engine.close())
        finally:
            self._end()

    def _before(self) -> list[dict[str, str]]:
        return [] if self.settings.system is None else [{"role": "system", "content": self.settings.system}]

    async def _begun(self, messages: list[dict[str, str]]) -> Answer:
        own, name = self.settings, self._asking.served.name
        model = {ALL: name, GENERALIST: name + BASE}.get(self.who, f"{name}{OF}{self.who}")
        extras = Extras(top_k=own.top_k, mode=own.mode, layers=own.layers, renew=own.renew) if self.who == ALL else Extras()
        tokens = await self._asking.chat_tokens(messages)
        drawn: dict[str, Any] = dict(usual=own.max_new_tokens, temperature=own.temperature, top_p=own.top_p, seed=self._seed)
        return await self._asking.begin(Question(tokens=tokens, model=model, extras=extras, **drawn))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What the loop's thread makes of it; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(parts: Any) -> Part | None:
    return await anext(parts, None)


def _no_label(label: str) -> Any:
    raise UnknownName("saved composition", label, ())
