"""The local engine: one thread owns the model and turns; the event loop gives it jobs and gets their events."""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

from asterism.constellation.index import FOLDER, Constellation
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import DataError, MismatchError
from asterism.core.progress import quiet
from asterism.models.library import Library
from asterism.serve.admission import check_job, check_known
from asterism.serve.errors import Away
from asterism.serve.jobs import Choice, Event, Facts, Failed, Finished, Job, Stats, Wish
from asterism.serve.local.answer import Answer
from asterism.serve.local.execution import Executor
from asterism.serve.local.rows import distinct
from asterism.serve.local.scheduler import Scheduler
from asterism.serve.local.settings import LocalSettings

log = logging.getLogger("asterism.serve")
Call = Callable[[Scheduler], None]


class LocalEngine:
    """`asterism.serve.engine.Engine` on transformers, with a continuously changing batch."""

    def __init__(self, library: Library, constellation: Constellation, settings: LocalSettings | None = None) -> None:
        self.library, self.constellation, self.settings = library, constellation, settings or LocalSettings()
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._outbox: list[tuple[Callable[[Any], None], Any]] = []
        self._scheduler: Scheduler | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changing = asyncio.Lock()
        self._answers: WeakValueDictionary[str, Answer] = WeakValueDictionary()  # one that nobody holds any more cancels itself
        self._open: set[str] = set()
        self._reads = 0
        self._away: Away | None = Away("The engine has not started.", met="a request", after=1)
        self._alive = True
        self._names = library.names
        self._room: int | None = None

    # ---- what it is

    @property
    def facts(self) -> Facts:
        """Known after `start`."""
        dtype = str(self.library.dtype).removeprefix("torch.")
        return Facts("local", self._room, self.library.anatomy.vocabulary, str(self.library.device), dtype, self._names, renews=True)

    def stats(self) -> Stats:
        """Counters now."""
        made = self._scheduler
        if made is None:
            return Stats(alive=self._alive)
        running, tails = made.running, made.executor.stats
        seconds = (*_emptied(made.choosing.seconds), *_emptied(tails.seconds))
        rows = list(running.rows)
        began = len(rows) + sum(len(prefill.rows) for prefill in list(made.prefills))
        used = sum(row.length for row in rows)
        return Stats(
            running=began,
            waiting=max(len(self._open) - began, 0) + self._reads,
            live_mixtures=distinct(rows),
            cache_share=used / (self.settings.slots * self._room) if self._room else len(rows) / self.settings.slots,
            composed_cache_hits_total=tails.hits,
            composed_cache_misses_total=tails.misses,
            prompt_tokens_total=made.prompt_tokens,
            generation_tokens_total=made.generation_tokens,
            compose_seconds=seconds,
            selected=dict(made.choosing.selected),
            alive=self._alive,
        )

    # ---- its life

    async def start(self) -> None:
        """Load the models on a thread of their own."""
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[int | None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._live, args=(ready,), name="asterism-engine", daemon=True)
        self._thread.start()
        self._room = await ready
        self._away = None

    async def drain(self, seconds: float) -> None:
        """Take no more, and wait for what there is, so many seconds at most."""
        self._away = self._away or leaving()
        end = time.monotonic() + seconds
        while (self._open or self._reads) and self._alive and time.monotonic() < end:
            await asyncio.sleep(0.01)
        for job in list(self._open):
            self.cancel(job)

    async def close(self) -> None:
        """Drain at once, and end the thread."""
        await self.drain(0)
        if self._thread is not None:
            self._calls.put(None)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        self._scheduler = None

    # ---- what is asked

    async def choose(self, tokens: Sequence[int], wish: Wish) -> Choice:
        """The mixture of a prompt; errors as `Engine.choose` and `Constellation.mixtures`."""
        if not tokens:
            raise DataError("There is nothing to read.", met="a prompt without tokens", mend="give it some words")
        check_known(wish.exclude, self._names)
        read = tuple(tokens)
        choice = await self._asked(lambda made, tell, found: made.choosing.ask(read, wish, tell, gone=found.cancelled))
        self._call(lambda made: made.choosing.chose(choice))
        return choice

    async def explain(self, text: str, settings: MixtureSettings | None) -> dict[str, Any]:
        """What a text asks of the library."""
        return await self._asked(lambda made, tell, _: made.choosing.explain(text, settings, tell))

    def submit(self, job: Job) -> AsyncIterator[Event]:
        """The events of one job; errors as `Engine.submit`."""
        self._refuse_away()
        check_job(job, self._names, self._room, self._open)
        answer = Answer(lambda: self.cancel(job.id))
        self._answers[job.id] = answer
        self._open.add(job.id)
        self._call(lambda made: made.submit(job, lambda event: self._outbox.append((self._told, (job.id, event)))))
        return answer

    def cancel(self, job: str) -> None:
        """End a job by its id; nothing where it has ended."""
        self._call(lambda made: made.cancel(job))

    # ---- changes of the library

    async def add(self, name: str, source: str, probes: Sequence[str]) -> None:
        """Add a specialist; on any error library, constellation and engine stay as they were."""
        async with self._changing:
            self._refuse_away()
            grown = await asyncio.to_thread(self._grown, name, source, list(probes))
            try:
                await self._asked(lambda made, tell, _: _tried(tell, made.add, name, grown))
            except BaseException:
                await asyncio.to_thread(self._shrunk, name, self.constellation)
                raise
            self.constellation, self._names = grown, self.library.names

    async def remove(self, name: str) -> None:
        """Take a specialist out; answers that run with it finish with it."""
        async with self._changing:
            self._refuse_away()
            check_known((name,), self._names)
            smaller = self.constellation.without_domain(name) if name in self.constellation.domains else self.constellation
            await asyncio.to_thread(self._shrunk, name, smaller)
            self.constellation, self._names = smaller, self.library.names
            await self._asked(lambda made, tell, _: _tried(tell, made.remove, name, smaller))

    async def follow(self) -> None:
        """Take over what another process has changed in the library's files. An error tells what was left out, if not all was."""
        async with self._changing:
            self._refuse_away()
            now = await asyncio.to_thread(self._reopened)
            gone, new = self.library.take_over(now.library)
            stayed = tuple(name for name in self._names if name not in gone)
            self._names, came = stayed, [name for name in self.library.names if name in new or name not in stayed]
            found = replace(now, library=self.library)
            try:
                await self._asked(lambda made, tell, _: _tried(tell, made.follow, gone, came, found))
            finally:
                if self._scheduler is not None:
                    self.constellation = self._scheduler.choosing.constellation
                    self._names = tuple(name for name in self.library.names if name in self._scheduler.executor.names)

    def _reopened(self) -> Constellation:
        """The library and its constellation as they are on disk now. MismatchError for an index that reads texts in another way."""
        library, own = self.library, self.constellation.settings
        found = Constellation.load(library.root / FOLDER, Library.open(library.root, device=library.device, dtype=library.dtype))
        if (found.settings.layer, found.settings.max_length) != (own.layer, own.max_length):
            met = f"layer {found.settings.layer}, max_length {found.settings.max_length}"
            raise MismatchError("The index reads texts in another way by now.", met=met, mend="start the server again")
        return found

    def _grown(self, name: str, source: str, probes: list[str]) -> Constellation:
        self.library.add(name, source)
        own = copy.copy(self.library)
        own.tokenizer = copy.deepcopy(own.tokenizer)  # two threads cannot use one at a time
        try:
            grown = replace(replace(self.constellation, library=own).with_domain(name, probes), library=self.library)
            grown.save()
        except BaseException:
            self.library.remove(name)
            raise
        return grown

    def _shrunk(self, name: str, constellation: Constellation) -> None:
        """First the constellation, then the library: a constellation may lack a specialist, but not know one that is not there."""
        constellation.save()
        try:
            self.library.remove(name)
        except BaseException:
            self.constellation.save()
            raise

    # ---- between loop and thread

    def _call(self, call: Call) -> None:
        self._calls.put(call)

    async def _asked(self, work: Callable[[Scheduler, Callable[[Any], None], asyncio.Future[Any]], None]) -> Any:
        """What `work`, on the thread, sooner or later tells; an exception is raised. The future tells the thread when nobody waits."""
        self._refuse_away()
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(value: Any) -> None:
            if found.done():
                return
            if isinstance(value, Exception):
                found.set_exception(value)
            else:
                found.set_result(value)

        self._call(lambda made: work(made, lambda value: self._outbox.append((settle, value)), found))
        self._reads += 1
        try:
            return await found
        finally:
            self._reads -= 1

    def _told(self, told: tuple[str, Event]) -> None:
        job, event = told
        if isinstance(event, Finished | Failed):
            self._open.discard(job)
        if (answer := self._answers.get(job)) is not None:
            answer.put(event)

    def _refuse_away(self) -> None:
        if not self._alive:
            raise stopped()
        if self._away is not None:
            raise self._away

    # ---- the thread

    def _live(self, ready: asyncio.Future[int | None]) -> None:
        with quiet():
            try:
                scheduler = Scheduler(Executor(self.library, self.settings), self.constellation, self.settings)
            except BaseException as error:
                self._alive = False
                self._post([(ready.set_exception, error)])
                return
            self._scheduler = scheduler
            self._post([(ready.set_result, scheduler.forward.room)])
            try:
                self._turns(scheduler)
                scheduler.stop(leaving())
                self._flush()
            except BaseException as error:
                log.exception("The engine's thread has died.")
                self._alive = False
                self._fail(scheduler)
                if not isinstance(error, Exception):
                    raise

    def _turns(self, scheduler: Scheduler) -> None:
        while True:
            while not scheduler.busy or not self._calls.empty():
                self._flush()
                call = self._calls.get()
                if call is None:
                    return
                call(scheduler)
            scheduler.turn()
            self._flush()

    def _fail(self, scheduler: Scheduler) -> None:
        """Everything there is fails, and all that still comes."""
        while True:
            scheduler.stop(stopped())
            self._flush()
            call = self._calls.get()
            if call is None:
                return
            try:
                call(scheduler)
            except Exception:
                log.exception("After the engine's thread has died.")

    def _flush(self) -> None:
        if self._outbox:
            told, self._outbox = self._outbox, []
            self._post(told)

    def _post(self, told: list[tuple[Callable[[Any], None], Any]]) -> None:
        """One wake-up of the loop for all that a turn has to tell; nobody is told when the loop is gone."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(_deliver, told)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


def leaving() -> Away:
    """What newcomers are told while the engine drains."""
    return Away("The server is shutting down.", met="a new request")


def stopped() -> Away:
    """What everybody is told once the thread has died."""
    return Away("The engine has stopped working.", met="an error of its own", after=60)


def _deliver(told: list[tuple[Callable[[Any], None], Any]]) -> None:
    for tell, what in told:
        tell(what)


def _tried(tell: Callable[[Any], None], work: Callable[..., None], *given: Any) -> None:
    try:
        tell(work(*given))
    except Exception as error:
        tell(error)


def _emptied(numbers: list[float]) -> list[float]:
    """What is in a list that another thread appends to, taken out of it."""
    found = numbers[: len(numbers)]
    del numbers[: len(found)]
    return found
