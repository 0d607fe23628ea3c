"""The experiments' tiny setting: the same road as the numbers in the docs, on made-up text."""

from __future__ import annotations

import json

import pytest

from asterism.core.corpus import read_corpus
from asterism.demo.corpus import write_corpus
from experiments.compose.__main__ import drawn_probes, main
from experiments.compose.choose import validation_probes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder, train=40, heldout=42, cross=30)
    return folder


def test_composition_on_text_from_models_to_pooled_results(data, tmp_path):
    asked = ["--data", str(data), "--scale", "pocket", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--seeds", "42", "43"]
    main(asked)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert results["seeds"] == [42, 43]
    row = next(
        r
        for r in results["table"]
        if (r["seed"], r["candidate"], r["rival"], r["task"], r["group"]) == ("all", "default", "generalist", "cross", "all")
    )
    assert row["n"] == 6
    assert (tmp_path / "runs" / "pocket" / "report.html").stat().st_size > 10_000
    before = (tmp_path / "runs" / "pocket" / "seed-43" / "evaluation" / "results.json").stat().st_mtime_ns
    main(asked)
    assert (tmp_path / "runs" / "pocket" / "seed-43" / "evaluation" / "results.json").stat().st_mtime_ns == before


def test_validation_and_test_probes_share_nothing(data):
    corpus = read_corpus(data)
    tested = {(probe.group, probe.id) for probe in drawn_probes(corpus, "lab")}
    validated = {(probe.group, probe.id) for probe in validation_probes(corpus)}
    assert len(tested) == 160 + 150
    assert validated
    assert not tested & validated
