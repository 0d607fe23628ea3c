"""A fusion and all its rivals in one evaluation, made from one recipe: who is scored, by what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.core.progress import quiet
from asterism.evaluate.answerers import Task
from asterism.evaluate.family import family_library, merged_candidates
from asterism.evaluate.fusion import RIVALS, check, compare
from asterism.evaluate.marking import marked
from asterism.evaluate.results import read_results
from asterism.evaluate.settings import AnswerSettings
from asterism.evaluate.tuning import GRIDS
from asterism.fuse.recipe import Recipe
from asterism.fuse.stages import fuse_recipe
from asterism.models.responses import response_losses
from tests import tiny
from tests.evaluate.contest import DATA, TEST, content, made

SETTINGS = AnswerSettings(max_new_tokens=3, scale="tiny")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    root = made(tmp_path_factory.mktemp("start"))
    with quiet():
        fuse_recipe(recipe(root), root / "fused", device="cpu")
    return root


def recipe(root: Path, **more) -> Recipe:
    return Recipe.of(content(**more), root)


TASKS = [Task.of("names", TEST[:3]), Task.of("films", TEST[3:5])]


@pytest.fixture(scope="module")
def results(start):
    with quiet(), pytest.MonkeyPatch.context() as patched:
        for method in ("ties", "dare_ties", "breadcrumbs", "della"):
            patched.setitem(GRIDS, method, {name: values[:1] for name, values in GRIDS[method].items()} | {"lambda": (0.5,)})
        family = {"films": start / "llama-films"}
        return compare(recipe(start), start / "fused", TASKS, RIVALS, SETTINGS, family=family, out=start / "rivals", device="cpu")


def test_everyone_is_in_one_table(start, results):
    everyone = [
        "target",
        "fused",
        "control",
        "fusellm",
        "gac",
        "unite",
        "task_arithmetic",
        "ties",
        "dare_ties",
        "breadcrumbs",
        "della",
        "emr",
    ]
    assert list(results["candidates"]) == everyone
    assert len(results["scores"]) == 3 * len(everyone)
    assert {row["rival"] for row in results["gains"]} == {"target", "control", "fusellm"}
    assert {"rate", "low", "high", "n", "loss", "rival_loss", "scale", "seed", "protocol", "task", "candidate", "rival"} <= results[
        "table"
    ][0].keys()
    losses = {name: row["loss"] for row in results["scores"] if row["task"] == "all" for name in [row["candidate"]]}
    assert len({round(loss, 9) for loss in losses.values()}) >= 9
    assert "held-out replay examples" in results["candidates"]["ties"]
    assert "2 adapters" in results["candidates"]["ties"]


def test_rows_are_those_of_the_adapter_on_its_backbone(start, results):
    from peft import PeftModel

    rows = {(row["candidate"], row["probe"]): row for row in read_results(start / "rivals" / "evaluation")[1]}
    for name, folder in (("target", "llama-names"), ("fused", "fused"), ("control", "rivals/control"), ("fusellm", "rivals/fusellm")):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start / "llama", dtype=torch.float32), start / folder).eval()
        for place, losses in enumerate(response_losses(model, tiny.tiny_tokenizer(), TASKS[0].examples)):
            row = rows[name, f"names-{place}"]
            assert row["nats"] == pytest.approx(float(losses.sum()), rel=1e-5)
            assert (row["gained"], row["possible"]) == tuple(marked("items", row["answer"], TASKS[0].examples[place].response))


def test_emr_takes_the_adapter_of_the_tasks_name(start, results):
    from asterism.merge.emr import Emr

    with quiet():
        library = family_library(start / "again", start / "llama", {"target": start / "llama-names", "films": start / "llama-films"})
    rows = {(row["candidate"], row["probe"]): row for row in read_results(start / "rivals" / "evaluation")[1]}
    emr = Emr.build(library)
    for task, name in (("names", "target"), ("films", "films")):
        model = emr.model(name)
        (losses,) = response_losses(model, library.tokenizer, [next(each for each in TASKS if each.name == task).examples[0]])
        assert rows["emr", f"{task}-0"]["nats"] == pytest.approx(float(losses.sum()), rel=1e-4)


def test_a_merge_takes_the_setting_of_the_least_loss(start):
    with quiet():
        library = family_library(start / "tuned", start / "llama", {"target": start / "llama-names", "films": start / "llama-films"})
        (best,) = merged_candidates(library, DATA[:4], SETTINGS, methods=["task_arithmetic"], state=start / ".tuning")
        model, tokenizer = best.open("names")
        scale = best.told["merge"]["parameters"]["lambda"]
        from asterism.merge.library import merge

        losses = {
            each: float(
                torch.stack(
                    [own.mean() for own in response_losses(merge(library, "task_arithmetic", lambda_=each), tokenizer, DATA[:4])]
                ).mean()
            )
            for each in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
        }
    assert scale == min(losses, key=losses.__getitem__)
    assert best.told["merge"]["validation_loss"] == pytest.approx(losses[scale], rel=1e-4)
    assert not (start / ".tuning").exists()
    assert model.config.model_type == "llama"


def test_what_a_rival_lacks_is_told(start, tmp_path):
    tasks = TASKS[:1]
    with pytest.raises(UnknownName, match="did you mean 'fusellm'"):
        compare(recipe(start), start / "fused", tasks, ["fusellmm"])
    with pytest.raises(DataError, match=r"among the replay data.\n  met:  1 of names, e.g. "):
        compare(recipe(start), start / "fused", [Task.of("names", [*TEST[:2], DATA[4]])], [])
    with pytest.raises(DataError, match="3 of names"):
        compare(recipe(start, held_out=str(start / "test.jsonl")), start / "fused", tasks, [])
    alone = recipe(start, sources=[{"name": "gpt2", "config": "gpt2/config.json", "adapter": "gpt2-names"}])
    for rival in ("fusellm", "gac", "unite"):
        with pytest.raises(SettingsError, match="A rival runs the sources' models"):
            compare(alone, start / "fused", tasks, [rival], out=tmp_path)
    with pytest.raises(SettingsError, match="two adapters or more"):
        compare(recipe(start), start / "fused", tasks, ["ties"], out=tmp_path)
    films = {"films": start / "llama-films"}
    with pytest.raises(SettingsError, match="A family is there to be merged"):
        check(recipe(start), tasks, ["control"], films)
    with pytest.raises(SettingsError, match="In a family the target is the recipe's"):
        check(recipe(start), tasks, ["merges"], {**films, "target": start / "llama-films"})
    with pytest.raises(DataError, match="Merges are tuned on held-out examples"):
        check(recipe(start, held_out=0), tasks, ["merges"], films)
    library = family_library(tmp_path / "family", start / "llama", {"target": start / "llama-names", "films": start / "llama-films"})
    with pytest.raises(DataError, match="hold some replay examples out"):
        merged_candidates(library, [], SETTINGS, state=tmp_path / "state")
    with pytest.raises(UnknownName, match="merge of adapters with a grid"):
        merged_candidates(library, DATA[:2], SETTINGS, methods=["fisher"], state=tmp_path / "state")
