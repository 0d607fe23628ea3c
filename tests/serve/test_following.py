"""Servers that share a library: who follows when, and who may change it."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest

from asterism.core.errors import StaleError, StorageError
from asterism.core.storage import alone, write_json
from asterism.serve import following as module
from asterism.serve.app import create_app
from asterism.serve.errors import Away, Refused
from asterism.serve.following import Current, Following, marks
from asterism.serve.settings import ServeSettings
from tests.serve.scripted import Scripted


@pytest.fixture
def root(tmp_path):
    write_json(tmp_path / "library.json", {"version": 1})
    write_json(tmp_path / "constellation" / "index.json", {"version": 1})
    return tmp_path


@pytest.fixture
def engine() -> Scripted:
    return Scripted(lambda job: ())


def follow(root, engine) -> Following:
    return Following(engine, root, marks(root))


@pytest.mark.parametrize("file", ["library.json", "constellation/index.json"])
def test_an_engine_follows_each_change_once(root, engine, file):
    async def work():
        one = follow(root, engine)
        await one.current()
        assert engine.followed == 0
        write_json(root / file, {"version": 1})  # the same content, written again
        await asyncio.gather(*(one.current() for _ in range(5)))
        assert engine.followed == 1
        (root / file).unlink()
        await one.current()
        return engine.followed

    assert asyncio.run(work()) == 2


def test_a_change_that_comes_while_it_follows_is_followed_too(root, engine):
    changes = [{"version": 2}, {"version": 3}]
    plain = engine.follow

    async def and_more():
        await plain()
        if changes:
            write_json(root / "library.json", changes.pop())

    engine.follow = and_more
    one = follow(root, engine)
    write_json(root / "library.json", {"version": 1})
    asyncio.run(one.current())
    assert engine.followed == 3
    asyncio.run(one.current())
    assert engine.followed == 3


def test_what_cannot_be_taken_over_is_logged_once_and_tried_at_the_next_change(root, engine, caplog):
    tried = []

    async def stale():
        tried.append(1)
        raise StaleError("Another generalist.", met="weights", mend="start again")

    engine.follow = stale
    one = follow(root, engine)
    write_json(root / "library.json", {"version": 2})
    for times in (1, 1):
        with caplog.at_level(logging.ERROR):
            asyncio.run(one.current())
        assert len(tried) == times
    assert [record.message for record in caplog.records] == ["What has changed in the library cannot be taken over."]
    write_json(root / "library.json", {"version": 3})
    asyncio.run(one.current())
    assert len(tried) == 2


def test_an_engine_that_starts_follows_later(root, engine):
    async def away():
        raise Away("The engine has not started.", met="a request")

    plain, engine.follow = engine.follow, away
    one = follow(root, engine)
    write_json(root / "library.json", {"version": 2})
    asyncio.run(one.current())
    engine.follow = plain
    asyncio.run(one.current())
    assert engine.followed == 1


def test_one_server_changes_at_a_time_and_on_what_the_other_left(root):
    order, engines = [], [Scripted(lambda job: ()) for _ in range(2)]

    async def change(name, one):
        async with one:
            order.append(name)
            write_json(root / "library.json", {"by": name})
            await asyncio.sleep(0.1)
            order.append(name)

    async def work():
        both = [follow(root, engine) for engine in engines]
        await asyncio.gather(change("a", both[0]), change("b", both[1]))
        assert [engine.followed for engine in engines] == [0, 1]  # b has seen a's change before its own
        await both[1].current()
        assert engines[1].followed == 1  # and its own is none that it must follow
        await both[0].current()
        return engines[0].followed

    assert asyncio.run(work()) == 1
    assert order == ["a", "a", "b", "b"]


def test_requests_go_on_while_their_own_server_changes_the_library(root, engine):
    async def work():
        one = follow(root, engine)
        async with one:
            write_json(root / "library.json", {"version": 2})
            await asyncio.wait_for(one.current(), 5)
        await one.current()
        return engine.followed

    assert asyncio.run(work()) == 0


def test_a_library_that_is_being_changed_elsewhere_for_long_is_told(root, engine, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.1)

    async def work():
        one = follow(root, engine)
        with alone(root / "library.json"):
            with pytest.raises(Refused, match="being changed") as caught:
                await one.__aenter__()
        assert caught.value.status == 409
        async with one:
            pass

    asyncio.run(work())


def test_a_change_is_refused_where_the_engine_cannot_follow_first(root, engine):
    async def damaged():
        raise StorageError("Damaged.", met="library.json", mend="mend it")

    engine.follow = damaged
    one = follow(root, engine)
    write_json(root / "library.json", {"version": 2})

    async def work():
        for _ in range(2):  # and the lock is free again
            with pytest.raises(StorageError):
                await one.__aenter__()

    asyncio.run(work())


def test_a_request_meets_the_library_as_it_is_on_disk_and_changes_hold_the_lock(root, served):
    engine = Scripted(lambda job: ())
    one = follow(root, engine)
    app = create_app(engine, served, ServeSettings(allow_changes=True), changing=one)
    app.add_middleware(Current, following=one)
    body = {"name": "stars", "source": "stars", "probes": ["a star"]}

    async def work():
        app.state.asking.away = None
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            write_json(root / "library.json", {"version": 2})
            assert (await client.get("/health")).status_code == 200
            assert engine.followed == 0  # a probe of the process waits for nothing
            assert (await client.get("/v1/models")).status_code == 200
            assert engine.followed == 1
            async with Following(Scripted(lambda job: ()), root, marks(root)):
                task = asyncio.ensure_future(client.post("/v1/asterism/specialists", json=body))
                await asyncio.sleep(0.2)
                assert not task.done()
            assert (await task).status_code == 201

    asyncio.run(work())
    assert "stars" in engine.names
