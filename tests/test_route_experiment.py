"""The experiment on routing at pocket scale: the whole road on made-up text, killed and resumed, and what it leaves."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
import yaml

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.core.progress import quiet
from experiments.route import __main__ as entry
from experiments.route import data as texts
from experiments.route import workshop
from experiments.route.claims import judged
from experiments.route.ladder import BESIDE, RUNGS
from experiments.route.plan import trainings
from experiments.route.recipe import RECIPES, Recipe, recipe
from tests.killed import counting, killed_and_resumed, read
from tests.route_sample import write_data

counted = counting(workshop, ("train_router", "train", "score_static"), "train_router")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One seed, interrupted in its seventh router and finished in a second run."""
    root = tmp_path_factory.mktemp("route")
    write_data(root / "data")
    with killed_and_resumed(entry.main, root, counted, 7) as ran:
        yield ran


def losses(ran, target, candidate, part="ladder"):
    """[n] losses of the raw rows."""
    rows = pyarrow.parquet.read_table(ran.runs / "rows.parquet").to_pylist()
    found = [row for row in rows if (row["part"], row["target"], row["candidate"]) == (part, target, candidate)]
    return np.array([row["whole"] for row in sorted(found, key=lambda row: row["text"])])


def test_what_a_killed_run_has_finished_is_not_done_again(ran):
    first, second = ran.calls
    assert first["train_router"] == 7
    routers = sum(count for what, count, _ in trainings(recipe("pocket")) if what == "router")
    assert second["train_router"] == routers - 6  # the six that were finished have been scored, and are not built again
    assert first["score_static"] > 20
    with pytest.MonkeyPatch.context() as patch, quiet():
        third = Counter()
        counted(patch, third)
        entry.main(ran.asked)
    assert not third
    assert read(ran.root) == ran.results


def test_a_model_that_was_lost_is_made_again_the_same(ran):
    before = losses(ran, "cross", "layer")
    seed = ran.runs / "seed-42"
    shutil.rmtree(seed / "routers" / "cross" / "layer")
    for kind in ("chosen", "tested"):
        (seed / "scores" / "cross" / kind / "layer.safetensors").unlink()
    (seed / "measured" / "ladder.json").unlink()
    with pytest.MonkeyPatch.context() as patch, quiet():
        calls = Counter()
        counted(patch, calls)
        entry.main([*ran.asked, "--only", "ladder"])
    assert (calls["train_router"], calls["score_static"]) == (1, 2)
    assert losses(ran, "cross", "layer").tolist() == before.tolist()
    assert read(ran.root) == ran.results


def test_every_part_leaves_its_rows(ran):
    results = ran.results
    assert [target["tested"] for target in results["targets"]] == [6, 6, 6]
    assert results["model"] == {"parameters": results["model"]["parameters"], "hidden": 32, "blocks": 3}
    of = {target: {row["candidate"] for row in results["losses"] if row["target"] == target} for target in texts.TARGETS}
    shared = {"generalist", "lerp", "slerp", "activation", "interpolation", "finetuned", "finetuned_expert", "merging", "best_expert"}
    shared |= {"default", "fast", "ensemble", "best_single", "ties", "task_arithmetic", "linear", "untrained:arrow", *RUNGS}
    assert all(shared <= names for names in of.values())
    assert of["cross"] - of["domain1"] == {*BESIDE, "mix_layer", "expert:math"}
    assert {row["step"] for row in results["curve"] if row["candidate"] == "activation"} == {2, 4}
    assert {row["step"] for row in results["curve"] if row["candidate"] in ("layer", "default")} == {4}
    assert {(row["texts"], row["mode"]) for row in results["similar"]} == {
        (a, b) for a in ("target", "general") for b in ("paper", "debiased")
    }
    assert len(results["maps"]) == 3 * 2 * 3
    assert np.allclose(np.diag(results["maps"][0]["map"]), 1)
    assert len(results["points"]) == 3 * 3 * 11
    assert {row["case"] for row in results["advice"]} == set(texts.TARGETS)
    assert len(judged(results)) > 15


def test_gains_pair_the_losses_of_the_raw_rows(ran):
    (found,) = [
        row for row in ran.results["gains"]
        if (row["target"], row["candidate"], row["rival"], row["protocol"]) == ("domain1", "depth2", "layer", "whole")
    ]  # fmt: skip
    apart = losses(ran, "domain1", "layer") - losses(ran, "domain1", "depth2")
    assert found["gain"] == pytest.approx(apart.mean(), rel=1e-4)
    assert found["low"] <= found["gain"] <= found["high"]
    assert found["n"] == len(apart) == 6


def test_the_report_lies_beside(ran):
    page = (ran.runs / "report.html").read_text("utf-8")
    assert "GSM-hard by GSM8K and CodeAlpaca" in page
    assert page.count("<svg") > 20


def test_the_lowest_on_the_texts_that_choose_is_what_is_told_of(ran):
    by_name = {row["candidate"]: row for row in ran.results["losses"] if (row["target"], row["protocol"]) == ("cross", "whole")}
    picked = by_name["merging"]["picked"][0]
    assert by_name["merging"]["loss"] == by_name[picked]["loss"]
    assert by_name["interpolation"]["loss"] in {by_name[kind]["loss"] for kind in ("lerp", "slerp", "activation")}
    assert by_name["finetuned"]["rate"][0] in recipe("pocket").rates


def test_a_part_and_a_scale_that_do_not_exist(ran):
    with pytest.raises(UnknownName, match="did you mean 'ladder'"):
        entry.main([*ran.asked, "--only", "lader"])
    with pytest.raises(UnknownName, match="did you mean 'pocket'"):
        recipe("pockt")


def test_text_that_is_not_there_is_named(tmp_path):
    write_data(tmp_path)
    (tmp_path / "instruct.gsmhard.train.jsonl").unlink()
    with pytest.raises(DataError, match=r"no instruct\.gsmhard\.train\.jsonl"):
        texts.read_data(recipe("pocket"), [tmp_path])


def test_an_adaptation_set_too_small_to_be_split(tmp_path):
    write_data(tmp_path, train=5)
    with pytest.raises(DataError, match="too small to be split"):
        texts.target(texts.read_data(recipe("pocket"), [tmp_path]), recipe("pocket"), "cross")


def test_targets_keep_what_trains_chooses_and_tests_apart(tmp_path):
    write_data(tmp_path)
    made = texts.target(texts.read_data(recipe("pocket"), [tmp_path]), recipe("pocket"), "cross")
    assert not {*made.chosen} & {*made.adapt}
    assert not {*made.tested} & {*made.adapt, *made.chosen}
    held = texts.generalist_texts(texts.read_data(recipe("pocket"), [tmp_path]), 0.15)
    assert not {*held} & {*made.adapt, *made.chosen, *made.tested}


def test_the_data_mix_is_half_general(tmp_path):
    write_data(tmp_path)
    data = texts.read_data(recipe("pocket"), [tmp_path])
    mixed = texts.mixed_texts(data, "math", 1)
    general = sum(len(text) for text in mixed if text in set(data.train["general"]))
    assert general / sum(map(len, mixed)) == pytest.approx(0.5, abs=0.1)
    assert {*data.train["math"]} <= {*mixed}


@pytest.mark.parametrize("scale", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_recipes_run_dry(scale, tmp_path, capsys):
    entry.main(["--scale", scale, "--out", str(tmp_path), "--dry-run"])
    told = capsys.readouterr().out
    assert "seed 44: to do: ladder, tuned, table, maps, curve" in told
    assert (" 124,439,808 parameters" in told) == (scale == "paper")


def test_the_paper_is_as_it_gives_itself():
    made = recipe("paper")
    assert [(own.steps, own.batch_size) for own in (made.expert, made.long, made.mix, made.target, made.router)] == [
        (2500, 64), (8750, 64), (2500, 128), (2500, 64), (1739, 92),
    ]  # fmt: skip
    assert {own.learning_rate for own in (made.expert, made.long, made.mix)} == {8e-4}
    assert made.rates == (8e-5,)
    assert made.router.learning_rate == 5e-3
    assert {1000, 8000} <= {*made.steps}
    assert set(made.texts) == set(texts.FILES)


def test_a_recipe_whose_trainings_do_not_fit_their_names():
    given = yaml.safe_load((RECIPES / "pocket.yaml").read_text("utf-8"))
    with pytest.raises(SettingsError, match=r"router\.method is mlp, not router"):
        Recipe(**given | {"router": given["expert"]})


def test_text_from_data_sets_holds_out_their_ends(tmp_path):
    named = {}
    for name in texts.FILES:
        path = tmp_path / f"{name}.jsonl"
        rows = [{"asked": f"What is number {n} of {name} among all?", "answer": str(n)} for n in range(20)]
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), "utf-8")
        named[name] = [{"dataset": str(path), "columns": ["asked", "answer"]}]
    data = texts.read_data(recipe("pocket").changed(texts=named), [])
    assert data.heldout["cross"] == ["What is number 18 of cross among all?\n18", "What is number 19 of cross among all?\n19"]
    assert len(data.train["cross"]) == 18
    with pytest.raises(DataError, match=r"names no text.\n  met:  code2"):
        texts.read_data(recipe("pocket").changed(texts={name: own for name, own in named.items() if name != "code2"}), [])
