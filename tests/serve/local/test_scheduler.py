"""Each answer is its solo run, whoever comes and goes beside it; nobody waits for longer than a chunk; what fails, fails alone."""

from __future__ import annotations

import pytest
import torch

from asterism.compose.settings import CompositionSettings
from asterism.serve.jobs import Composition, Failed, Finished, Tokens
from tests import tiny
from tests.compose.conftest import random_mixture
from tests.serve.local.driving import Driver, alone, drawn_tokens, generated, job

WHO = (("full", "lora", "mlp"), None, ("lora", "mlp"), ("mlp",), ("full", "other"), ("other",), ("full", "lora", "mlp"))
WHERE = (CompositionSettings(), CompositionSettings(), CompositionSettings(layers=2), CompositionSettings(layers=(0, 2)))
LENGTHS = (5, 21, 1, 12, 3, 30, 12)


def crowd(library, **sampling):
    """Jobs of all lengths and kinds of mixtures, acting on all or some blocks."""
    jobs = []
    for place, names in enumerate(WHO):
        given = None if names is None else random_mixture(names, library.anatomy, place)
        composition = None if given is None else Composition(given, WHERE[place % len(WHERE)])
        jobs.append(job(f"{place}", drawn_tokens(place, LENGTHS[place]), composition, 3 + place, seed=place, **sampling))
    return jobs


def all_answered(driver, jobs) -> None:
    """Jobs come one after another while others run; places are scarce."""
    for one in jobs:
        driver.submit(one)
        driver.run(3)
    driver.run()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_greedy_answers_are_what_transformers_generates_alone(kinds, family):
    """Prompts in chunks, mixtures on all or some blocks, rows that join and leave, windows that slide."""
    library = kinds(family)
    driver, jobs = Driver.over(library, slots=3, chunk=8), crowd(library)
    all_answered(driver, jobs)
    for one in jobs:
        assert driver.answer(one.id) == generated(library, one), one.id
        last = driver.last(one.id)
        assert isinstance(last, Finished)
        assert (last.reason, last.prompt_tokens, last.completion_tokens) == ("length", len(one.tokens), one.sampling.max_tokens)


@pytest.mark.parametrize("execution", ["mixed", "materialised"])
def test_sampled_answers_are_their_solo_runs(kinds, execution):
    library = kinds("qwen2")
    with tiny.wide():
        jobs = [*crowd(library, temperature=1.3, top_p=0.9), *crowd(library)]
        jobs = [job(f"{n}", one.tokens, one.composition, 9, temperature=(0.0, 0.7, 1.5)[n % 3], top_p=(1.0, 0.8)[n % 2], seed=n)
                for n, one in enumerate(jobs)]  # fmt: skip
        driver = Driver.over(library, slots=5, chunk=8, execution=execution)
        all_answered(driver, jobs)
        answers = {one.id: driver.answer(one.id) for one in jobs}
        for one in jobs:
            assert answers[one.id] == alone(library, one), one.id
        assert len({tuple(answer) for answer in answers.values()}) > len(jobs) // 2


def test_the_same_prompt_asked_several_times_is_read_once(kinds):
    library = kinds("gpt2")
    driver = Driver.over(library)
    composition = Composition(random_mixture(("full", "lora"), library.anatomy, 0))
    jobs = [job(f"{seed}", drawn_tokens(0, 20), composition, 8, temperature=1.0, seed=seed) for seed in range(4)]
    passes = []
    chunk = driver.scheduler.forward.chunk
    driver.scheduler.forward.chunk = lambda *given, **more: passes.append(given[2].shape) or chunk(*given, **more)
    for one in jobs:
        driver.submit(one)
    driver.run()
    assert passes == [(1, 20)]
    assert len({tuple(driver.answer(one.id)) for one in jobs}) == 4
    assert driver.answer("2") == alone(library, jobs[2])


def test_an_answer_ends_at_its_ends_and_tells_so(kinds):
    library = kinds("gpt2")
    free = alone(library, job("a", drawn_tokens(1, 9), None, 12))
    end = free[4]
    driver = Driver.over(library)
    driver.submit(job("a", drawn_tokens(1, 9), None, 12, ends=frozenset({end})))
    driver.run()
    assert driver.answer("a") == free[: free.index(end) + 1]
    assert driver.last("a").reason == "stop"
    assert not driver.scheduler.running.rows
    assert not driver.scheduler.rows


def test_a_long_prompt_holds_running_answers_up_for_a_chunk_at_most(kinds):
    """Between two tokens of a running answer, at most one chunk of a prompt is read; a short prompt is not behind a long one."""
    library = kinds("gpt2")
    driver = Driver.over(library, chunk=8)
    driver.submit(job("running", drawn_tokens(0, 4), None, 60))
    driver.run(2)
    widths = []
    chunk = driver.scheduler.forward.chunk

    def counted(places, compositions, ids, start, **more):
        widths.append((len(driver.answer("running")), ids.numel()))
        return chunk(places, compositions, ids, start, **more)

    driver.scheduler.forward.chunk = counted
    driver.submit(job("long", drawn_tokens(1, 90), None, 4))
    driver.run(3)
    driver.submit(job("short", drawn_tokens(2, 5), None, 2))
    driver.run(4)
    assert isinstance(driver.told["short"][-1], Finished)
    assert not driver.told["long"]
    driver.run()
    assert len(widths) >= 12
    assert all(width <= 8 for _, width in widths)
    assert len({tokens for tokens, _ in widths}) == len(widths)


def test_the_others_go_on_where_one_is_cancelled_amid_them(kinds):
    library = kinds("gpt2")
    driver, jobs = Driver.over(library, slots=4, chunk=64), crowd(library)[:4]
    jobs = [job(one.id, one.tokens, one.composition, 12) for one in jobs]
    for one in jobs:
        driver.submit(one)
    driver.run(8)
    assert len(driver.scheduler.running.rows) == 4
    driver.scheduler.cancel(driver.scheduler.running.rows[0].job.id)
    driver.run()
    gone = [one.id for one in jobs if driver.last(one.id).reason == "cancelled"]
    assert len(gone) == 1
    assert all(driver.answer(one.id) == generated(library, one) for one in jobs if one.id not in gone)


def test_a_cancelled_answer_frees_its_place_at_once(kinds):
    library = kinds("gpt2")
    driver = Driver.over(library, slots=1, chunk=4)
    jobs = [job(name, drawn_tokens(n, 30), None, 50) for n, name in enumerate(("runs", "reads", "waits", "last"))]
    driver.submit(jobs[0])
    driver.run(12)
    driver.scheduler.cancel("runs")
    assert not driver.scheduler.running.rows
    driver.submit(jobs[1])
    driver.run(1)
    assert driver.scheduler.prefills
    driver.submit(jobs[2])
    driver.submit(jobs[3])
    driver.scheduler.cancel("reads")
    driver.scheduler.cancel("waits")
    driver.scheduler.cancel("nobody")
    driver.run()
    assert [driver.last(one.id).reason for one in jobs] == ["cancelled", "cancelled", "cancelled", "length"]
    assert driver.answer("reads") == driver.answer("waits") == []
    assert len(driver.answer("runs")) == driver.last("runs").completion_tokens > 2


@pytest.mark.parametrize("where", ["step", "chunk"])
def test_a_pass_that_raises_fails_the_rows_concerned_alone(kinds, where):
    library = kinds("llama")
    with tiny.wide():
        driver, jobs = Driver.over(library, chunk=64), crowd(library)
        forward = driver.scheduler.forward
        original, bad = getattr(forward, where), jobs[4].composition.key

        def raising(*given, **more):
            compositions = given[2] if where == "step" else given[1]
            if any(one is not None and one.key == bad for one in compositions):
                raise RuntimeError("/secret/path")
            return original(*given, **more)

        setattr(forward, where, raising)
        for one in jobs:
            driver.submit(one)
        driver.run()
        failed = [one.id for one in jobs if isinstance(driver.last(one.id), Failed)]
        assert failed == ["4"]
        assert "secret" not in str(driver.last("4").error)
        assert all(driver.answer(one.id) == generated(library, one) for one in jobs if one.id != "4")
        assert not driver.scheduler.running.rows


def test_scores_that_are_not_finite_fail_their_row_alone(kinds):
    library = kinds("gpt2")
    driver = Driver.over(library)
    jobs = [job(f"{n}", drawn_tokens(n, 6), Composition(random_mixture(("full", "other"), library.anatomy, n)), 9) for n in range(3)]
    forward = driver.scheduler.forward
    step = forward.step

    def spoilt(places, rows, compositions, *given):
        logits = step(places, rows, compositions, *given)
        for row, one in enumerate(compositions):
            if one.key == jobs[1].composition.key:
                logits[row, 5] = torch.nan
        return logits

    forward.step = spoilt
    for one in jobs:
        driver.submit(one)
    driver.run()
    assert "not finite" in str(driver.last("1").error)
    assert driver.answer("0") == generated(library, jobs[0])
    assert driver.answer("2") == generated(library, jobs[2])


def test_an_unknown_specialist_is_told(kinds):
    library = kinds("gpt2")
    driver = Driver.over(library)
    mixture = random_mixture(("full", "nobody"), library.anatomy, 0)
    driver.submit(job("a", (5, 6), Composition(mixture)))
    assert "nobody" in str(driver.last("a").error)


def test_a_removed_specialist_goes_on_in_the_rows_that_hold_it(tmp_path):
    library = tiny.tiny_library(tmp_path, dtype=torch.float64)
    driver = Driver.over(library)
    composition = Composition(random_mixture(("medical", "code"), library.anatomy, 0))
    one, late = job("a", drawn_tokens(0, 6), composition, 12), job("b", drawn_tokens(0, 6), composition, 12)
    want = generated(library, one)
    driver.submit(one)
    driver.run(4)
    driver.scheduler.executor.remove("code")
    driver.submit(late)
    driver.run()
    assert driver.answer("a") == want
    assert "code" in str(driver.last("b").error)


def test_memory_grows_and_is_given_back(kinds):
    """Rooms grow in buckets when answers get long, and go when nobody runs."""
    library = kinds("qwen2")
    driver = Driver.over(library, slots=20)
    rooms = set()
    for n in range(12):
        driver.submit(job(f"{n}", drawn_tokens(n, 4), None, 3 + n))
    driver.scheduler.running._places = None
    while driver.scheduler.busy:
        driver.scheduler.turn()
        if driver.scheduler.running._places is not None:
            rooms.add(driver.scheduler.running._places.rows)
    assert max(rooms) >= 12
    assert driver.scheduler.running._places is None
    assert all(len([e for e in driver.told[f"{n}"] if isinstance(e, Tokens)]) == 3 + n for n in range(12))
