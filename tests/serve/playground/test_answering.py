"""Views of growing answers: whole at the end, told errors, rows freed when nobody looks any more."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from asterism.core.errors import StorageError
from asterism.serve.asking import Asking
from asterism.serve.playground import answering
from asterism.serve.playground.answering import answers
from asterism.serve.playground.pictures import Map
from asterism.serve.playground.wishes import NOBODY, Wishes
from asterism.serve.settings import ServeSettings

TEXT = " the patient was <b>given</b> bread."


def asking(engine, served, **settings) -> Asking:
    return Asking(engine, served, ServeSettings(**settings), lambda label: None)  # type: ignore[arg-type]


def views(asked, wishes):
    async def all_of():
        return [view async for view in answers(asked, Map(asked.served.library), wishes)]

    return asyncio.run(all_of())


def test_the_last_view_is_whole(explaining, served):
    asked = asking(explaining(TEXT), served)
    found = views(asked, Wishes(text="Is it urgent?", rival="legal", top_k=2))
    last = found[-1]
    assert last.answers == (TEXT,) * 3
    assert "The mixture" in last.mixture
    assert "legal" in last.rival_mixture
    assert "<svg" in last.layers
    assert "this text" in last.place
    assert "tokens in" in last.status
    models = [job.composition.mixture.shares if job.composition else None for job in asked.engine.jobs]
    assert sorted(models, key=str) == sorted([{"medical": 0.375, "legal": 0.375}, None, {"legal": 1.0}], key=str)
    assert asked.gate.inside == 0
    alone = views(asked, Wishes(text="Is it urgent?", rival=NOBODY))[-1]
    assert alone.answers == (TEXT, TEXT, "")
    assert alone.rival_mixture == ""


def test_answers_are_seen_while_they_grow(explaining, served, monkeypatch):
    monkeypatch.setattr(answering, "OFTEN", 0.0)
    found = views(asking(explaining(TEXT, pause=0.002), served), Wishes(text="Is it urgent?"))
    sizes = [len(view.answers[0]) for view in found]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5


def test_a_renewed_mixture_is_shown(explaining, served):
    asked = asking(explaining(TEXT, endless=True), served)
    last = views(asked, Wishes(text="x y", most=70))[-1]
    assert "renewed after 64 tokens" in last.mixture
    assert "science" in last.mixture
    assert "2.50" in last.mixture  # what it lost when it was chosen


@pytest.mark.parametrize(
    "switches", [{"breaks": lambda job, step: step == 3}, {"refuses": StorageError("Gone.", met="/secret/place/x", mend="z")}]
)
def test_errors_are_told_without_paths_and_leave_no_row(explaining, served, switches):
    asked = asking(explaining(TEXT, **switches), served)
    last = views(asked, Wishes(text="Is it urgent?"))[-1]
    assert 'role="alert"' in last.status
    assert "secret" not in last.status
    assert asked.gate.inside == 0
    assert not asked.engine.running


def test_a_fault_of_our_own_is_told_plainly(explaining, served, monkeypatch, caplog):
    async def broken(*given):
        raise ZeroDivisionError("at /secret/place")

    engine = explaining(TEXT)
    monkeypatch.setattr(engine, "explain", broken)
    last = views(asking(engine, served), Wishes(text="Is it urgent?"))[-1]
    assert last.answers[0] == TEXT
    assert "Something went wrong" in last.status
    assert "secret" not in last.status
    assert "ZeroDivisionError" in caplog.text


def test_a_busy_server_lets_none_of_the_three_in(explaining, served):
    asked = asking(explaining(TEXT), served, most_jobs=2)
    last = views(asked, Wishes(text="Is it urgent?"))[-1]
    assert "busy" in last.status
    assert asked.gate.inside == 0


def test_who_stops_looking_frees_the_rows(explaining, served):
    asked = asking(explaining(TEXT, endless=True, pause=0.002), served)

    async def some():
        async with aclosing(answers(asked, Map(served.library), Wishes(text="Is it urgent?", most=100))) as views:
            async for view in views:
                if view.answers[0]:
                    assert len(asked.engine.running) == 3
                    break
        assert not asked.engine.running
        assert asked.gate.inside == 0

    asyncio.run(some())
