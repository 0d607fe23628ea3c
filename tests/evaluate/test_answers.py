"""The evaluation of answers: figures against sums by hand, models and ensembles in one table, and a killed run."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError, SettingsError
from asterism.core.statistics import wilson
from asterism.evaluate.answerers import OfEnsemble, OfModel, Task
from asterism.evaluate.answers import evaluate_answers, summary
from asterism.evaluate.results import read_results
from asterism.evaluate.settings import AnswerSettings
from asterism.models.examples import Example
from asterism.models.responses import answers, response_losses
from tests.fuse.voices import voice

SETTINGS = AnswerSettings(max_new_tokens=5, scale="tiny", seed=7)
LABELS = [Example(f"The film was {word}. Good or bad?", " good" if word < "n" else " bad") for word in ("fine", "odd", "great", "poor")]
NAMES = [Example("Who is named? Ann met Bob.", " person: Ann; person: Bob"), Example("Who is named? Nobody.", " None")]
TASKS = [Task.of("films", LABELS), Task.of("names", NAMES)]


class Said:
    """Says what it is given."""

    def __init__(self, name: str, said: dict[str, list[str]], loss: float = 1.0) -> None:
        self.name, self.about, self.told, self.said, self.loss, self.calls, self.closed = name, f"{name} says", {"v": 1}, said, loss, [], 0

    def losses(self, task, settings):
        self.calls.append(task.name)
        return [torch.full((3,), self.loss + place) for place in range(len(task.examples))]

    def write(self, task, settings):
        return self.said[task.name]

    def close(self):
        self.closed += 1


RIGHT = {"films": [" good", "bad", " Good. ", " bad"], "names": ["person: Ann; person: Bob", "None"]}
HALF = {"films": [" good", "good", "", "bad"], "names": ["person: Ann; place: Bob", "None"]}


def row_of(rows, **wanted):
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found


def test_scores_are_accuracy_and_micro_f1_and_all_weighs_tasks_alike(tmp_path):
    results = evaluate_answers([Said("target", HALF), Said("fused", RIGHT, 0.5)], TASKS, SETTINGS, out=tmp_path)
    assert [(task["name"], task["mark"]) for task in results["tasks"]] == [("films", "label"), ("names", "items")]
    scores = {(row["candidate"], row["task"]): row for row in results["scores"]}
    assert [scores["target", task]["score"] for task in ("films", "names", "all")] == pytest.approx([0.5, 0.5, 0.5])
    assert [scores["fused", task]["score"] for task in ("films", "names", "all")] == [1, 1, 1]
    assert (scores["target", "all"]["n"], scores["target", "all"]["mark"]) == (6, "mean")
    assert scores["target", "films"]["loss"] == pytest.approx(np.mean([1, 2, 3, 4]))
    assert scores["target", "films"]["nats_per_character"] == pytest.approx(3 * 10 / sum(len(each.response) for each in LABELS))
    gain = row_of(results["gains"], candidate="fused", rival="target", task="films")
    assert (gain["gain"], gain["saved"]) == (0.5, 0.5)
    assert gain["saved_low"] == gain["saved_high"] == 0.5


def test_paired_rates_are_over_texts_with_wilsons_interval(tmp_path):
    results = evaluate_answers([Said("target", HALF), Said("fused", RIGHT, 0.5)], TASKS, SETTINGS, out=tmp_path)
    win = row_of(results["table"], candidate="fused", rival="target", protocol="answer", group="films")
    assert (win["n"], win["rate"], win["low"], win["high"]) == (4, *wilson(3, 4))
    assert row_of(results["table"], candidate="fused", rival="target", protocol="response", group="all")["rate"] == 1
    assert row_of(results["losses"], candidate="fused", protocol="response", group="names")["loss"] == 1.0
    kept, rows = read_results(tmp_path)
    assert kept == results
    assert row_of(rows, candidate="target", probe="names-0")["answer"] == "person: Ann; place: Bob"
    assert (row_of(rows, candidate="target", probe="names-0")["gained"], row_of(rows, candidate="fused", probe="names-1")["possible"]) == (
        2,
        0,
    )
    assert results["answers"][0] == {
        "task": "films", "prompt": LABELS[0].prompt, "wanted": " good", "answers": {"target": " good", "fused": " good"}
    }  # fmt: skip


def test_several_seeds_count_each_text_once(tmp_path):
    rows = []
    for seed, said in ((1, HALF), (2, RIGHT)):
        evaluate_answers([Said("target", said, seed)], TASKS[:1], SETTINGS.changed(seed=seed), out=tmp_path / str(seed))
        rows += read_results(tmp_path / str(seed))[1]
    found = row_of(summary(rows, "tiny")["scores"], seed="all")
    assert (found["n"], found["score"]) == (4, 0.75)
    assert found["loss"] == pytest.approx(np.mean([1.5, 2.5, 3.5, 4.5]))


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    class Killed(Said):
        def losses(self, task, settings):
            raise KeyboardInterrupt

    first = Said("target", HALF)
    with pytest.raises(KeyboardInterrupt):
        evaluate_answers([first, Killed("fused", RIGHT)], TASKS, SETTINGS, out=tmp_path)
    assert (first.calls, first.closed) == (["films", "names"], 1)
    again, second, other = Said("target", HALF), Said("fused", RIGHT), Said("more", RIGHT)
    evaluate_answers([again, second, other], TASKS, SETTINGS, out=tmp_path)
    assert (again.calls, second.calls, other.calls) == ([], ["films", "names"], ["films", "names"])
    assert not (tmp_path / ".parts").exists()


def test_a_finished_evaluation_is_not_repeated_and_another_one_is(tmp_path):
    first, again = Said("target", HALF), Said("target", HALF)
    results = evaluate_answers([first], TASKS, SETTINGS, out=tmp_path)
    assert evaluate_answers([again], TASKS, SETTINGS, out=tmp_path) == results
    assert (len(first.calls), again.calls) == (2, [])
    other = evaluate_answers([Said("target", RIGHT)], [Task.of("films", LABELS, "exact")], SETTINGS, out=tmp_path)
    assert other["tasks"][0]["mark"] == "exact"
    (tmp_path / "results.json").write_text("{")
    evaluate_answers([again], TASKS, SETTINGS, out=tmp_path)
    assert len(again.calls) == 2


def test_losses_alone_have_no_scores(tmp_path):
    results = evaluate_answers([Said("target", {}), Said("fused", {}, 0.5)], TASKS, SETTINGS.changed(write=False), out=tmp_path)
    assert {row["score"] for row in results["scores"]} == {None}
    assert row_of(results["gains"], task="all")["saved"] == 0.5
    assert {row["protocol"] for row in results["table"]} == {"response"}
    assert results["answers"] == []


def test_a_model_and_an_ensemble_stand_in_one_table(tmp_path):
    own, other = voice("tiny"), voice("larger")
    opened: list[str] = []

    def opening(task: str):
        opened.append(task)
        return own.model, own.tokenizer

    voices = {each.name: (lambda each=each: (each.model, each.tokenizer)) for each in (own, other)}
    twice = {"one": voices["tiny"], "two": voices["tiny"]}
    candidates = [
        OfModel("target", "alone", 1, opening),
        OfModel("each", "one a task", 2, opening, each=True),
        OfEnsemble("gac", voices, 3),
        OfEnsemble("unite", twice, 4),
    ]
    results = evaluate_answers(candidates, TASKS, SETTINGS, out=tmp_path)
    assert opened == ["films", "films", "names"]
    rows = {(row["candidate"], row["probe"]): row for row in read_results(tmp_path)[1]}
    losses, said = response_losses(own.model, own.tokenizer, LABELS), answers(own.model, own.tokenizer, LABELS, max_new_tokens=5)
    for place in range(4):
        for name in ("target", "each"):
            row = rows[name, f"films-{place}"]
            assert (row["nats"], row["answer"]) == (pytest.approx(float(losses[place].sum()), rel=1e-5), said[place])
        assert rows["gac", f"films-{place}"]["tokens"] == len(losses[place])
    assert "tiny + larger, all 2 run" in results["candidates"]["gac"]


def test_tasks_and_candidates_have_names_of_their_own(tmp_path):
    with pytest.raises(SettingsError, match="films"):
        evaluate_answers([Said("target", HALF)], [TASKS[0], TASKS[0]], out=tmp_path)
    with pytest.raises(SettingsError, match="one candidate or more"):
        evaluate_answers([], TASKS, out=tmp_path)
    with pytest.raises(DataError, match="row 2 has no prompt"):
        Task.of("texts", [LABELS[0], Example("", "text")])
    with pytest.raises(DataError, match="no examples"):
        Task.of("none", [])


def test_a_chat_template_is_for_models_and_ensembles_alike(tmp_path):
    own = voice("tiny")
    chatting = copy.deepcopy(own.tokenizer)
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    chatting.chat_template = turns + "{% if add_generation_prompt %}assistant: {% endif %}"
    single = OfModel("target", "alone", 1, lambda _task: (own.model, chatting))
    twice = OfEnsemble("gac", {name: lambda: (own.model, chatting) for name in ("one", "two")}, 2)
    evaluate_answers([single, twice], TASKS[:1], SETTINGS, out=tmp_path / "chat")
    rows = {(row["candidate"], row["probe"]): row for row in read_results(tmp_path / "chat")[1]}
    whole = response_losses(own.model, chatting, LABELS)
    for place, losses in enumerate(whole):
        one, two = (rows[name, f"films-{place}"] for name in ("target", "gac"))
        assert two["tokens"] == one["tokens"] - 1  # the line's end behind the end token is no part of an ensemble's answer
        assert two["nats"] == pytest.approx(float(losses[:-1].sum()), rel=1e-4)
        assert two["answer"] == one["answer"]
    plain = response_losses(own.model, chatting, LABELS, chat=False)
    assert plain[0].tolist() != whole[0].tolist()
