"""`asterism rank`: the rank that Python finds, and errors in three lines."""

from __future__ import annotations

import pytest

from asterism.core.corpus import read_corpus
from asterism.evaluate.probes import by_group, validation_probes
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.library import Library
from asterism.serve.local.lowrank import least_rank

FEW = ("--single-per-domain", 1, "--max-length", 48, "--device", "cpu")


def test_rank_finds_what_python_finds(asterism, original, data):
    ran = asterism("rank", original, "--data", data, *FEW, "--nats", 1e-4, "--json")
    assert ran.code == 0, ran.err
    library = Library.open(original)
    probes = validation_probes(read_corpus(data), library.names, EvaluationSettings(single_per_domain=1), 20)
    texts = {name: own for name, own in by_group(probes).items() if name in library.names}
    want = least_rank(library, texts, nats=1e-4, max_length=48)
    assert ran.answer["rank"] == want.rank
    assert ran.answer["moved"] == {
        name: {str(rank): pytest.approx(far) for rank, far in moved.items()} for name, moved in want.moved.items()
    }
    assert set(ran.answer["moved"]) | set(ran.answer["unjudged"]) == set(library.names)


def test_people_see_the_table_and_the_command(asterism, original, data):
    told = asterism("rank", original, "--data", data, *FEW)
    assert told.code == 0, told.err
    assert "How far the loss moves" in told.out
    assert f"asterism serve {original} --rank" in told.out.replace("\n", "")


def test_without_texts_of_a_domain(asterism, original, data, tmp_path):
    (tmp_path / "cross.medical-legal.jsonl").write_text((data / "cross.medical-legal.jsonl").read_text())
    ran = asterism("rank", original, "--data", tmp_path, *FEW)
    assert ran.code == 2
    assert "held-out" in ran.err or "domain alone" in ran.err
