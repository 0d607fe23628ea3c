"""The ladder's whole road on made-up text: every section of its results, resuming, sharing of passes, and rungs that diverge."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import product
from math import nan
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch

from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings
from asterism.core.corpus import Corpus, Probe, read_corpus
from asterism.core.errors import DataError, UnknownName
from asterism.core.statistics import wilson
from asterism.demo.corpus import write_corpus
from asterism.evaluate import calibrate
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.library import Library
from experiments.compact import write_compact
from experiments.constellation import __main__ as entry
from experiments.constellation import bench, gather, ladder, models, rung, sweeps
from tests import tiny

SOUND = """
name: sound
family: gpt2
start: {shape: gpt2, hidden: 32, blocks: 2, positions: 64, vocabulary: 512}
generalist: {steps: 4, batch_size: 2, max_length: 64, learning_rate: 1e-3, seed: 0}
specialist: {steps: 4, batch_size: 2, max_length: 64, learning_rate: 2e-3}
probes: 4
last: 1
"""
WILD = SOUND.replace("sound", "wild").replace("1e-3", "1e30")


@pytest.fixture(scope="module")
def climbed(tmp_path_factory):
    """A ladder of a sound and a wild rung, climbed with two seeds: its folder, the command's arguments and the results."""
    root = tmp_path_factory.mktemp("ladder")
    write_corpus(root / "data", train=24, heldout=6, cross=6)
    (root / "recipes" / "pocket").mkdir(parents=True)
    (root / "recipes" / "pocket" / "1.yaml").write_text(SOUND)
    (root / "recipes" / "pocket" / "2.yaml").write_text(WILD)
    asked = ["--data", str(root / "data"), "--scale", "pocket", "--runs", str(root / "runs"), "--seeds", "42", "43", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rung, "RECIPES", root / "recipes")
        patch.setattr(calibrate, "GRIDS", {"evidence": {"scale": (1.0,)}, "fast": {"fast_scale": (1.0,)}})
        patch.setattr(entry, "SIZES", {})
        patch.setattr(sweeps, "FRACTIONS", (0.0, 0.02))
        patch.setattr(sweeps, "COUNTS", (1, 2, 10))
        patch.setattr(sweeps, "DRAWS", 2)
        entry.main(asked)
        results = json.loads((root / "runs" / "pocket" / "results.json").read_text("utf-8"))
        yield SimpleNamespace(root=root, asked=asked, results=results, runs=root / "runs" / "pocket")


def only(rows, **match):
    """The one row that agrees with `match`."""
    found = [row for row in rows if all(row[key] == value for key, value in match.items())]
    assert len(found) == 1, (match, len(found))
    return found[0]


def test_a_diverged_rung_is_marked_and_has_no_row_anywhere(climbed):
    sound, wild = climbed.results["rungs"]
    assert (sound["name"], sound["diverged"], sound["hidden"], sound["blocks"]) == ("sound", None, 32, 2)
    assert sound["parameters"] > 2 * 12 * 32**2
    assert wild["diverged"].startswith("training stopped")
    assert json.loads((climbed.runs / "wild" / "diverged.json").read_text("utf-8"))["reason"] == wild["diverged"]
    sections = {name: part for name, part in climbed.results.items() if isinstance(part, list) and "scale" in str(part[:1])}
    assert {"table", "losses", "collinearity", "retrieval", "correlation", "mixtures", "diagnosis", "calibration", "noise"} <= set(sections)
    for name, part in sections.items():
        assert {row["scale"] for row in part} == {"sound"}, name
    assert list(climbed.results["candidates"]) == ["sound"]


def test_the_noise_sweep_has_one_beginning_and_pools_seeds_probe_by_probe(climbed):
    rows = climbed.results["noise"]
    assert len(rows) == 3 * 2 * 3  # sites, fractions, seeds with "all"
    table = climbed.results["table"]
    for seed in (42, 43, "all"):
        silent = [row for row in rows if row["seed"] == seed and row["fraction"] == 0]
        want = only(table, seed=seed, protocol="whole", task="cross", group="all", candidate="paper", rival="task_arithmetic")
        assert [row["site"] for row in silent] == ["centroids", "weights", "control"]
        for row in silent:
            assert (row["rate"], row["low"], row["loss"], row["ta_loss"], row["n"]) == pytest.approx(
                (want["rate"], want["low"], want["loss"], want["rival_loss"], 6), rel=1e-5
            )
    noisy = [row for row in rows if row["fraction"] == 0.02 and row["seed"] == 42]
    assert len({row["loss"] for row in noisy}) == 3  # each site does something else


def test_sweeps_meet_where_they_are_the_same_composition(climbed):
    results = climbed.results
    assert len(results["orders"]) == 24
    first = results["orders"][0]
    assert first["order"] == results["domains"]
    where = {"seed": 42, "protocol": "whole", "task": "cross"}
    paper = only(results["losses"], **where, group="all", candidate="paper")["loss"]
    default = only(results["losses"], **where, group="all", candidate="default")["loss"]
    assert first["loss"] == only(results["layers"], **where, mixture="paper", layers="last 1")["loss"] == pytest.approx(paper, rel=1e-5)
    assert only(results["top_k"], **where, mixture="paper", top_k=3)["loss"] == pytest.approx(paper, rel=1e-5)
    everything = only(results["layers"], **where, mixture="default", layers="all")
    assert everything["loss"] == only(results["top_k"], **where, mixture="default", top_k=3)["loss"] == pytest.approx(default, rel=1e-5)
    assert everything["share"] == 1
    assert {row["seed"] for name in sweeps.FIRST_SEED_ONLY for row in results[name]} == {42}


def test_validation_chooses_one_set_of_layers_a_mixture(climbed):
    for mixture in ("default", "paper"):
        rows = [row for row in climbed.results["layers"] if row["mixture"] == mixture]
        assert {row["layers"] for row in rows} == {"last 1", "last 2", "first", "middle", "all"}
        least = min(rows, key=lambda row: row["validation_loss"])["layers"]
        assert {row["layers"] for row in rows if row["chosen"]} == {least}
        assert len(rows) == 5 * 2


def test_fewer_index_probes_are_the_first_of_more_and_draws_differ(climbed):
    rows = climbed.results["probes"]
    assert Counter((row["count"], row["draw"]) for row in rows) == {(c, d): 3 for c in (1, 2) for d in (0, 1)}
    assert len({row["top1"] for row in rows} | {row["loss"] for row in rows}) > 4


def test_no_raw_row_is_there_twice(climbed):
    rows = pyarrow.parquet.read_table(climbed.runs / "rows.parquet").to_pylist()
    keys = Counter((r["scale"], r["seed"], r["protocol"], r["task"], r["group"], r["probe"], r["candidate"]) for r in rows)
    assert max(keys.values()) == 1
    names = {row["candidate"] for row in rows}
    assert {"paper", "noise control 0.02", "orders code-science-legal-medical", "layers paper first", "probes 1 0 fast"} <= names


def test_a_climbed_ladder_is_not_climbed_again(climbed, monkeypatch):
    before = (climbed.runs / "results.json").read_bytes()
    refuse(monkeypatch)
    entry.main(climbed.asked)
    assert (climbed.runs / "results.json").read_bytes() == before


def test_an_interrupted_sweep_goes_on_without_scoring_anything_twice(climbed, monkeypatch):
    before = (climbed.runs / "results.json").read_bytes()
    swept = climbed.runs / "sound" / "seed-42" / "sweeps"
    for path in swept.glob("*.json"):
        path.unlink()
    lost = sorted(path for path in (swept / "test").glob("*.safetensors") if path.stem != "reading")[0]
    lost.unlink()
    scored, score = [], bench.score_composed
    refuse(monkeypatch)
    monkeypatch.setattr(bench, "score_composed", lambda *args: scored.append(args[1].name) or score(*args))
    entry.main(climbed.asked)
    assert len(scored) == 1
    assert lost.exists()
    assert (climbed.runs / "results.json").read_bytes() == before


def refuse(monkeypatch):
    """No training, reading, evaluation, calibration or scoring from here on."""

    def never(*args, **values):
        raise AssertionError("this was finished")

    monkeypatch.setattr(ladder, "evaluate", never)
    monkeypatch.setattr(ladder, "calibrate", never)
    monkeypatch.setattr(bench, "score_composed", never)
    monkeypatch.setattr(bench, "read_all", never)
    monkeypatch.setattr("asterism.models.engine._run", never)


def test_dry_run_tells_sizes_steps_and_what_is_left_and_does_nothing(climbed, monkeypatch, capsys, tmp_path):
    refuse(monkeypatch)
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    entry.main([*climbed.asked, "--dry-run"])
    told = capsys.readouterr().out
    assert "sound (gpt2, 32 x 2 from nothing, " in told
    assert "generalist 4 steps, medical 4 steps" in told
    assert "to do: nothing" in told
    assert "diverged: training stopped" in told
    entry.main(["--scale", "pocket", "--runs", str(tmp_path / "none"), "--dry-run", "--only", "sound"])
    told = capsys.readouterr().out
    assert "done 0 of" in told
    assert "seed 44: noise" in told
    assert "wild" not in told
    assert not (tmp_path / "none").exists()


def test_the_papers_own_scales_are_planned_without_a_network(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(rung, "RECIPES", Path(rung.__file__).parent / "recipes")
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    entry.main(["--scale", "paper", "--runs", str(tmp_path), "--dry-run"])
    told = capsys.readouterr().out
    assert "qwen2.5-7b (qwen2.5, Qwen/Qwen2.5-7B, 7,6" in told
    assert told.count("reads Salesforce/wikitext") == 5


def test_an_unknown_rung_is_answered_with_the_near_one(climbed):
    with pytest.raises(UnknownName, match="did you mean 'sound'"):
        entry.main(["--scale", "pocket", "--only", "sond", "--dry-run"])


def test_missing_text_is_told_with_what_to_run(climbed, tmp_path):
    for given in ([], [tmp_path / "nowhere"]):
        with pytest.raises(DataError, match=r"(?s)not there.*corpus tool"):
            ladder.read_text(given)
    write_corpus(tmp_path / "data", train=4, heldout=2, cross=2)
    for path in (tmp_path / "data").glob("code.*"):
        path.unlink()
    with pytest.raises(DataError, match=r"(?s)no code\.train, code\.heldout.*build the code domain"):
        ladder.read_text([tmp_path / "data"])


PROBES = [Probe("a", "x", ("medical",)), Probe("b", "y", ("legal",)), Probe("c", "z", ("medical", "legal"))]


@pytest.mark.parametrize(
    ("generalist", "medical", "legal", "told"),
    [
        ([3.0, 4.0, 9.0], [2.5, 9.0, 9.0], [9.0, 3.5, 9.0], None),
        ([5.0, 5.1, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "no better than guessing among 150 tokens"),
        ([nan, 4.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "no better than guessing"),
        ([3.0, 4.0, 1.0], [1.0, 1.0, 1.0], [1.0, 4.5, 1.0], "the legal specialist's loss on its own held-out text is 4.500"),
        ([3.0, 4.0, 1.0], [nan, 1.0, 1.0], [1.0, 1.0, 1.0], "the medical specialist's loss"),
    ],
)
def test_divergence_is_seen_in_held_out_losses(generalist, medical, legal, told):
    scores = lambda values: SimpleNamespace(loss={"whole": torch.tensor(values)})  # noqa: E731
    reading = SimpleNamespace(generalist=scores(generalist), specialists={"medical": scores(medical), "legal": scores(legal)})
    library = SimpleNamespace(anatomy=SimpleNamespace(vocabulary=150))  # ln 150 = 5.01
    found = ladder.trouble(SimpleNamespace(reading=reading, library=library, probes=PROBES, rows=lambda task: [0, 1]))
    assert found is None if told is None else told in found


def test_a_specialist_that_did_not_learn_gives_its_rung_up_until_the_recipe_changes(climbed, tmp_path, monkeypatch):
    sound = rung.rungs("pocket")[0]
    corpus = read_corpus(climbed.root / "data")
    monkeypatch.setattr(ladder, "trouble", lambda bench: "the legal specialist is worse")
    assert ladder.climb(sound, corpus, tmp_path, [42], "pocket") == "seed 42: the legal specialist is worse"
    refuse(monkeypatch)
    assert ladder.climb(sound, corpus, tmp_path, [42], "pocket") == "seed 42: the legal specialist is worse"
    assert ladder.divergence(sound.changed(probes=5), tmp_path) is not None  # the models are the same
    assert ladder.divergence(sound.changed(share=0.5), tmp_path) is None


def test_an_error_that_is_no_divergence_is_not_swallowed(tmp_path):
    with pytest.raises(DataError, match="lack training text"):
        models.mixed_texts(Corpus(), 0.1)


def test_wins_over_seeds_count_a_probe_once_and_ties_half():
    keys = [("g", "1"), ("g", "2")]
    losses = {42: {"generalist": (2.0, 2.0), "task_arithmetic": (1.0, 3.0)}, 43: {"generalist": (2.0, 2.0), "task_arithmetic": (1.5, 3.0)}}
    where = {"scale": "s", "protocol": "whole", "task": "cross", "tokens": 9}
    rows = [
        where | {"seed": seed, "group": group, "probe": probe, "candidate": name, "loss": loss}
        for seed, own in losses.items()
        for name, values in own.items()
        for (group, probe), loss in zip(keys, values, strict=True)
    ]
    point = {"key": {"site": "centroids", "fraction": 0.1}, "facts": {}, "protocol": "whole", "task": "cross"}
    found, raw = gather.swept("noise", {42: [point | {"losses": [1.0, 2.0]}], 43: [point | {"losses": [2.0, 2.5]}]}, rows, "s")
    assert [row["seed"] for row in found] == [42, 43, "all"]
    assert [row["rate"] for row in found] == [0.75, 0.5, 0.625]  # a tie and a win; a loss and a win; (0.25 + 1) / 2
    assert (found[2]["rate"], found[2]["low"], found[2]["high"]) == wilson(1.25, 2)
    assert found[2]["rate_generalist"] == pytest.approx((0.75 + 0.25) / 2)
    assert (found[2]["loss"], found[2]["ta_loss"], found[2]["n"]) == (1.875, 2.125, 2)
    assert [row["candidate"] for row in raw] == ["noise centroids 0.1"] * 4


def test_a_loss_is_scored_once_whatever_asks_for_it(tmp_path, monkeypatch):
    library = tiny.tiny_library(tmp_path / "library")
    built = Constellation.build(library, tiny.tiny_probes(), IndexSettings(max_length=48))
    settings = EvaluationSettings(max_length=48, top_k=2, paper_layers=2)
    made = bench.Bench(library, tiny.tiny_singles() + tiny.tiny_cross(), settings, tmp_path / "bench")
    paper = made.candidates(built)["paper"]
    one = made.losses(paper, "whole", "cross")
    order = sweeps.ordered(paper.index, range(4))
    monkeypatch.setattr(bench, "score_composed", lambda *args: pytest.fail("scored again"))
    again = bench.Bench(library, made.probes, settings, tmp_path / "bench")
    torch.testing.assert_close(again.losses(replace(paper, index=order), "whole", "cross"), one, rtol=0, atol=0)


def test_an_order_moves_the_basis_with_the_domains(tmp_path):
    library = tiny.tiny_library(tmp_path)
    index = Constellation.build(library, tiny.tiny_probes(), IndexSettings.paper(max_length=48))
    turned = sweeps.ordered(index, (2, 0, 3, 1))
    assert turned.domains == tuple(np.array(index.domains)[[2, 0, 3, 1]])
    torch.testing.assert_close(turned.centroids[0], index.centroids[2])
    torch.testing.assert_close(turned.basis.vectors[0], torch.nn.functional.normalize(index.centroids[2], dim=0))


def test_results_are_compact_and_rounded(tmp_path):
    write_compact(tmp_path / "r.json", {"a": [{"x": 1 / 3}, {"x": 1e-9 / 3}], "b": {"c": 2}, "d": []})
    text = Path(tmp_path / "r.json").read_text("utf-8")
    assert json.loads(text) == {"a": [{"x": 0.333333}, {"x": 3.33333e-10}], "b": {"c": 2}, "d": []}
    assert len(text.splitlines()) == 8


def test_general_text_is_held_against_the_generalist(climbed):
    rows = climbed.results["general"]
    assert {(row["candidate"], row["protocol"]) for row in rows} == set(product(("default", "fast"), ("whole", "continuation")))
    for row in rows:
        assert row["excess"] == pytest.approx(row["loss"] - row["generalist_loss"], abs=1e-4)
        assert row["low"] <= row["excess"] <= row["high"]
        assert row["met"] == (row["high"] <= 0.01)
    assert {row["seed"] for row in rows} == {42, 43, "all"}


def test_where_the_change_sits_adds_up(climbed):
    rows = [row for row in climbed.results["changes"] if row["seed"] == 42]
    assert {row["part"] for row in rows} == {"embedding", "first half of the blocks", "second half of the blocks", "final_norm"}
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=1e-4)
    assert sum(row["parameters"] for row in rows) == pytest.approx(1, abs=1e-4)
    library = Library.open(climbed.runs / "sound" / "seed-42")
    relative = 0.0
    for name in library.names:
        model, before = library.model(name), [library.tensor(f"transformer.ln_f.{part}") for part in ("weight", "bias")]
        after = [model.get_parameter(f"transformer.ln_f.{part}") for part in ("weight", "bias")]
        deltas = [float((a - b).double().square().sum()) for a, b in zip(after, before, strict=True)]
        relative += (sum(deltas) / float(sum(b.double().square().sum() for b in before))) ** 0.5 / len(library.names)
    assert next(row for row in rows if row["part"] == "final_norm")["relative"] == pytest.approx(relative, rel=1e-4)
