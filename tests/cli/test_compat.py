"""`asterism compat`: the same figures as in Python, and errors in three lines."""

from __future__ import annotations

import json
import shutil

import pytest

from asterism.constellation.settings import SimilaritySettings
from asterism.core.corpus import read_corpus
from asterism.models.library import Library
from asterism.route.compat import compat, pair_texts
from asterism.route.settings import CompatSettings
from tests import tiny

FEW = ("--points", 3, "--max-length", 48, "--texts", 6, "--device", "cpu")


def test_compat_measures_what_python_measures(asterism, original, data):
    ran = asterism("compat", original, "medical", "legal", "--data", data, *FEW, "--site", "block", "--slerp", "--json")
    assert ran.code == 0, ran.err
    target, general = pair_texts(read_corpus(data), "medical", "legal", 6)
    assert sorted(target) == sorted(text for text, pair in tiny.CROSS if set(pair) == {"medical", "legal"})
    settings = CompatSettings(points=3, max_length=48, slerp=True)
    comparing = SimilaritySettings(site="block", max_length=48)
    want = compat(Library.open(original), "medical", "legal", target, general=general, settings=settings, comparing=comparing)
    found = ran.answer
    assert found["paths"] == [pytest.approx(row) for row in want.to_dict()["paths"]]
    assert found["deltas"]["mlp"] == want.deltas["mlp"].to_dict()
    assert found["similar"] == pytest.approx(want.similar)
    assert (found["advice"], found["reason"]) == (want.advice, want.reason)


def test_people_see_tables_the_advice_and_a_page(asterism, original, data, tmp_path):
    told = asterism("compat", original, "medical", "generalist", "--data", data, *FEW, "--report", tmp_path / "page.html")
    assert told.code == 0, told.err
    assert "Within medical, target texts" in (tmp_path / "page.html").read_text()
    for part in (
        "Losses on",
        "The path from generalist to medical",
        "barrier:",
        "Deltas from the generalist",
        "CKA on target texts",
        "CKA within generalist",
        "advice:",
    ):
        assert part in told.out


def test_a_task_of_prompts_and_responses_is_for_both(asterism, original, tmp_path):
    task, one, page = (tmp_path / name for name in ("task.jsonl", "one.jsonl", "page.html"))
    rows = [
        json.dumps({"prompt": f"Which dose is lawful in case {number}?", "response": "That of the statute."}) + "\n" for number in range(5)
    ]
    task.write_text("".join(rows))
    one.write_text(rows[0])
    found = asterism("compat", original, "medical", "legal", "--data", task, "--points", 3, "--paper", "--json").answer
    assert found["texts"] == 5
    assert found["losses"]["medical"]["low"] < found["losses"]["medical"]["high"]
    settings = found["similarity"]["target"]["settings"]
    assert (settings["estimator"], settings["unit"], settings["max_length"]) == ("biased", "text", 1024)
    people = asterism("compat", original, "medical", "legal", "--data", one, "--points", 3, "--report", page)
    assert people.code == 0, people.err
    assert "Losses on 1 text, nats" in people.out
    assert "(–), at" in people.out
    assert "The text is halved" in page.read_text()


def test_along_training_is_measured_where_checkpoints_were_kept(asterism, library, data, tmp_path):
    asked = ("compat", library, "medical", "legal", "--data", data, *FEW, "--along")
    ran = asterism(*asked)
    assert ran.code == 2
    assert "no checkpoints of the same step" in ran.err
    for name in ("medical", "legal"):
        for step in (5, 10):
            kept = library / name / "checkpoints" / f"checkpoint-{step}"
            shutil.copytree(library / name, kept, ignore=shutil.ignore_patterns("checkpoints"))
    rows = asterism(*asked, "--report", tmp_path / "page.html", "--json").answer["along"]
    assert [row["step"] for row in rows] == [5, 10]
    assert rows[0]["losses"].keys() == {"medical", "legal"}
    assert "Along their training" in (tmp_path / "page.html").read_text()
    assert "Along their training" in asterism(*asked).out


def test_what_is_wrong_is_told(asterism, original, data, tmp_path):
    for given, wrong in (
        (("medicl", "legal", "--data", data), "did you mean 'medical'"),
        (("cod", "medicl", "--data", data), "did you mean 'code'"),
        (("legal", "legal", "--data", data), "two ends"),
        (("legal", "code", "--data", tmp_path), "No text was found"),
        (("legal", "code"), "--data"),
        (("legal", "code", "--data", data, "--points", 2), "CompatSettings.points"),
        (("legal", "code", "--data", data, "--report", data), "a folder lies there"),
    ):
        ran = asterism("compat", original, *given)
        assert ran.code == 2
        assert wrong in ran.err
