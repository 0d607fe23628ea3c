"""The experiment on fusion at pocket scale: the road on made-up text, killed and resumed, and what it leaves."""

from __future__ import annotations

import re
from collections import Counter

import pyarrow.parquet
import pytest
import torch

from asterism.core.errors import DataError, SettingsError, StaleError, UnknownName
from asterism.core.progress import quiet
from asterism.core.storage import read_json
from asterism.demo.slots import ASKED
from asterism.models.adapters import read_adapter
from experiments.fuse import __main__ as entry
from experiments.fuse import data as texts
from experiments.fuse import workshop
from experiments.fuse.claims import judged
from experiments.fuse.plan import members, trainings
from experiments.fuse.recipe import RECIPES, recipe
from experiments.fuse.setting import Member, ablations, relatives, sensitivity, settings_of
from experiments.fuse.workshop import Workshop, chosen_loss
from tests.fuse_sample import write_data
from tests.killed import counting, killed_and_resumed, read

counted = counting(workshop, ("train", "tune", "fuse", "control", "evaluate_answers"), "control")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Two parts of one seed, killed in the second control and finished in a second run, with the seed's workshop."""
    root = tmp_path_factory.mktemp("fuse")
    write_data(root / "data")
    with killed_and_resumed(entry.main, root, counted, 2, "--only", "single", "--only", "unseen") as ran:
        made = recipe("pocket")
        ran.shop = Workshop(made, texts.read_data(made, [root / "data"]), ran.runs, 42)
        yield ran


def test_what_a_killed_run_has_finished_is_not_done_again(ran):
    first, second = ran.calls
    assert first == {"train": 1, "tune": 3, "control": 2, "evaluate_answers": 2}  # the target scored, the control about to be
    assert (second["train"], second["control"]) == (2, 2)  # the other families; the second rate, and B alone
    with pytest.MonkeyPatch.context() as patch, quiet():
        third = Counter()
        counted(patch, third)
        entry.main(ran.asked)
    assert not third
    assert read(ran.root) == ran.results


def test_every_candidate_leaves_its_rows(ran):
    results = ran.results
    single = {row["candidate"] for row in results["scores"] if row["part"] == "single"}
    rivals = {"control_up", "source", "fusellm", "task_arithmetic", "emr", "gac", "unite"}
    assert single == {"target", "control", "fused", *rivals}
    assert {row["candidate"] for row in results["scores"] if row["part"] == "unseen"} == {"target", "control", "untuned", "fused"}
    assert {(row["candidate"], row["n"]) for row in results["scores"] if (row["part"], row["task"]) == ("single", "slots-legal")} >= {
        ("fused", 3),
        ("gac", 2),
    }
    assert len(judged(results)) > 15
    rows = pyarrow.parquet.read_table(ran.runs / "rows.parquet").to_pylist()
    assert {row["part"] for row in rows} == {"single", "unseen"}
    assert sum((row["part"], row["candidate"]) == ("single", "fused") for row in rows) == 3 * 3
    assert (ran.runs / "report.html").read_text("utf-8").count("<svg") > 4


def test_results_tell_families_tasks_and_what_was_chosen(ran):
    results = ran.results
    assert {(own["name"], own["role"], own["blocks"], own["rank"]) for own in results["families"]} == {
        ("llama", "target", 3, 4),
        ("qwen2", "source", 2, 3),
        ("gpt2", "other", 2, 2),
    }
    assert {own["name"]: own["marked"] for own in results["tasks"]}["nl2bash"] is False
    assert results["rates"][0]["control"] in (1e-3, 1e-4)
    assert all(row["by_seed"][0] > 0 for row in results["minutes"])
    (fact,) = [fact for fact in results["facts"] if fact["part"] == "single"]
    assert fact["families"] == {"qwen2-r3-slots-legal-mit-movie": "qwen2"}
    assert fact["pairs"] == 14


def test_the_rate_that_loses_least_is_taken(ran):
    single = ran.shop.settings["single"]
    losses = {rate: chosen_loss(ran.shop.control(single, rate=rate)) for rate in (1e-3, 1e-4)}
    assert ran.shop.rate("control") == min(losses, key=losses.__getitem__)


def test_a_random_source_has_the_norms_of_the_trained_one(ran):
    trained = Member("qwen2", recipe("pocket").tasks["source"], 3)
    drawn = Member("qwen2", trained.tasks, 3, draw=0)
    one, other = (read_adapter(ran.shop.expert(own)) for own in (trained, drawn))
    assert one.pairs.keys() == other.pairs.keys()
    for parameter, change in one.changes.items():
        assert torch.allclose(other.changes[parameter].up.norm(), change.up.norm(), rtol=1e-5)
        assert not torch.allclose(other.changes[parameter].up, change.up)


def test_layers_by_cka_read_both_backbones_whole(ran):
    with quiet():
        made = ran.shop.fused(ran.shop.settings["single"], "layers by CKA", ablations()["layers by CKA"])
    told = read_json(made / "fusion.json")
    assert told["settings"]["layers"] == "cka"
    assert set(next(iter(told["alignment"]["layers"].values()))) == {"0", "1", "2"}


def test_what_was_made_by_another_recipe_is_named(ran):
    changed = recipe("pocket").changed(expert=recipe("pocket").expert.changed(steps=3))
    other = Workshop(changed, ran.shop.data, ran.runs, 42)
    with pytest.raises(StaleError, match="another recipe"):
        other.expert(other.settings["single"].target)


def test_examples_are_learnt_from_choose_or_test(ran):
    for name, own in ran.shop.data.tasks.items():
        assert len(own.chosen) == 2, name
        assert not set(own.train) & set(own.chosen)
        assert not {*own.train, *own.chosen} & set(own.tested)
    single, multi = (ran.shop.replayed(ran.shop.settings[name]) for name in ("single", "multi"))
    assert set(single) < set(multi)
    assert ran.shop.replayed(ran.shop.settings["irrelevant"]) == single


def test_a_share_of_the_replay_examples_is_learnt_in_as_many_steps_as_all(ran):
    single, fewer = (ran.shop.settings[name] for name in ("single", "a third"))
    rows = ran.shop.replayed(fewer)
    assert len(rows) == len(single.tasks) < len(ran.shop.replayed(single))
    assert set(rows) < set(ran.shop.replayed(single))
    assert fewer.replayed != single.replayed  # controls are shared by this name
    epochs = Workshop(ran.shop.recipe.changed(training={"epochs": 3, "batch_size": 2}), ran.shop.data, ran.runs, 42)
    assert epochs.training(1e-3, fewer).steps == 3 * len(ran.shop.replayed(single)) / 2
    assert epochs.training(1e-3, single).epochs == 3


def test_backbones_never_read_a_task(ran):
    whole = "\n".join(ran.shop.data.texts)
    for name in ("slots-medical", "slots-legal", "slots-science", "agnews"):
        own = ran.shop.data.tasks[name]
        assert not any(example.prompt in whole for example in (*own.train, *own.chosen, *own.tested)), name
    assert not any(example.prompt in whole for own in ran.shop.data.tasks.values() for example in own.tested)
    asked = {kind for example in ran.shop.data.instructed for kind in re.findall(r"each (\w+)", example.prompt)}
    assert not asked & {kind for domain in ("medical", "legal", "science") for kind in ASKED[domain]}
    assert len(asked) > 5


def test_copies_say_their_words_again():
    whole = " ".join(f"word{'abcdefgh'[number % 8]} other" for number in range(64))
    made = texts.copies([whole], 40)
    assert len(made) == 40
    assert made == texts.copies([whole], 40)
    for example in made:
        several, again = example.prompt.split(), example.response.split()
        assert len(set(several)) == len(several) >= 2
        assert again == [several[place % len(several)] for place in range(len(again))]
        assert len(again) >= len(several)
        assert len(several) + len(again) >= texts.COPIED
    assert len({len(example.prompt.split()) for example in made}) > 3


def test_every_recipe_reads_and_plans(capsys):
    for path in sorted(RECIPES.glob("*.yaml")):
        made = recipe(path.stem)
        assert set(made.all_tasks) <= set(texts.TASKS)
        assert set(made.all_tasks) | set(made.families) <= set(made.called)
        entry.main(["--scale", path.stem, "--dry-run", "--out", "nowhere"])
        assert "to do: single, multi, noisy, sensitivity, ablations, unseen, anchors, scarce" in capsys.readouterr().out


def test_the_plan_counts_what_the_settings_need():
    made = recipe("lab")
    names = [member.name for member in members(made)]
    assert len(names) == len(set(names)) == 11
    runs = sum(count for runs in trainings(made).values() for _, count in runs)
    assert runs == 8 + 4 + 4 + len(sensitivity(made)) + len(ablations()) + 2 + 6 + 6


def test_merges_take_the_target_and_what_the_sources_know_on_its_backbone():
    settings = settings_of(recipe("lab"))
    known = relatives(settings["irrelevant"])
    assert {own.family for own in known.values()} == {"llama"}
    assert [own.tasks for own in known.values()] == [("slots-legal", "mit-movie"), ("sst2",), ("gsm8k",)]


def test_what_cannot_be_run_is_told(tmp_path):
    with pytest.raises(UnknownName, match="pocket"):
        recipe("pockets")
    with pytest.raises(UnknownName, match="single"):
        entry.main(["--only", "singel"])
    with pytest.raises(DataError, match=r"glue/agnews|mit-movie"):
        texts.read_data(recipe("pocket"), [tmp_path])
    with pytest.raises(UnknownName, match="task"):
        texts.task("slotz", recipe("pocket"), [])
    plain = recipe("pocket").model_dump()
    with pytest.raises(SettingsError, match="three families"):
        type(recipe("pocket"))(**{**plain, "roles": {"target": "llama", "source": "llama", "other": "gpt2"}})
    with pytest.raises(SettingsError, match="tasks of experts"):
        type(recipe("pocket"))(**{**plain, "texts": {**plain["texts"], "instructed": {"sst2": 2}}})
