"""Fusion recipes: what they say, relative paths, stages, and every refusal by its place."""

from __future__ import annotations

import pytest
import yaml

from asterism.core.errors import SettingsError, StorageError, UnknownName
from asterism.fuse.recipe import Data, Part, Recipe

WHOLE = {
    "target": {"model": "llama", "adapter": "llama-ner"},
    "sources": [{"name": "qwen", "config": "qwen/config.json", "adapter": "qwen-re"}, {"model": "org/mistral", "adapter": "mistral-qa"}],
    "data": ["ner.jsonl", {"path": "re.jsonl", "limit": 300}, "org/rows"],
}
STAGES = {
    "target": WHOLE["target"],
    "settings": {"alpha": 0.5},
    "training": {"steps": 10},
    "stages": [
        {"sources": WHOLE["sources"][:1], "data": "ner.jsonl"},
        {"name": "second", "sources": WHOLE["sources"][1:], "data": ["re.jsonl"], "settings": {"mu_gate": 0.0}, "held_out": 0},
    ],
}


def test_a_whole_recipe(tmp_path):
    for name in ("llama", "llama-ner", "qwen-re", "mistral-qa"):
        (tmp_path / name).mkdir()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(WHOLE))
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    assert (recipe.model, recipe.adapter) == (str(tmp_path / "llama"), str(tmp_path / "llama-ner"))
    (stage,) = recipe.stages
    assert stage.sources == (
        Part("qwen", str(tmp_path / "qwen/config.json"), str(tmp_path / "qwen-re")),
        Part("mistral-qa", "org/mistral", str(tmp_path / "mistral-qa")),
    )
    assert stage.data == (Data(str(tmp_path / "ner.jsonl")), Data(str(tmp_path / "re.jsonl"), limit=300), Data("org/rows"))
    training = stage.training
    assert (training.epochs, training.batch_size, training.accumulation, training.learning_rate) == (3, 1, 8, 5e-5)
    assert (training.schedule, training.warmup, stage.settings.alpha, stage.held_out) == ("cosine", 0.05, 0.3, 0.1)


def test_stages_share_what_stands_outside_them():
    first, second = Recipe.of(STAGES).stages
    assert (first.name, second.name) == ("stage-1", "second")
    assert (first.settings.alpha, first.settings.mu_gate) == (0.5, 0.1)
    assert (second.settings.alpha, second.settings.mu_gate) == (0.5, 0.0)
    assert (first.training.steps, first.training.epochs) == (10, None)
    assert (first.held_out, second.held_out) == (0.1, 0.0)


def test_the_chat_template_may_be_left_out():
    assert Recipe.of(STAGES).chat
    assert not Recipe.of({**STAGES, "chat": False}).chat


def test_a_seed_takes_the_place_of_all():
    for stage in Recipe.of({**STAGES, "training": {"seed": 1}}, seed=7).stages:
        assert stage.settings.seed == stage.training.seed == 7


def changed(**parts):
    return {**WHOLE, **parts}


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (changed(sourcs=[]), UnknownName, "No such key in the recipe.\n  met:  'sourcs'\n  mend: did you mean 'sources'?"),
        (
            changed(target={"modle": "x", "adapter": "y"}),
            UnknownName,
            "No such key in target.\n  met:  'modle'\n  mend: did you mean 'model'?",
        ),
        (changed(target={"model": "x"}), SettingsError, "target lacks adapter."),
        (changed(settings={"alhpa": 1}), UnknownName, "No such key in settings.\n  met:  'alhpa'\n  mend: did you mean 'alpha'?"),
        (changed(training={"step": 1}), UnknownName, "No such key in training.\n  met:  'step'\n  mend: did you mean 'steps'?"),
        (changed(settings={"alpha": -1}), SettingsError, "FusionSettings.alpha is not usable"),
        (changed(sources=[]), SettingsError, "sources is a list that is not empty."),
        (changed(sources=[{"adapter": "a"}]), SettingsError, "sources[0] holds one of model and config.\n  met:  neither"),
        (
            changed(sources=[{"adapter": "a", "model": "m", "config": "c"}]),
            SettingsError,
            "sources[0] holds one of model and config.\n  met:  model and config",
        ),
        (changed(sources=[{"model": "m", "adapter": "a"}] * 2), SettingsError, "Two sources have one name.\n  met:  a in sources"),
        (changed(data=[]), SettingsError, "data is a list that is not empty."),
        (changed(data=[{"path": "a", "limit": 0}]), SettingsError, "data[0].limit is a whole number, at least 1."),
        (changed(chat="no"), SettingsError, "chat is true or false.\n  met:  'no'"),
        (changed(held_out=1.5), SettingsError, "held_out is a share of the examples, or a file of them."),
        (changed(stages=STAGES["stages"]), SettingsError, "A recipe of stages has sources and data in each stage.\n  met:  sources, data"),
        ({**STAGES, "stages": [{"data": "a"}]}, SettingsError, "stages[0] lacks sources."),
        ({**STAGES, "stages": [{**STAGES["stages"][0], "name": "a"}] * 2}, SettingsError, "Two stages have one name."),
        ({**STAGES, "stages": [{**STAGES["stages"][0], "name": "a/b"}]}, SettingsError, "stages[0].name names no folder."),
        ({"target": WHOLE["target"], "data": "a"}, SettingsError, "The recipe lacks sources."),
        ([], SettingsError, "The recipe holds keys and values."),
    ],
)
def test_refusals_name_the_place(content, error, told):
    with pytest.raises(error) as caught:
        Recipe.of(content)
    assert str(caught.value).startswith(told)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(StorageError, match="The recipe cannot be read"):
        Recipe.read(tmp_path / "none.yaml")
    (tmp_path / "twice.yaml").write_text("data: a\ndata: b\n")
    with pytest.raises(SettingsError, match="A key stands twice"):
        Recipe.read(tmp_path / "twice.yaml")


def test_reading_a_recipe_loads_no_torch():
    import subprocess
    import sys

    code = "import sys, asterism.fuse.recipe; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
