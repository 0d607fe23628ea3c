"""The end of a server: answers under way finish, those that take too long are told so."""

from __future__ import annotations

import pytest

from asterism.serve.settings import ServeSettings
from tests.serve.conftest import TEXT, events
from tests.serve.live import live

QUESTION = {"model": "tiny", "prompt": "a", "max_tokens": 32, "stream": True}


def stop(running) -> None:
    running.server._loop.call_soon_threadsafe(running.server.stop)
    running.until(lambda: running.asking.away is not None)


@pytest.mark.parametrize("slow", [False, True])
def test_a_server_that_is_told_to_stop_lets_answers_finish_for_so_long(served, scripted, slow):
    engine = scripted(pause=0.02)
    with live(engine, served, ServeSettings(drain_s=0.1 if slow else 5.0)) as running:
        with running.client.stream("POST", "/v1/completions", json=QUESTION) as answer:
            running.until(lambda: engine.written > 2)
            stop(running)
            late = running.client.post("/v1/completions", json=QUESTION)
            assert (late.status_code, late.headers["connection"]) == (503, "close")
            answer.read()
        told = events(answer)
        if slow:
            assert told[-1]["error"]["asterism"]["wrong"] == "The answer was broken off."
        else:
            assert "".join(choice["text"] for chunk in told for choice in chunk["choices"]) == TEXT
        running.until(lambda: running.server.should_exit)
    assert engine.drained
    assert engine.closed


def test_a_second_signal_ends_it_at_once(served, scripted):
    engine = scripted(pause=0.02, endless=True)
    with live(engine, served) as running:
        with running.client.stream("POST", "/v1/completions", json={**QUESTION, "max_tokens": 100}):
            running.until(lambda: engine.written > 2)
            running.server.handle_exit(15, None)
            running.until(lambda: running.asking.away is not None)
            assert not running.server.should_exit
            running.server.handle_exit(15, None)
            assert running.server.force_exit


def test_questions_wait_for_no_engine_that_is_still_loading(served, scripted):
    import asyncio

    import httpx

    from asterism.serve.app import create_app

    async def ask():
        engine = scripted(loading=asyncio.Event())
        app = create_app(engine, served)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                codes = [(await client.get(path)).status_code for path in ("/health", "/ready", "/v1/models")]
                engine.loading.set()
                while (await client.get("/ready")).status_code != 200:
                    await asyncio.sleep(0.001)
                return [*codes, (await client.get("/v1/models")).status_code]

    assert asyncio.run(ask()) == [200, 503, 503, 200]


def test_an_engine_that_cannot_start_is_told_to_whoever_serves(served, scripted):
    import asyncio

    from asterism.core.errors import UnsupportedError
    from asterism.serve.app import create_app

    told = []

    async def start():
        app = create_app(scripted(starts=UnsupportedError("It cannot be served.", met="tiny", mend="another one")), served)
        app.state.started = told.append
        async with app.router.lifespan_context(app):
            while not told:
                await asyncio.sleep(0.001)
        assert app.state.asking.away is not None

    asyncio.run(start())
    assert isinstance(told[0], UnsupportedError)
