"""Which value a parameter has for a tensor: by hand, by an oracle in plain Python, and by mergekit's own resolver."""

from __future__ import annotations

import warnings

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import MismatchError, SettingsError, UnknownName
from asterism.merge.methods import METHODS, method
from asterism.merge.parameters import base_of, check, check_filters, place_in_stack, resolve
from asterism.merge.recipe import Recipe
from tests.merge import recipes

NAMES = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.2.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
)
PLACES = (0.0, 1 / 3, 0.5, 0.999, 1.0)


def recipe_of(text_or_mapping) -> Recipe:
    return Recipe.of(yaml.safe_load(text_or_mapping) if isinstance(text_or_mapping, str) else text_or_mapping)


def resolved(recipe: Recipe, name: str, t: float, part: int = 0):
    piece = recipe.slices[part]
    return resolve(method(recipe.merge_method), recipe, piece, name, [name] * len(piece.sources), t)


def test_levels_by_hand():
    recipe = recipe_of(recipes.LEVELS)
    name = "model.layers.0.mlp.up_proj.weight"
    shared, each = resolved(recipe, name, 0.25)
    assert shared == {"lambda": 0.5}
    assert each == ({}, {"weight": 0.9, "density": 0.5}, {"weight": 0.4, "density": 0.5})  # source > slice > recipe; the base has none
    shared, each = resolved(recipe, name, 0.25, part=1)
    assert shared == {}
    assert each[0] == pytest.approx({"weight": 0.125, "density": 0.25})  # a gradient at a quarter
    assert each[1] == {}
    assert each[2] == pytest.approx({"weight": 0.65, "density": 0.5})


def test_module_filters_and_fall_through():
    recipe = recipe_of(recipes.MODULE)
    assert resolved(recipe, "layers.0.self_attn.q_proj.weight", 0.5) == (
        {"normalize": False},
        (
            {"weight": 0.2, "epsilon": 0.05, "density": 0.4},
            {},
            {"weight": 0.7, "density": 0.4},
        ),
    )
    assert resolved(recipe, "layers.0.mlp.up_proj.weight", 1)[1][2] == {"weight": 0.1, "density": 0.6}  # module's rule does not match


def test_filters_look_at_a_models_own_name_or_at_the_outputs():
    content = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": "a", "layer_range": [5, 6], "parameters": {"scale": [{"filter": "layers.5.", "value": 2}]}}]}],
    }
    recipe = recipe_of(content)
    (part,) = recipe.slices
    assert resolve(method("passthrough"), recipe, part, "layers.0.x", ["layers.5.x"], 1)[1] == ({"scale": 2.0},)
    assert resolve(method("passthrough"), recipe, part, "layers.5.x", ["layers.0.x"], 1)[1] == ({},)
    recipe = recipe_of(recipes.SLERP)
    values = resolve(method("slerp"), recipe, recipe.slices[0], "layers.0.mlp.x", ["layers.1.self_attn.x"] * 2, 0)
    assert values == ({"t": 1.0}, ({}, {}))


def test_gradients_of_truth_values_step():
    recipe = recipe_of(recipes.BASELESS)
    found = [resolved(recipe, "x", t)[0]["nuslerp_flatten"] for t in (0, 0.5, 0.999, 1)]
    assert found == [False, False, False, True]


def test_a_base_that_the_method_does_not_know_is_a_model_like_the_others():
    recipe = recipe_of(recipes.BASED)
    assert base_of(method("linear"), recipe.slices[0]) is None
    assert resolved(recipe, "model.norm.weight", 0)[1] == ({"weight": 1.0},) * 3
    assert resolved(recipe, "lm_head.weight", 0.25)[1] == ({"weight": 3.0},) * 3
    assert base_of(method("task_arithmetic"), recipe.slices[0]) == 2
    assert base_of(method("slerp"), recipe_of(recipes.SLERP).slices[0]) == 0


def test_place_in_stack():
    assert [place_in_stack(layer, 5) for layer in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert place_in_stack(0, 1) == 1


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.floats(0, 1))
def test_a_gradient_is_the_polygon_through_its_values(values, t):
    recipe = recipe_of({"merge_method": "linear", "models": [{"model": "a"}], "parameters": {"weight": values}})
    (found,) = resolved(recipe, "x", t)[1]
    want, n = 0.0, len(values)
    for place, value in enumerate(values):  # hat functions
        want += value * max(0.0, 1 - abs(t * (n - 1) - place))
    assert found["weight"] == pytest.approx(want, abs=1e-12)
    assert min(values) - 1e-12 <= found["weight"] <= max(values) + 1e-12


SCALAR = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0, 1, "0.25", "5e-1"]))
VALUE = st.one_of(SCALAR, st.lists(SCALAR, min_size=1, max_size=4))
FILTER = st.sampled_from(["*", "mlp", "self_attn", "layers.1.", "norm", "embed", "q_proj"])
SETTING = st.one_of(
    VALUE,
    st.builds(lambda value, part: {"value": value, "filter": part}, VALUE, FILTER),
    st.builds(
        lambda rules, last: [*({"value": value, "filter": part} for value, part in rules), {"value": last}],
        st.lists(st.tuples(VALUE, FILTER.filter(lambda part: part != "*")), max_size=3),
        VALUE,
    ),
)
BLOCK = st.fixed_dictionaries({}, optional={"weight": SETTING, "density": SETTING, "epsilon": SETTING})
SHARED = st.fixed_dictionaries({}, optional={"lambda": SETTING, "normalize": st.sampled_from([True, False, [True, False]])})


@st.composite
def della(draw):
    """A recipe with settings at every level."""
    sources = [{"model": name, "layer_range": [0, 3]} for name in draw(st.permutations(["base", "a", "b"]))]
    for source in sources:
        if source["model"] != "base":
            source["parameters"] = draw(BLOCK)
    part = {"sources": sources, "parameters": draw(BLOCK) | draw(SHARED)}
    module = {"slices": [part], "parameters": draw(BLOCK) | draw(SHARED)}
    content = {"merge_method": "della", "base_model": "base", "parameters": {"weight": 1.0} | draw(BLOCK) | draw(SHARED)}
    return content | ({"modules": {"default": module}} if draw(st.booleans()) else {"slices": [part]})


@given(della(), st.sampled_from(NAMES), st.sampled_from(PLACES))
def test_mergekit_resolves_the_same(content, name, t):
    theirs = by_mergekit(content, name, t)
    recipe = recipe_of(content)
    check(method("della"), recipe)
    assert with_defaults(recipe, *resolved(recipe, name, t)) == theirs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", recipes.ALL)
def test_mergekit_resolves_the_examples_the_same(text, name):
    content = yaml.safe_load(recipes.ALL[text])
    recipe = recipe_of(content)
    for part in range(len(recipe.slices)):
        for t in PLACES:
            assert with_defaults(recipe, *resolved(recipe, name, t, part), part) == by_mergekit(content, name, t, part)


def with_defaults(recipe, shared, each, part=0):
    """As mergekit tells it: every parameter, those that are not given at their defaults; nothing for a base outside the stack."""
    known = method(recipe.merge_method)
    full = {p.name: shared.get(p.name, p.default) for p in known.parameters.values() if p.scope == "method"}
    own = [p for p in known.parameters.values() if p.scope == "model"]
    base = base_of(known, recipe.slices[part]) if known.stack != "models" else None
    return full, [{} if place == base else {p.name: got.get(p.name, p.default) for p in own} for place, got in enumerate(each)]


def by_mergekit(content, name, t, part=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit")
        from mergekit import merge_methods
        from mergekit.config import ConfigReader, InputSliceDefinition, MergeConfiguration, OutputModuleDefinition, OutputSliceDefinition
        from mergekit.parameter_resolver import resolve_parameters
    config = MergeConfiguration.model_validate(content)
    module = config.modules["default"] if config.modules else OutputModuleDefinition(slices=config.slices, models=config.models)
    if module.models:
        inputs = [InputSliceDefinition(model=each.model, layer_range=(0, 3), parameters=each.parameters) for each in module.models]
        if config.base_model and config.base_model not in [each.model for each in inputs]:
            inputs.append(InputSliceDefinition(model=config.base_model, layer_range=(0, 3)))
        out = OutputSliceDefinition(sources=inputs)
    else:
        out = module.slices[part]
    reader = ConfigReader(config=config, slice_out=out, t=t, module=module)
    models = [source.model for source in out.sources]
    shared, each = resolve_parameters(
        merge_methods.get(config.merge_method).spec,
        tensor_name=name,
        inputs=dict.fromkeys(models, name),
        sources=reader.parameter_sources,
        base_model=reader.base_model,
        t=t,
    )
    told = [{name: 1.0 if (name, value) == ("scale", None) else value for name, value in each[model].items()} for model in models]
    return shared, told  # passthrough's scale: mergekit says None for 1


def refusal(content, kind) -> str:
    recipe = recipe_of(content)
    with pytest.raises(kind) as caught:
        check(method(recipe.merge_method), recipe)
    return str(caught.value)


def ties(**parameters):
    models = [{"model": "base"}, {"model": "a", "parameters": {"weight": 1, **parameters}}]
    return {"merge_method": "ties", "base_model": "base", "models": models}


def test_an_unknown_parameter_is_refused_at_its_place():
    told = refusal(ties(densty=0.5), UnknownName)
    assert told == "No such parameter of ties in models[1].parameters.\n  met:  'densty'\n  mend: did you mean 'density'?"
    assert "in parameters." in refusal({**ties(), "parameters": {"lamda": 1}}, UnknownName)
    slices = [{"sources": [{"model": "a", "layer_range": [0, 1]}, {"model": "b", "layer_range": [0, 1]}], "parameters": {"T": 0.5}}]
    assert "of slerp in slices[0].parameters." in refusal({"merge_method": "slerp", "base_model": "a", "slices": slices}, UnknownName)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1.5, "models[1].parameters.density takes a number from 0 to 1 in ties.\n  met:  1.5\n"),
        (-0.1, "met:  -0.1\n"),
        ("half", "met:  'half'\n"),
        (True, "met:  True\n"),
        ([0.5, 2], "met:  2\n"),
        ([{"filter": "mlp", "value": [0.1, 7]}, {"value": 0.5}], "met:  7\n"),
    ],
)
def test_a_value_out_of_range_is_refused_at_its_place(value, told):
    assert told in refusal(ties(density=value), SettingsError)


def test_what_nothing_reads_is_refused():
    content = {**ties(), "models": [{"model": "base", "parameters": {"weight": 1}}, {"model": "a", "parameters": {"weight": 1}}]}
    assert refusal(content, SettingsError).startswith("models[0].parameters.weight is never read.\n  met:  base is the base of ties\n")
    assert "models[1].parameters.normalize is never read." in refusal(ties(normalize=True), SettingsError)
    linear = {"merge_method": "linear", "base_model": "base", "models": [{"model": "base", "parameters": {"weight": 1}}]}
    check(method("linear"), recipe_of(linear))  # linear knows no base, so it reads every model's weight


def test_a_required_parameter_that_a_tensor_lacks():
    recipe = recipe_of(ties(weight=[{"filter": "mlp", "value": 1}]))
    resolved(recipe, "layers.0.mlp.x", 0)
    with pytest.raises(SettingsError, match=r"ties needs weight.\n  met:  none for layers.0.attn.x of a\n") as caught:
        resolved(recipe, "layers.0.attn.x", 0)
    assert "without a filter" in str(caught.value)
    recipe = recipe_of({**yaml.safe_load(recipes.SLERP), "parameters": None})
    with pytest.raises(SettingsError, match=r"slerp needs t.\n  met:  none for x\n"):
        resolved(recipe, "x", 0)


def test_a_filter_that_matches_nothing():
    recipe = recipe_of(recipes.TIES)
    check_filters(method("ties"), recipe, NAMES, NAMES)
    with pytest.raises(SettingsError, match=r"A filter matches no tensor.\n  met:  'mlp' in models\[2\].parameters.weight\[0\]\n"):
        check_filters(method("ties"), recipe, NAMES, NAMES[:2])
    recipe = recipe_of(recipes.SLERP)
    check_filters(method("slerp"), recipe, NAMES, ())  # parameters of the method look at the output's names
    with pytest.raises(SettingsError, match=r"'self_attn' in parameters\.t\[0\]"):
        check_filters(method("slerp"), recipe, NAMES[2:], NAMES)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_checked_without_a_recipe_of_its_own(name):
    """No parameter at all: nothing to refuse, and what is missing is told when a tensor asks for it."""
    known = METHODS[name]
    models = [{"model": f"m{number}"} for number in range(max(known.least, 1) + (known.stack != "models"))]
    recipe = recipe_of({"merge_method": name, "models": models, "base_model": "m0"})
    check(known, recipe)
    required = [p for p in known.parameters.values() if p.required]
    if required:
        with pytest.raises(SettingsError, match=f"{name} needs {required[0].name}"):
            resolved(recipe, "x", 0)
    else:
        resolved(recipe, "x", 0)
    with pytest.raises((UnknownName, MismatchError)):
        check(known, recipe_of({"merge_method": name, "models": models, "parameters": {"no_such": 1}}))
