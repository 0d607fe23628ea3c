"""Recipes in mergekit's schema: what is read, what mergekit reads of the same text, and what is refused, at its place."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from asterism.core.errors import AsterismError, SettingsError, StorageError, UnknownName, UnsupportedError
from asterism.merge.recipe import Recipe, Rule, TokenRule
from asterism.merge.references import Origin, Reference
from tests.merge import recipes

ONE, TWO = Reference(Origin("org/one")), Reference(Origin("org/two"))
PLAIN = {"merge_method": "linear", "models": [{"model": "org/one"}, {"model": "org/two"}]}


def refused(content, kind=SettingsError) -> str:
    with pytest.raises(kind) as caught:
        Recipe.of(content if isinstance(content, dict) else yaml.safe_load(content))
    return str(caught.value)


def changed(**values):
    return {**PLAIN, **values}


def test_a_recipe_whole(tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipes.TIES)
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    assert (recipe.merge_method, str(recipe.base_model), recipe.dtype, recipe.out_dtype) == ("ties", "org/base", "float16", None)
    assert [str(model) for model in recipe.models] == ["org/one", "org/two", "org/three", "org/base"]  # the base comes last, as in mergekit
    assert recipe.whole
    assert recipe.donor == recipe.base_model
    (part,) = recipe.slices
    assert part.sources[0].parameters.rules == {"density": (Rule((1, 0.7, 0.1), None),), "weight": (Rule(1.0, None),)}
    assert part.sources[2].parameters.rules["weight"] == (Rule(0.5, "mlp"), Rule(0, None))
    assert part.sources[3].parameters.rules == {}
    assert [block.place for block in recipe.blocks(part, part.sources[1])] == ["models[1].parameters", "models", "parameters"]
    assert Recipe.of(yaml.safe_load(recipes.TIES)) == recipe
    assert len({Recipe.of(yaml.safe_load(text)).digest for text in recipes.ALL.values()}) == len(recipes.ALL)


def test_slices_and_modules():
    recipe = Recipe.of(yaml.safe_load(recipes.LEVELS))
    assert not recipe.whole
    assert [source.layers for part in recipe.slices for source in part.sources] == [(0, 1)] * 3 + [(1, 3), (0, 2), (1, 3)]
    assert [str(model) for model in recipe.models] == ["org/base", "org/one", "org/two"]
    module = Recipe.of(yaml.safe_load(recipes.MODULE))
    (part,) = module.slices
    places = ["modules.default.models[0].parameters", "modules.default.models", "modules.default.parameters", "parameters"]
    assert [block.place for block in module.blocks(part, part.sources[0])] == places


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ("a/b", Reference(Origin("a/b"))),
        ("a/b@v1", Reference(Origin("a/b", "v1"))),
        ("a/b+c/d", Reference(Origin("a/b"), Origin("c/d"))),
        ("a@1+c@2", Reference(Origin("a", "1"), Origin("c", "2"))),
        ({"model": "a@1"}, Reference(Origin("a", "1"))),
        ({"model": {"path": "c++/x@y"}}, Reference(Origin("c++/x@y"))),
        ({"model": {"path": "a", "revision": "r"}, "lora": "b"}, Reference(Origin("a", "r"), Origin("b"))),
        ({"model": "a", "lora": {"path": "b", "revision": "r"}}, Reference(Origin("a"), Origin("b", "r"))),
    ],
)
def test_references(given, want):
    assert Reference.of(given) == want
    assert Reference.of(given, "x") in {want}
    if isinstance(given, str):
        assert str(want) == given


@pytest.mark.parametrize("given", ["", " ", "a@b@c", "a+b+c", "a@", "@x", "a+", {}, {"lora": "x"}, {"model": ""}, 3, None, ["a"]])
def test_what_is_no_reference(given):
    with pytest.raises(SettingsError, match=r"base_model"):
        Reference.of(given, "base_model")


def test_tokenizer_rules():
    text = """
source: org/one
pad_to_multiple_of: 64
tokens:
  <a>: {source: org/two, force: true}
  <b>: {source: {kind: zero}}
  <c>: {source: {kind: model_token, model: org/one, token: x}}
  <d>: {source: {kind: model_token, model: org/one, token_id: 7}}
  <e>:
"""
    rule = Recipe.of(changed(tokenizer=yaml.safe_load(text))).tokenizer
    assert rule is not None
    assert (rule.source, rule.multiple) == (ONE, 64)
    assert rule.tokens == {
        "<a>": TokenRule(donor=TWO, force=True),
        "<b>": TokenRule(zero=True),
        "<c>": TokenRule(donor=ONE, token="x"),
        "<d>": TokenRule(donor=ONE, row=7),
        "<e>": TokenRule(),
    }
    assert [each.says for each in rule.tokens.values()] == [True, True, True, True, False]
    for source in ("union", "base"):
        assert Recipe.of(changed(tokenizer_source=source)).tokenizer.source == source  # pyright: ignore[reportOptionalMemberAccess]
    assert Recipe.of(changed(tokenizer={})).tokenizer.source == "union"  # pyright: ignore[reportOptionalMemberAccess]
    assert Recipe.of(PLAIN).tokenizer is None


@pytest.mark.parametrize(
    ("word", "meant"), [("unoin", "union"), ("Union", "union"), ("unions", "union"), ("bse", "base"), ("BASE", "base")]
)
@pytest.mark.parametrize("key", ["tokenizer_source", "tokenizer"])
def test_a_misspelt_tokenizer_source_is_no_model_of_the_hub(word, meant, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {key: word if key == "tokenizer_source" else {"source": word}}
    with pytest.raises(UnknownName, match=rf"No such source for tokenizer.*\n.*{word}.*\n.*'{meant}'"):
        Recipe.of(changed(**given))
    for model in ("gpt2", "onionlm", "org/union", "./base", "union@main"):
        rule = Recipe.of(changed(tokenizer_source=model)).tokenizer
        assert rule is not None
        assert rule.source == Reference.of(model)
    Path(word).mkdir()
    rule = Recipe.of(changed(**given)).tokenizer
    assert rule is not None
    assert rule.source == Reference.of(word)


UNKNOWN = {
    "merge_metod: linear\nmodels: []": ("the recipe", "merge_metod", "did you mean 'merge_method'?"),
    "merge_method: linear\nmodels:\n- {model: a, parameter: {}}": ("models[0]", "parameter", "did you mean 'parameters'?"),
    "merge_method: slerp\nslices:\n- sources:\n  - {model: a, layer_rang: [0, 1]}": ("slices[0].sources[0]", "layer_rang", "layer_range"),
    "merge_method: slerp\nslices:\n- sorces: []": ("slices[0]", "sorces", "sources"),
    "merge_method: slerp\nmodels:\n- model: a\nparameters:\n  t:\n  - {pattern: mlp, value: 1}": (
        "parameters.t[0]",
        "pattern",
        "choose from filter, value",
    ),
    "merge_method: ties\nmodels:\n- {model: {model: a, loar: b}}": ("models[0].model", "loar", "lora"),
    "merge_method: ties\nmodels:\n- {model: {model: {path: a, revison: b}}}": ("models[0].model.model", "revison", "revision"),
    "merge_method: ties\nmodels:\n- {model: a}\ntokenizer: {sorce: union}": ("tokenizer", "sorce", "source"),
    "merge_method: ties\nmodels:\n- {model: a}\ntokenizer: {tokens: {x: {forced: true}}}": ("tokenizer.tokens['x']", "forced", "force"),
    "merge_method: ties\nmodels:\n- {model: a}\ntokenizer: {tokens: {x: {source: {kind: modeltoken}}}}": (
        "tokenizer.tokens['x'].source",
        "modeltoken",
        "model_token",
    ),
    "merge_method: ties\nmodels:\n- {model: a}\ndtype: bfloat61": ("dtype", "bfloat61", "bfloat16"),
    "merge_method: ties\nmodels:\n- {model: a}\nout_path: x": ("the recipe", "out_path", "choose from"),
    "merge_method: ties\nmodules:\n  default: {model: []}": ("modules.default", "model", "models"),
}


@pytest.mark.parametrize("text", UNKNOWN)
def test_an_unknown_key_is_refused_at_its_place(text):
    place, name, mend = UNKNOWN[text]
    told = refused(text, UnknownName)
    assert f" {place}.\n" in told
    assert f"met:  {name!r}" in told
    assert mend in told


MODELS = "merge_method: linear\nmodels:\n- {model: a}\n"
REFUSED = {
    "models:\n- {model: a}": "The recipe lacks merge_method.",
    "merge_method: linear": "The recipe holds one of models, slices, modules.\n  met:  none of them",
    MODELS + "slices: [{sources: []}]": "met:  models and slices",
    "merge_method: linear\nmodels: []": "models is a list that is not empty.",
    "merge_method: linear\nmodels: {model: a}": "models is a list that is not empty.",
    "merge_method: linear\nmodels: [a]": "models[0] holds keys and values.",
    "merge_method: linear\nmodels: [{parameters: {}}]": "models[0] lacks model.",
    MODELS + "- {model: a}": "A model stands twice in models.",
    MODELS + "parameters: [weight]": "parameters holds keys and values.",
    MODELS + "tokenizer: {}\ntokenizer_source: base": "tokenizer_source and tokenizer say the same.",
    MODELS + "tokenizer: {pad_to_multiple_of: 0}": "pad_to_multiple_of is a whole number",
    MODELS + "tokenizer: {tokens: [x]}": "tokenizer.tokens holds keys and values.",
    MODELS + "dtype: 16": "dtype is a text.",
    MODELS + "chat_template: [x]": "chat_template is a text.",
    "[1]": "The recipe holds keys and values.",
    "": "The recipe holds keys and values.\n  met:  nothing",
}
SOURCES = {
    "{model: a, layer_range: [2, 2]}": "slices[0].sources[0].layer_range is not a range of layers.\n  met:  [2, 2]",
    "{model: a, layer_range: [0, 2.0]}": "layer_range is not a range",
    "{model: a, layer_range: [false, true]}": "layer_range is not a range",
    "{model: a, layer_range: [-1, 2]}": "layer_range is not a range",
    "{model: a, layer_range: [0, 1, 2]}": "layer_range is not a range",
    "{model: a}": "slices[0].sources[0] lacks layer_range.",
    "{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 2]}": "The sources of slices[0] have different numbers of layers.",
    "{model: a, layer_range: [0, 1]}, {model: a, layer_range: [1, 2]}": "A model stands twice in slices[0].",
}
VALUES = {
    "": "parameters.weight is not a value.\n  met:  nothing",
    "[]": "parameters.weight is a list that is not empty.",
    "[1, .nan]": "parameters.weight[1] is not a value.",
    ".inf": "parameters.weight is not a value.",
    "[[1]]": "parameters.weight[0] is not a value.",
    "[{value: 1}, 2]": "parameters.weight[1] holds keys and values.",
    "[{filter: x}]": "parameters.weight[0] lacks value.",
    "[{filter: x, value: []}]": "parameters.weight[0].value is a list that is not empty.",
    "{filter: 3, value: 1}": "parameters.weight.filter is a text.",
    "[{value: 1}, {filter: x, value: 2}]": "parameters.weight[1] is never read.",
    "[{filter: '*', value: 1}, {value: 2}]": "parameters.weight[1] is never read.",
}
TOKENS = {
    "{force: 1}": "tokenizer.tokens['x'].force is true or false.",
    "{force: true}": "tokenizer.tokens['x'] forces a row and names no source.",
    "{source: {kind: model_token, model: a}}": "tokenizer.tokens['x'].source names one token of the model.",
    "{source: {kind: model_token, model: a, token: y, token_id: 1}}": "names one token of the model.",
    "{source: {kind: model_token, model: a, token_id: -1}}": "names one token of the model.",
    "{source: {kind: model_token, token_id: 1}}": "tokenizer.tokens['x'].source lacks model.",
    "{source: 5}": "tokenizer.tokens['x'].source holds keys and values.",
}
CASES = {
    **REFUSED,
    **{f"merge_method: linear\nslices: [{{sources: [{text}]}}]": told for text, told in SOURCES.items()},
    **{f"{MODELS}parameters:\n  weight: {text}": told for text, told in VALUES.items()},
    **{f"{MODELS}tokenizer: {{tokens: {{x: {text}}}}}": told for text, told in TOKENS.items()},
}


@pytest.mark.parametrize("text", CASES)
def test_what_cannot_be_meant_is_refused(text):
    with pytest.raises(SettingsError) as caught:
        Recipe.of(yaml.safe_load(text))
    assert CASES[text] in str(caught.value)


UNSUPPORTED = {
    "merge_method: linear\nmodels:\n- model: {model: a, override_architecture: B}": "models[0].model: 'B'",
    "merge_method: linear\nslices:\n- {sources: [{model: a, layer_range: [0, 1]}], residual_weight: 0.5}": "slices[0]: 0.5",
    "merge_method: linear\nmodules:\n  default: {models: [{model: a}]}\n  vision: {models: [{model: a}]}": "modules.vision",
    "merge_method: linear\nmodules:\n  text_decoder: {models: [{model: a}]}": "modules.text_decoder",
}


@pytest.mark.parametrize("text", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(text):
    assert f"met:  {UNSUPPORTED[text]}" in refused(text, UnsupportedError)


@pytest.mark.parametrize("written", ["merge_method: x\nmerge_method: y", "models:\n- model: a\n  model: b", "parameters: {t: 1, t: 2}"])
def test_a_key_that_stands_twice(tmp_path, written):
    (tmp_path / "r.yml").write_text(written)
    with pytest.raises(SettingsError, match=r"A key stands twice in one mapping\.\n  met:  '\w+' on line [123]"):
        Recipe.read(tmp_path / "r.yml")


@pytest.mark.parametrize("written", ["1: a", "yes: a", "? [a]\n: b", "tokenizer: {tokens: {~: {}}}"])
def test_a_key_that_is_no_text(tmp_path, written):
    (tmp_path / "r.yml").write_text(written)
    with pytest.raises(SettingsError, match="put it in quotes"):
        Recipe.read(tmp_path / "r.yml")


@pytest.mark.parametrize("written", [b"a: [", b"a: 1\n---\nb: 2", b"\xff\xfe", b"a: !!python/name:os.system x", b"[" * 5000])
def test_a_file_that_cannot_be_read(tmp_path, written):
    (tmp_path / "r.yml").write_bytes(written)
    with pytest.raises(StorageError, match=r"The recipe cannot be read\.\n.*r\.yml") as caught:
        Recipe.read(tmp_path / "r.yml")
    assert "one YAML file" in str(caught.value)
    with pytest.raises(StorageError, match="No such file"):
        Recipe.read(tmp_path / "absent.yml")


def test_anchors_and_merge_keys(tmp_path):
    shared = "merge_method: ties\nbase_model: b\nmodels:\n"
    (tmp_path / "r.yml").write_text(
        shared + "- model: x\n  parameters: &p {weight: 1, density: 0.5}\n- model: y\n  parameters: {<<: *p, weight: 2}\n"
    )
    (part,) = Recipe.read(tmp_path / "r.yml").slices
    assert {name: rules[0].value for name, rules in part.sources[1].parameters.rules.items()} == {"weight": 2, "density": 0.5}


def test_nothing_given_counts_as_absent():
    recipe = Recipe.of(changed(parameters=None, base_model=None, slices=None, tokenizer=None, dtype=None, chat_template=None))
    assert recipe == Recipe.of(PLAIN)


@pytest.mark.parametrize("name", recipes.ALL)
def test_mergekit_reads_the_same(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = pytest.importorskip("mergekit.config")
    content = yaml.safe_load(recipes.ALL[name])
    theirs, ours = config.MergeConfiguration.model_validate(content), Recipe.of(content)
    assert (theirs.merge_method, theirs.out_dtype) == (ours.merge_method, ours.out_dtype)
    assert {str(model) for model in theirs.referenced_models()} == {str(model) for model in (*ours.models, ours.donor)}
    held = theirs.modules["default"] if theirs.modules else theirs
    listed = [model.model for model in held.models or ()] or [source.model for part in held.slices for source in part.sources]
    sources = [source for part in ours.slices for source in part.sources if source.place != "base_model"]
    assert [str(model) for model in listed] == [str(source.model) for source in sources]


def test_what_mergekit_passes_over_in_silence():
    """The slip in a recipe that mergekit itself shipped for years: `pattern` for `filter`, so that every tensor had the first value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = pytest.importorskip("mergekit.config")
    content = {**yaml.safe_load(recipes.SLERP), "parameters": {"t": [{"pattern": "mlp", "value": 1}, {"value": 0.5}]}}
    theirs = config.MergeConfiguration.model_validate(content)
    assert config.evaluate_setting("model.layers.0.self_attn.q_proj.weight", theirs.parameters["t"], validate=float) == 1
    assert "parameters.t[0]" in refused(content, UnknownName)


def test_reading_a_recipe_and_planning_load_no_transformers():
    """Nor does a recipe's reading load torch: what a slip costs is an instant."""
    code = (
        "import sys, asterism.merge.recipe, asterism.core.reading; print('torch' in sys.modules);"
        "import asterism.merge.parameters, asterism.merge.plan, asterism.merge.vocabulary, asterism.merge.words;"
        "print('transformers' in sys.modules, 'tokenizers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"], done.stderr


def test_all_refusals_are_ours():
    """Whatever stands at whatever place, an error says what is wrong, what was met and how to mend it."""
    odd = [None, True, 0, 1.5, "x", [], {}, [1], ["a", {}], {"a": 1}, {1: 2}, [[[]]], {"value": {}}]
    content = yaml.safe_load(recipes.LEVELS) | {"tokenizer": {"tokens": {"x": {"source": {"kind": "zero"}}}}, "chat_template": "auto"}
    tried = 0
    for path in list(_paths(content)):
        for value in odd:
            with suppress(AsterismError):
                Recipe.of(_with(content, path, value))
            tried += 1
    assert tried > 500


def _paths(content, path=()):
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield (*path, key)
        yield from _paths(content[key], (*path, key))


def _with(content, path, value):
    if not path:
        return value
    copy = content.copy()
    copy[path[0]] = _with(content[path[0]], path[1:], value)
    return copy
