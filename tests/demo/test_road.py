"""The demo end to end, with less text and fewer steps: from nothing to a report and answers; a second run reuses all of it."""

from __future__ import annotations

import pytest

from asterism.core.corpus import Corpus, read_corpus
from asterism.core.errors import DataError
from asterism.demo import road
from asterism.demo.corpus import build_corpus, write_corpus
from asterism.models.library import Library


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(road, "SHAPE", {"hidden": 32, "blocks": 2, "vocabulary": 512})
    few = dict(steps=3, batch_size=2, max_length=32)
    monkeypatch.setattr(road, "GENERALIST", road.GENERALIST.changed(**few))
    monkeypatch.setattr(road, "SPECIALIST", road.SPECIALIST.changed(**few))
    monkeypatch.setattr(road, "PROBES", 4)
    monkeypatch.setattr(road, "build_corpus", lambda seed: build_corpus(seed, train=20, heldout=3, cross=1))


def test_from_nothing_to_a_report_and_again_in_no_time(tmp_path):
    said: list[str] = []
    made = road.run_demo(tmp_path, say=said.append)
    assert [line.split(":")[0] for line in said] == [
        "Text",
        "Generalist",
        *["Specialist"] * 4,
        "Index",
        "Diagnosis",
        "Evaluation",
        "Answers",
    ]
    assert Library.open(made.library).names == ("medical", "legal", "code", "science")
    assert made.diagnosis.domains == ("medical", "legal", "code", "science")
    assert {row["protocol"] for row in made.results["table"]} == {"whole", "continuation"}
    assert {row["task"] for row in made.results["table"]} == {"single", "cross"}
    assert "<svg" in made.report.read_text("utf-8")
    assert len(made.answers) == 3
    assert all(sum(found["shares"].values()) + found["generalist"] == pytest.approx(1, abs=1e-5) for found in made.answers)

    weights = list(made.library.rglob("model.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in [*weights, tmp_path / "results.json"]}
    again = road.run_demo(tmp_path)
    assert len(weights) == 5
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.results == made.results
    assert again.answers == made.answers


def test_on_ones_own_text_with_other_domains(tmp_path):
    corpus = write_corpus(tmp_path / "made", train=20, heldout=3, cross=1)
    assert corpus.cross
    for path in (tmp_path / "made").iterdir():
        if "medical" in path.name or "code" in path.name or "legal" in path.name:
            path.rename(path.with_name(path.name.replace("medical", "cooking").replace("code", "gardening").replace("legal", "law")))
    for path in (tmp_path / "made").glob("cross.*"):
        path.unlink()
    made = road.run_demo(tmp_path / "out", [tmp_path / "made"])
    assert set(Library.open(made.library).names) == {"science", "cooking", "gardening", "law"}
    assert {row["task"] for row in made.results["table"]} == {"single"}


def test_probes_of_a_domain_without_training_text_are_left_out(tmp_path):
    write_corpus(tmp_path / "made", train=20, heldout=3, cross=1)
    for path in (tmp_path / "made").glob("code.train*"):
        path.unlink()
    made = road.run_demo(tmp_path / "out", [tmp_path / "made"])
    groups = {row["group"] for row in made.results["losses"]}
    assert "medical-legal" in groups
    assert not any("code" in group for group in groups)


def test_too_few_domains_are_told(tmp_path):
    write_corpus(tmp_path, train=4, heldout=1, cross=1)
    for path in tmp_path.iterdir():
        if not path.name.startswith(("general", "legal")):
            path.unlink()
    assert isinstance(read_corpus(tmp_path), Corpus)
    with pytest.raises(DataError, match="general text and two domains"):
        road.run_demo(tmp_path / "out", [tmp_path])
