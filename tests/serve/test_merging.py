"""Streams put together, work that ends with its client, and the gate."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from asterism.serve.errors import Busy, Refused
from asterism.serve.limits import BodyLimit, Gate
from asterism.serve.merging import all_of, merged, while_connected


class Streams:
    """Streams of numbers that note how they end."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    async def one(self, place: int, pause: float, count: int = 3, breaks: bool = False):
        try:
            for number in range(count):
                await asyncio.sleep(pause)
                if breaks and number == 1:
                    raise ValueError(place)
                yield number
        finally:
            self.ended.append(place)


@pytest.mark.parametrize("many", [1, 3])
def test_all_that_streams_give_comes_with_their_places(many):
    streams = Streams()

    async def read():
        return [one async for one in merged([streams.one(place, 0.001 * place) for place in range(many)])]

    found = asyncio.run(read())
    assert sorted(found) == sorted((place, number) for place in range(many) for number in range(3))
    for place in range(many):
        assert [number for own, number in found if own == place] == [0, 1, 2]
    assert sorted(streams.ended) == list(range(many))


@pytest.mark.parametrize("many", [1, 3])
def test_an_error_or_a_reader_who_leaves_ends_them_all(many):
    async def failing(streams: Streams):
        async for _ in merged([streams.one(place, 0.001, 100, breaks=place == 0) for place in range(many)]):
            pass

    streams = Streams()
    with pytest.raises(ValueError, match="0"):
        asyncio.run(failing(streams))
    assert sorted(streams.ended) == list(range(many))

    async def left(streams: Streams):
        async with aclosing(merged([streams.one(place, 0.001, 100) for place in range(many)])) as both:
            async for _ in both:
                break
            await asyncio.sleep(0.01)  # the others have begun as well
        assert sorted(streams.ended) == list(range(many))

    asyncio.run(left(Streams()))


def test_the_first_error_waits_until_the_others_have_ended():
    ended = []

    async def work(seconds: float, breaks: bool = False):
        try:
            await asyncio.sleep(seconds)
            if breaks:
                raise ValueError(f"work {seconds:.0f}")
            return seconds
        finally:
            ended.append(seconds)

    async def run(*works):
        return await all_of(list(works))

    assert asyncio.run(run(work(0.02), work(0.01))) == [0.02, 0.01]
    ended.clear()
    with pytest.raises(ValueError, match="work 0"):
        asyncio.run(run(work(5), work(0.01, breaks=True)))
    assert ended == [0.01, 5]


def test_work_ends_when_its_client_goes():
    ended = []

    async def work():
        try:
            await asyncio.sleep(5)
        finally:
            ended.append(True)

    async def gone():
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def stays():
        await asyncio.sleep(5)

    async def quick():
        return 7

    assert asyncio.run(while_connected(gone, work())) is None
    assert ended == [True]
    assert asyncio.run(while_connected(stays, quick())) == 7

    async def breaks():
        raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        asyncio.run(while_connected(stays, breaks()))


def test_the_gate_counts_and_tells_how_long_answers_take():
    gate = Gate(3)
    gate.enter(2)
    with pytest.raises(Busy) as busy:
        gate.enter(2)
    assert (busy.value.after, gate.inside) == (1, 2)
    gate.enter(1)
    for _ in range(3):
        gate.leave(1, 7.2)
    gate.enter(3)
    with pytest.raises(Busy) as later:
        gate.enter(1)
    assert later.value.after == 8  # the median of 1, 7.2, 7.2, 7.2
    with pytest.raises(Refused, match="more answers than the server holds") as never:
        gate.enter(4)
    assert never.value.status == 400


def test_a_body_is_counted_while_it_is_read_and_refused_once():
    asked, refused = [], []

    async def app(scope, receive, send):
        while True:
            message = await receive()
            asked.append(len(message["body"]))
            if not message["more_body"]:
                return

    async def refuse(error, scope, receive, send):
        refused.append(error.status)

    async def run(length: int, chunks: int):
        left = iter([{"type": "http.request", "body": b"x" * length, "more_body": True}] * chunks)

        async def receive():
            return next(left, {"type": "http.request", "body": b"", "more_body": False})

        await BodyLimit(app, 100, refuse)({"type": "http", "headers": []}, receive, None)

    asyncio.run(run(25, 4))
    assert (sum(asked), refused) == (100, [])
    asked.clear()
    asyncio.run(run(25, 1000))
    assert (sum(asked), refused) == (100, [413])
