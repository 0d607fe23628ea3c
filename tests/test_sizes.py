"""Sub-domains and library sizes: the division tells topics apart, libraries nest, and the rows are what the evaluation says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from asterism.core.corpus import GENERAL, read_corpus
from asterism.core.errors import DataError, SettingsError
from asterism.demo.corpus import write_corpus
from asterism.evaluate.results import read_results
from experiments.constellation import sizes
from experiments.constellation.rung import DOMAINS, rungs
from experiments.constellation.subdomains import split

TOPICS = {
    "sea": ["harbour", "anchor", "vessel", "captain", "tide", "mast", "cargo", "sailor", "keel", "rigging"],
    "kitchen": ["oven", "butter", "flour", "whisk", "recipe", "saucepan", "garlic", "simmer", "pastry", "spoon"],
    "garden": ["tulip", "compost", "hedge", "prune", "seedling", "orchard", "trellis", "shovel", "blossom", "weeds"],
}


def talk(topic: str, n: int) -> str:
    words = TOPICS[topic]
    return f"there was the {words[n % 10]} and {words[(3 * n + 1) % 10]} with {words[(7 * n + 2) % 10]} near {words[(n + 5) % 10]}"


def test_a_split_finds_topics_and_places_new_texts():
    known = [(topic, n) for topic, count in (("sea", 30), ("kitchen", 20), ("garden", 12)) for n in range(count)]
    found = split([talk(*each) for each in known], 3)
    at = found.nearest([talk(*each) for each in known])
    assert [set(at[[topic == name for topic, _ in known]]) for name in ("sea", "kitchen", "garden")] == [{0}, {1}, {2}]  # largest first
    assert found.nearest(["a recipe for pastry with butter", "the captain lost his anchor"]).tolist() == [1, 0]
    assert found.nearest(["a recipe for pastry with butter"], among=[0, 2])[0] in (0, 2)
    told = found.terms([talk(*each) for each in known])
    assert [set(words) <= set(TOPICS[name]) for words, name in zip(told, ("sea", "kitchen", "garden"), strict=True)] == [True] * 3
    assert found.nearest(["xyz"]).tolist() == [0]


def test_a_split_is_the_same_each_time():
    texts = [talk(topic, n) for topic in TOPICS for n in range(15)]
    np.testing.assert_array_equal(split(texts, 3).nearest(texts), split(texts, 3).nearest(texts))


def test_what_cannot_be_divided():
    with pytest.raises(DataError, match="Too few texts"):
        split([talk("sea", n) for n in range(5)], 3)
    with pytest.raises(DataError, match="share too few words"):
        split(["nothing"] * 40, 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_corpus(folder, train=40, heldout=12, cross=6)
    return read_corpus(folder)


def test_libraries_nest_and_their_probes_too(corpus):
    domains = sizes.divided(corpus, 8)
    assert domains.names(2) == ("medical_1", "legal_1")
    assert domains.names(8)[:5] == ("medical_1", "legal_1", "code_1", "science_1", "medical_2")
    assert list(domains.train)[-1] == GENERAL
    for domain in DOMAINS:
        own = [domains.train[f"{domain}_{n}"] for n in (1, 2)]
        assert sorted(own[0] + own[1]) == sorted(corpus.train[domain])
        assert len(own[0]) >= len(own[1]) > 0
    asked = {size: domains.asked(size) for size in (2, 4, 8)}
    ids = {size: {probe.id for probe in tested} for size, (tested, _) in asked.items()}
    assert ids[2] < ids[4] < ids[8]
    for size, (tested, validated) in asked.items():
        assert ids[size].isdisjoint(probe.id for probe in validated)
        assert {name for probe in tested for name in probe.domains} <= set(domains.names(size))
    assert {probe.group for probe in asked[2][0] if probe.is_cross} == {"medical_1-legal_1"}
    cross = {size: {probe.id for probe in tested if probe.is_cross} for size, (tested, _) in asked.items()}
    assert len(cross[4]) == 36
    assert cross[4] == cross[8]
    assert any(probe.domains[0].endswith("_2") for probe in asked[8][0] if probe.is_cross)


def test_task_arithmetic_gets_scales_for_its_number_of_deltas():
    rung = rungs("pocket")[0]
    assert sizes.evaluation_settings(rung, 2, 42).task_arithmetic == (0.3, 0.5, 1.0, 2.0)
    assert sizes.evaluation_settings(rung, 32, 42).task_arithmetic == (0.03125, 0.0625, 0.125, 0.3, 0.5, 1.0)


@pytest.mark.parametrize("wrong", [[], [1, 2], [4, 6], [2, 9]])
def test_sizes_that_do_not_nest(corpus, tmp_path, wrong):
    with pytest.raises(SettingsError, match="Not sizes of nested libraries"):
        sizes.run(rungs("pocket")[0], corpus, tmp_path, [42], sizes=wrong)


def test_from_text_to_rows_and_again(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "TESTED", 2)
    monkeypatch.setattr(sizes, "CROSS", 1)
    monkeypatch.setattr(sizes, "VALIDATED", 4)
    monkeypatch.setattr(sizes, "CROSS_VALIDATED", 1)
    monkeypatch.setattr(sizes, "TIMED", 1)
    seen = []
    monkeypatch.setattr(sizes, "calibrate", lambda library, constellation, probes, settings: seen.append(probes) or constellation)
    rung = rungs("pocket")[0]
    rows = sizes.run(rung, corpus, tmp_path, [42], sizes=(2, 4))
    assert [(row["size"], row["seed"]) for row in rows] == [(2, 42), (4, 42)]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert all(seen)
    results, _ = read_results(tmp_path / "sizes" / "seed-42" / "size-04" / "evaluation")
    row = rows[1]
    for key, rival in sizes.RIVALS.items():
        theirs = next(
            each for each in results["table"] if (each["candidate"], each["rival"], each["protocol"], each["task"], each["group"])
            == ("default", rival, "whole", "cross", "all")
        )  # fmt: skip
        assert (row[f"rate_{key}"], row[f"rate_{key}_low"], row["loss"], row[f"{key}_loss"]) == pytest.approx(
            (theirs["rate"], theirs["low"], theirs["loss"], theirs["rival_loss"])
        )
    told = next(each for each in results["retrieval"] if each["space"] == "generalist, default's basis")
    assert [row[key] for key in ("top1", "top1_low", "top3")] == pytest.approx([told["top1"], told["top1_low"], told["top3"]])
    assert row["ta_scale"] in sizes.evaluation_settings(rung, 4, 42).task_arithmetic
    assert row["cost"]["passes"] == 4
    assert row["cost"]["fast_passes"] == 1
    assert row["cost"]["ensemble_passes"] == 4
    assert row["cost"]["library_mib"] == pytest.approx(2 * rows[0]["cost"]["library_mib"], rel=0.01)
    cells = {(cell["probes"], cell["protocol"], cell["task"], cell["candidate"]): cell["n"] for cell in row["cells"]}
    assert len(cells) == 2 * 2 * 2 * len(sizes.CANDIDATES)
    assert cells["all", "whole", "single", "default"] == 8
    assert cells["common", "whole", "single", "default"] == 4
    assert (cells["all", "whole", "cross", "paper"], cells["common", "whole", "cross", "paper"]) == (6, 1)
    mark = tmp_path / "sizes" / "seed-42" / "size-04" / "evaluation" / "results.json"
    before = mark.stat().st_mtime_ns
    assert sizes.run(rung, corpus, tmp_path, [42], sizes=(2, 4)) == rows
    assert mark.stat().st_mtime_ns == before
    assert set(json.loads((tmp_path / "sizes" / "subdomains.json").read_text("utf-8"))) == {f"{domain}_1" for domain in DOMAINS}
    check_pooling(mark.parent, row)


def check_pooling(evaluation, row):
    """Another seed whose default always loses a nat more: rates of probes, not of measurements, and losses half-way."""
    results, scored = read_results(evaluation)
    cost = {"index_s": 1.0}
    other = [{**each, "seed": 43, "loss": each["loss"] + (each["candidate"] == "default")} for each in scored]
    theirs = {**results, "seeds": [43], "retrieval": [{**each, "seed": 43, "top1": 1.0} for each in results["retrieval"]]}
    pooled = sizes.rows_of([(4, results, scored, cost), (4, theirs, other, {"index_s": 3.0})], "pocket")
    assert [each["seed"] for each in pooled] == [42, 43, "all"]
    both = pooled[2]
    assert both["n"] == row["n"]
    assert both["loss"] == pytest.approx(row["loss"] + 0.5)
    assert pooled[1]["rate_generalist"] == 0
    assert both["rate_generalist"] == pytest.approx(row["rate_generalist"] / 2)
    assert both["top1"] == pytest.approx((row["top1"] + 1) / 2)
    assert both["cost"] == {"index_s": 2.0}
