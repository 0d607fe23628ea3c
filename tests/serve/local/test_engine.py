"""The engine on its thread: what the event loop asks, gets, drops and changes."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch

from asterism.constellation.explanation import explain
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import AsterismError, DataError, SettingsError, UnknownName
from asterism.models.library import Library
from asterism.serve.engine import Engine
from asterism.serve.errors import Away
from asterism.serve.jobs import Composition, Event, Failed, Finished, Job, Sampling, Tokens, Wish
from asterism.serve.local.engine import LocalEngine
from asterism.serve.local.settings import LocalSettings
from tests import tiny
from tests.serve.local.driving import generated

TEXT = tiny.PROBES["legal"][0]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> tuple[Library, Constellation]:
    library = tiny.tiny_library(tmp_path_factory.mktemp("engine"), "gpt2", dtype=torch.float64)
    return library, Constellation.build(library, tiny.tiny_probes())


def run(served: tuple[Library, Constellation], work: Callable[[LocalEngine], Awaitable[Any]], **settings: Any) -> Any:
    """`work` with a started engine, on an event loop of its own."""

    async def whole() -> Any:
        engine = LocalEngine(*served, LocalSettings(**settings))
        await engine.start()
        try:
            return await asyncio.wait_for(work(engine), 60)
        finally:
            await engine.close()

    return asyncio.run(whole())


def a_job(library: Library, id: str = "a", most: int = 8, composition: Composition | None = None, **sampling: Any) -> Job:
    return Job(id, tuple(library.tokenizer(TEXT)["input_ids"]), Sampling(most, **sampling), composition)


def mixed(library: Library, *names: str) -> Composition:
    return Composition(Mixture.uniform(names, library.anatomy.hidden_size))


async def collected(engine: Engine, job: Job) -> list[Event]:
    return [event async for event in engine.submit(job)]


def tokens(events: list[Event]) -> list[int]:
    return [token.id for event in events if isinstance(event, Tokens) for token in event.tokens]


def test_many_answers_at_once_and_what_is_counted(served):
    library, constellation = served
    names = (("medical", "legal"), ("code",), ("legal", "science"), ("medical", "code", "science"))

    async def work(engine):
        choice = await engine.choose(library.tokenizer(TEXT)["input_ids"], Wish())
        jobs = [a_job(library, str(n), 5 + n, mixed(library, *own)) for n, own in enumerate(names)]
        jobs.append(a_job(library, "chosen", 6, Composition(choice.mixture), logprobs=2))
        answers = await asyncio.gather(*(collected(engine, job) for job in jobs))
        return choice, jobs, answers, engine.stats(), engine.stats(), engine.facts

    choice, jobs, answers, stats, after, facts = run(served, work)
    for job, events in zip(jobs, answers, strict=True):
        assert tokens(events) == generated(library, job)
        assert isinstance(events[-1], Finished)
        assert min(events[-1].queue_s, events[-1].prefill_s, events[-1].decode_s) >= 0
    told = answers[-1][0].tokens[0]
    assert told.id == told.top[0][0]
    assert len(told.top) == 2
    assert told.logprob == told.top[0][1] < 0
    want = constellation.mixture(TEXT)
    assert choice.mixture.shares == pytest.approx(want.shares, abs=1e-5)
    assert (stats.running, stats.waiting, stats.live_mixtures, stats.cache_share, stats.alive) == (0, 0, 0, 0, True)
    assert stats.generation_tokens_total == sum(job.sampling.max_tokens for job in jobs)
    assert stats.prompt_tokens_total == sum(len(job.tokens) for job in jobs)
    assert stats.selected == dict.fromkeys(want.specialists, 1)
    assert choice.seconds in stats.compose_seconds
    assert not after.compose_seconds
    assert (facts.name, facts.room, facts.vocabulary, facts.dtype, facts.renews) == ("local", tiny.LENGTH, 320, "float64", True)
    assert facts.specialists == tiny.DOMAINS


def test_what_is_asked_wrongly_is_refused_before_it_runs(served):
    library, _ = served

    async def work(engine):
        with pytest.raises(UnknownName, match="medical"):
            engine.submit(a_job(library, composition=mixed(library, "medicl")))
        with pytest.raises(DataError, match="no room"):
            engine.submit(a_job(library, most=tiny.LENGTH))
        with pytest.raises(DataError):
            engine.submit(Job("a", (), Sampling(3)))
        with pytest.raises(UnknownName, match="medical"):
            await engine.choose([5, 6], Wish(exclude=("medicl",)))
        with pytest.raises(SettingsError, match="top_k"):
            await engine.choose([5, 6], Wish(MixtureSettings(top_k=5)))
        with pytest.raises(DataError):
            await engine.choose([], Wish())
        return engine.stats()

    assert run(served, work).running == 0


@pytest.mark.parametrize("way", ["closed", "forgotten", "cancelled task", "by id", "never begun"])
def test_whoever_stops_listening_frees_the_row(served, way):
    library, _ = served

    async def work(engine):
        job = a_job(library, most=90)
        answer = engine.submit(job)
        if way == "cancelled task":
            task = asyncio.ensure_future(collected_from(answer, []))
            while not engine.stats().running:
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif way != "never begun":
            assert isinstance(await anext(answer), Tokens)
        if way == "closed":
            await answer.aclose()
        elif way == "by id":
            engine.cancel(job.id)
            events = [event async for event in answer]
            assert events[-1].reason == "cancelled"
            assert len(events) < 85
        del answer
        gc.collect()
        while engine._open:
            await asyncio.sleep(0.001)
        assert not engine.stats().running
        assert engine.stats().generation_tokens_total < 85
        return tokens(await collected(engine, a_job(library, most=3)))

    async def collected_from(answer, into):
        async for event in answer:
            into.append(event)

    assert run(served, work) == generated(library, a_job(library, most=3))


def test_explain_is_the_constellations(served):
    library, constellation = served
    got = run(served, lambda engine: engine.explain(TEXT, MixtureSettings(top_k=2)))
    want = explain(library, constellation, TEXT, MixtureSettings(top_k=2))
    assert got["shares"] == pytest.approx(want["shares"], abs=1e-5)
    assert got["layers"] == want["layers"]
    assert got["coefficients"] == pytest.approx(want["coefficients"], abs=1e-5)
    with pytest.raises(AsterismError):
        run(served, lambda engine: engine.explain("", None))


def test_draining_lets_answers_finish_and_takes_no_more(served):
    library, _ = served

    async def work(engine):
        answer = engine.submit(a_job(library, most=20))
        await anext(answer)
        draining = asyncio.ensure_future(engine.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(Away):
            engine.submit(a_job(library, "b"))
        with pytest.raises(Away):
            await engine.choose([5, 6], Wish())
        rest = [event async for event in answer]
        await draining
        late = engine.submit  # what is left when time is up is cancelled
        return rest, late

    rest, _ = run(served, work)
    assert isinstance(rest[-1], Finished)
    assert rest[-1].reason == "length"
    assert len(tokens(rest)) == 19

    async def hurried(engine):
        answer = engine.submit(a_job(library, most=90))
        await anext(answer)
        await engine.drain(0)
        return [event async for event in answer]

    assert run(served, hurried)[-1].reason == "cancelled"


def test_a_dead_thread_fails_everything_and_says_so(served, caplog):
    library, _ = served

    async def work(engine):
        answer = engine.submit(a_job(library, most=90))
        await anext(answer)

        def broken() -> None:
            raise MemoryError

        engine._scheduler.turn = broken
        events = [event async for event in answer]
        with pytest.raises(Away, match="stopped working"):
            engine.submit(a_job(library, "b"))
        with pytest.raises(Away, match="stopped working"):
            await engine.choose([5, 6], Wish())
        return events, engine.stats()

    with caplog.at_level(logging.CRITICAL, "asterism.serve"):
        events, stats = run(served, work)
    assert isinstance(events[-1], Failed)
    assert not stats.alive


def test_a_library_that_cannot_be_loaded_is_told_at_start(served, monkeypatch):
    library, constellation = served
    monkeypatch.setattr(library, "fresh_model", lambda: (_ for _ in ()).throw(DataError("Broken.", met="it", mend="mend it")))
    with pytest.raises(DataError, match="Broken"):
        run((library, constellation), lambda engine: engine.drain(0))


def test_a_new_specialist_answers_and_a_removed_one_finishes(tmp_path):
    """Library, constellation and engine change together, and what is on disk agrees."""
    library = tiny.tiny_library(tmp_path, "gpt2", ("medical", "legal", "code"), dtype=torch.float64)
    constellation = Constellation.build(library, {name: texts for name, texts in tiny.tiny_probes().items() if name != "science"})
    constellation.save()
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2", 0, torch.float64), 77, 0.15), tmp_path / "science")
    probes = list(tiny.PROBES["science"])

    async def work(engine):
        with pytest.raises(AsterismError):
            await engine.add("science", "nowhere", probes)
        with pytest.raises(DataError):
            await engine.add("science", str(tmp_path / "science"), [])
        assert engine.facts.specialists == Library.open(tmp_path).names == ("medical", "legal", "code")
        await engine.add("science", str(tmp_path / "science"), probes)
        opened = Library.open(tmp_path)
        assert engine.facts.specialists == opened.names == (*tiny.DOMAINS[:3], "science")
        loaded = Constellation.load(tmp_path / "constellation", opened)
        choice = await engine.choose(library.tokenizer(probes[0])["input_ids"], Wish(MixtureSettings(top_k=4)))
        assert choice.mixture.shares == pytest.approx(loaded.mixture(probes[0], top_k=4).shares, abs=1e-5)
        job = a_job(library, most=60, composition=mixed(library, "medical", "science"))
        want = generated(opened, job)
        answer = engine.submit(job)
        first = await anext(answer)
        await engine.remove("science")
        with pytest.raises(UnknownName):
            engine.submit(a_job(library, "b", composition=mixed(library, "medical", "science")))
        with pytest.raises(UnknownName):
            await engine.remove("science")
        rest = [event async for event in answer]
        assert tokens([first, *rest]) == want
        opened = Library.open(tmp_path)
        assert engine.facts.specialists == opened.names == ("medical", "legal", "code")
        assert Constellation.load(tmp_path / "constellation", opened).domains == opened.names
        return await engine.choose(library.tokenizer(probes[0])["input_ids"], Wish())

    choice = run((library, constellation), work)
    assert choice.mixture.shares == pytest.approx(constellation.mixture(probes[0]).shares, abs=1e-5)


def test_the_last_specialist_stays(tmp_path):
    library = tiny.tiny_library(tmp_path, "gpt2", ("medical",))
    constellation = Constellation.build(library, {"medical": list(tiny.PROBES["medical"])})

    async def work(engine):
        with pytest.raises(AsterismError):
            await engine.remove("medical")
        return engine.facts.specialists

    assert run((library, constellation), work) == ("medical",)


def test_closing_tells_those_who_wait(served):
    """A choice and an explanation under way when the engine closes are refused, not forgotten."""
    library, constellation = served

    async def work():
        engine = LocalEngine(library, constellation)
        await engine.start()
        asked = [asyncio.ensure_future(engine.explain(TEXT, None)) for _ in range(3)]
        asked.append(asyncio.ensure_future(engine.choose([5] * 100, Wish())))
        await asyncio.sleep(0)
        await engine.close()
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)

    assert any(isinstance(found, Away) for found in asyncio.run(work()))
