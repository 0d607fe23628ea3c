"""A question, its composition and the answer's text, whatever endpoint asks."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import AsterismError, DataError, SettingsError, UnknownName
from asterism.serve.asking import Asking, Question, Whole
from asterism.serve.errors import Away, Busy, Refused
from asterism.serve.schema import Extras
from asterism.serve.settings import ServeSettings
from tests.serve.conftest import TEXT
from tests.serve.scripted import BROKEN, Scripted

SAVED = Mixture.fixed({"legal": 1.0}, 16)


def recall(label: str):
    if label != "law":
        raise UnknownName("saved composition", label, ["law"])
    return SAVED, CompositionSettings(layers=1)


@pytest.fixture
def ask(served, scripted):
    """`ask(engine, question fields...)`: the told mixture and the whole answers."""

    def run(engine: Scripted | None = None, *, settings: ServeSettings | None = None, **fields) -> tuple[dict, list[Whole]]:
        async def both():
            asking = Asking(engine or scripted(), served, settings or ServeSettings(), recall)
            given = {"model": "tiny", "prompt": "The patient"} | fields
            tokens = await asking.tokens(given.pop("prompt"))
            try:
                async with aclosing(await asking.begin(Question(tokens=tokens, **given))) as answer:
                    return answer.told, await answer.whole()
            finally:
                assert asking.gate.inside == 0
                assert not asking.engine.running

        return asyncio.run(both())

    return run


def test_a_question_is_answered_under_the_mixture_chosen_for_it(ask, scripted):
    engine = scripted()
    told, (answer,) = ask(engine)
    assert (answer.text, answer.finish) == (TEXT, "stop")
    assert told["specialists"] == ["medical", "legal", "code"]
    assert told["shares"] == pytest.approx({"medical": 0.25, "legal": 0.25, "code": 0.25})
    assert (told["generalist"], told["mode"]) == (0.25, "evidence")
    (job,) = engine.jobs
    assert job.composition.key == told["key"]
    assert engine.wishes == [(job.tokens, job.wish)]
    assert (job.renew, job.sampling.seed) == (64, told["seed"])


def test_n_answers_choose_once_and_draw_with_seeds_that_follow(ask, scripted):
    engine = scripted()
    _, answers = ask(engine, n=3, seed=7)
    assert [answer.text for answer in answers] == [TEXT] * 3
    assert len(engine.wishes) == 1
    assert sorted(job.sampling.seed for job in engine.jobs) == [7, 8, 9]
    assert len({job.id for job in engine.jobs}) == 3


def test_the_generalist_and_specialists_are_asked_without_a_choice(ask, scripted):
    engine = scripted()
    told, _ = ask(engine, model="tiny-base")
    assert (told["mode"], told["generalist"], engine.jobs[0].composition) == ("base", 1.0, None)
    told, _ = ask(engine, model="tiny:code")
    assert told["shares"] == {"code": 1.0}
    told, _ = ask(engine, model="tiny@law")
    assert (told["shares"], told["layers"], told["mode"]) == ({"legal": 1.0}, 1, "saved")
    assert not engine.wishes
    assert [job.renew for job in engine.jobs] == [0, 0, 0]


def test_extras_reach_the_choice(ask, scripted):
    engine = scripted()
    told, _ = ask(engine, extras=Extras(top_k=1, mode="fast", layers=2, node_map="mean", exclude=["medical"], renew=0))
    (_, wish), (job,) = engine.wishes[0], engine.jobs
    assert (wish.settings.top_k, wish.settings.mode, wish.exclude) == (1, "fast", ("medical",))
    assert (job.composition.settings, job.renew) == (CompositionSettings(layers=2, node_map="mean"), 0)
    assert told["specialists"] == ["legal"]


def test_top_k_is_three_or_as_many_as_are_left(ask, scripted):
    engine = scripted()
    ask(engine, extras=Extras(exclude=["medical", "legal"]))
    assert engine.wishes[0][1].settings.top_k == 2


def test_a_fixed_mixture_is_taken_as_it_is_and_the_rest_is_the_generalists(ask, scripted):
    engine = scripted()
    told, _ = ask(engine, extras=Extras(mixture={"legal": 0.5, "code": 0.25}))
    assert (told["shares"], told["generalist"], told["mode"]) == ({"legal": 0.5, "code": 0.25}, 0.25, "fixed")
    assert not engine.wishes


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"model": "tinny"}, Refused, "did you mean 'tiny'"),
        ({"model": "tiny:medicine"}, Refused, "did you mean 'tiny:medical'"),
        ({"model": "tiny@las"}, UnknownName, "did you mean 'law'"),
        ({"extras": Extras(exclude=["medicine"])}, Refused, "did you mean 'medical'"),
        ({"extras": Extras(mixture={"medicine": 1.0})}, Refused, "did you mean 'medical'"),
        ({"extras": Extras(mixture={"medical": 0.8, "legal": 0.8})}, SettingsError, "do not sum to 1"),
        ({"extras": Extras(mixture={"medical": 0.8, "generalist": 0.1})}, SettingsError, "do not sum to 1"),
        ({"extras": Extras(mixture={"medical": 1.0}, top_k=2)}, Refused, "top_k has no use"),
        ({"model": "tiny-base", "extras": Extras(mode="fast")}, Refused, "mode has no use"),
        ({"model": "tiny:code", "extras": Extras(renew=8)}, Refused, "renew has no use"),
        ({"extras": Extras(top_k=5)}, SettingsError, "top_k is more than there are specialists"),
        ({"extras": Extras(exclude=["medical", "legal", "code", "science"])}, SettingsError, "No specialist is left"),
        ({"extras": Extras(layers=4)}, SettingsError, "fewer blocks"),
        ({"extras": Extras(layers=[0, 3])}, SettingsError, "No such block"),
        ({"extras": Extras(node_map="per_module", mode="fast")}, SettingsError, "per_module"),
        ({"max_tokens": 128}, Refused, "leaves no room"),
        ({"prompt": [1, 320]}, DataError, "0 to 319"),
        ({"prompt": []}, DataError, "at least one"),
        ({"prompt": "\ud800"}, DataError, "not valid Unicode"),
        ({"n": 300}, Refused, "more answers than the server holds"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_mend(ask, fields, error, match):
    with pytest.raises(error, match=match):
        ask(**fields)


def test_nobody_renews_where_the_engine_cannot(ask, scripted, monkeypatch):
    engine = scripted()
    facts = engine.facts.__class__(**{**engine.facts.__dict__, "renews": False})
    monkeypatch.setattr(Scripted, "facts", facts)
    ask(engine)
    assert engine.jobs[0].renew == 0
    with pytest.raises(SettingsError, match="does not renew"):
        ask(engine, extras=Extras(renew=8))


def test_an_answer_ends_before_a_stop_string_and_its_row_is_free(ask, scripted):
    engine = scripted(endless=True)
    _, (answer,) = ask(engine, stops=("café",), max_tokens=100)
    assert (answer.text, answer.finish) == (" the patient was given ", "stop")
    assert answer.written < 40
    assert engine.cancelled == [engine.jobs[0].id]


def test_an_answer_ends_at_its_length(ask):
    _, (answer,) = ask(max_tokens=3)
    assert (answer.finish, answer.written) == ("length", 3)


def test_without_max_tokens_all_the_room_is_there(ask, scripted):
    engine = scripted()
    ask(engine, prompt=[1] * 100)
    ask(engine, prompt=[1] * 100, usual=16)
    assert [job.sampling.max_tokens for job in engine.jobs] == [28, 16]
    with pytest.raises(Refused, match="leaves no room"):
        ask(engine, prompt=[1] * 128)
    boundless = scripted(room=None)
    with pytest.raises(Refused, match="no limit of its own"):
        ask(boundless)


def test_renewed_mixtures_are_told_with_their_place(ask):
    _, (answer,) = ask(extras=Extras(renew=4))
    assert [one["after"] for one in answer.renewed] == list(range(4, answer.written, 4))
    assert all(one["shares"] == {"science": 1.0} for one in answer.renewed)
    assert all(one["losses"] == {"science": 2.0, "generalist": 2.5} for one in answer.renewed)


def test_a_step_that_fails_fails_its_answer_and_no_other(served, scripted):
    engine = scripted(breaks=lambda job, step: step == 2 and job.sampling.seed == 1)

    async def both():
        asking = Asking(engine, served, ServeSettings(), recall)

        async def one(seed: int) -> str:
            async with aclosing(await asking.begin(Question(tokens=(1, 2), model="tiny", seed=seed))) as answer:
                return (await answer.whole())[0].text

        return await asyncio.gather(one(0), one(1), one(2), return_exceptions=True)

    first, second, third = asyncio.run(both())
    assert (first, second, third) == (TEXT, BROKEN, TEXT)


def test_one_failing_answer_of_several_ends_them_all(ask, scripted):
    engine = scripted(endless=True, pause=0.001, breaks=lambda job, step: job.sampling.seed == 8 and step == 3)
    with pytest.raises(AsterismError, match="A step failed"):
        ask(engine, n=3, seed=7, max_tokens=100)


def test_a_full_house_is_told_when_to_come_again(served, scripted):
    async def crowded():
        asking = Asking(scripted(endless=True, pause=0.01), served, ServeSettings(most_jobs=2), recall)
        answer = await asking.begin(Question(tokens=(1,), model="tiny", n=2))
        with pytest.raises(Busy) as busy:
            await asking.begin(Question(tokens=(1,), model="tiny"))
        await answer.aclose()
        await (await asking.begin(Question(tokens=(1,), model="tiny"))).aclose()
        return busy.value

    assert asyncio.run(crowded()).after >= 1


def test_a_reader_who_leaves_frees_the_row_at_once(served, scripted):
    engine = scripted(endless=True, pause=0.001)

    async def left():
        asking = Asking(engine, served, ServeSettings(), recall)
        async with aclosing(await asking.begin(Question(tokens=(1,), model="tiny", n=2))) as answer:
            async for _ in answer:
                break
            assert len(engine.running) == 2
        assert not engine.running
        assert asking.gate.inside == 0

    asyncio.run(left())


def test_a_reader_who_is_cancelled_while_the_mixture_is_chosen_leaves_no_place_taken(served, scripted):
    async def cancelled():
        asking = Asking(scripted(pause=5), served, ServeSettings(), recall)
        task = asyncio.create_task(asking.begin(Question(tokens=(1,), model="tiny")))
        await asyncio.sleep(0.01)
        assert asking.gate.inside == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asking.gate.inside == 0

    asyncio.run(cancelled())


def test_nothing_is_answered_while_the_server_is_away(served, scripted):
    async def away():
        asking = Asking(scripted(), served, ServeSettings(), recall)
        asking.away = Away("The server is stopping.", "a signal")
        with pytest.raises(Away):
            await asking.begin(Question(tokens=(1,), model="tiny"))

    asyncio.run(away())


def test_what_goes_wrong_before_the_first_part_is_raised_by_ready(served, scripted):
    async def early():
        asking = Asking(scripted(breaks=lambda job, step: True), served, ServeSettings(), recall)
        async with aclosing(await asking.begin(Question(tokens=(1,), model="tiny"))) as answer:
            with pytest.raises(AsterismError, match="A step failed"):
                await answer.ready()
        whole = Asking(scripted(), served, ServeSettings(), recall)
        async with aclosing(await whole.begin(Question(tokens=(1,), model="tiny"))) as answer:
            return (await (await answer.ready()).whole())[0].text

    assert asyncio.run(early()) == TEXT
