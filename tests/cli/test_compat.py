"""`asterism compat`: the same figures as in Python, and errors in three lines."""

from __future__ import annotations

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


def test_what_is_wrong_is_told(asterism, original, data, tmp_path):
    for given, wrong in (
        (("medicl", "legal", "--data", data), "did you mean 'medical'"),
        (("cod", "medicl", "--data", data), "did you mean 'code'"),
        (("legal", "legal", "--data", data), "two ends"),
        (("legal", "code", "--data", tmp_path), "No text was found"),
        (("legal", "code"), "--data"),
        (("legal", "code", "--data", data, "--points", 2), "CompatSettings.points"),
    ):
        ran = asterism("compat", original, *given)
        assert ran.code == 2
        assert wrong in ran.err
