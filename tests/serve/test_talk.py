"""A conversation in one's own process: turns, who answers, what is broken off."""

from __future__ import annotations

import pytest

from asterism.core.errors import SettingsError, UnknownName
from asterism.serve.talk.settings import TalkSettings
from asterism.serve.talk.talk import Talk
from tests.serve.conftest import TEXT
from tests.serve.scripted import BROKEN


@pytest.fixture
def talk(scripted, served):
    with Talk(scripted(), served, TalkSettings(system="Be brief.", top_k=2)) as made:
        yield made
    assert made._asking.engine.closed


def told(talk, text):
    mixture, *pieces = talk.say(text)
    return mixture, "".join(piece for piece in pieces if isinstance(piece, str))


def test_turns_are_read_with_what_was_said_before(talk, served):
    mixture, answer = told(talk, "Is it urgent?")
    assert answer == TEXT
    assert mixture["shares"] == {"medical": 0.375, "legal": 0.375}
    told(talk, "And now?")
    job = talk._asking.engine.jobs[-1]
    said = ["Be brief.", "Is it urgent?", TEXT, "And now?"]
    assert served.tokenizer.decode(job.tokens) == "\n\n".join(said)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 2


def test_who_answers(talk):
    talk.choose("legal")
    assert told(talk, "Who?")[0]["shares"] == {"legal": 1.0}
    talk.choose("generalist")
    assert told(talk, "Who?")[0]["generalist"] == 1.0
    with pytest.raises(UnknownName, match="'legal'"):
        talk.choose("leagl")
    talk.choose("all")
    talk.settings = talk.settings.changed(top_k=9)
    with pytest.raises(SettingsError, match="9"):
        told(talk, "Who?")


def test_renewed_mixtures_are_told_where_they_begin(scripted, served):
    with Talk(scripted(endless=True), served, TalkSettings(renew=4, max_new_tokens=10)) as talk:
        mixtures = [one for one in talk.say("Go on") if isinstance(one, dict)]
    assert [one.get("after") for one in mixtures] == [None, 4, 8]


def test_what_is_broken_off_stays_said_and_frees_its_row(scripted, served):
    with Talk(scripted(endless=True, pause=0.005), served, TalkSettings(max_new_tokens=100)) as talk:
        answer = talk.say("Go on")
        next(answer)
        piece = next(answer)
        answer.close()
        assert not talk._asking.engine.running
        assert talk._asking.gate.inside == 0
        assert talk.turns == [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": piece}]


def test_what_fails_was_never_said(scripted, served):
    with Talk(scripted(breaks=lambda job, step: step == 2), served, TalkSettings()) as talk:
        with pytest.raises(type(BROKEN), match="A step failed"):
            told(talk, "Go on")
        assert talk.turns == []
        with pytest.raises(Exception, match="no room"):
            told(talk, "word " * 200)
        assert talk.turns == []
        assert talk._asking.gate.inside == 0


def test_an_engine_that_cannot_start_leaves_no_thread(scripted, served):
    import threading

    before = threading.active_count()
    with pytest.raises(type(BROKEN)):
        Talk(scripted(starts=BROKEN), served, TalkSettings())
    assert threading.active_count() == before
