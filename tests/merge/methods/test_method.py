"""Parameters read from signatures, checked and bound: what is refused, and in which words."""

from importlib import import_module
from typing import Annotated

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import MismatchError, SettingsError, UnknownName, UnsupportedError
from asterism.merge.methods import METHODS, method
from asterism.merge.methods.families import Combination, Sparse
from asterism.merge.methods.method import PerModel, Told, parameters_of


def told(error):
    return str(error.value)


def test_a_signature_is_a_settings_schema():
    def halves(
        gram,
        *,
        share: Annotated[PerModel, Told("the model's part", 0, 1)] = 0.5,
        steps: Annotated[int, Told("how often", 1)],
        lambda_: Annotated[float, Told("a factor", high=3)] = 2.0,
        plain: Annotated[bool, Told("no frills")] = True,
    ):
        return gram

    parameters = parameters_of(halves)
    assert list(parameters) == ["share", "steps", "lambda", "plain"]
    assert [each.kind for each in parameters.values()] == ["float", "int", "float", "bool"]
    assert [each.scope for each in parameters.values()] == ["model", "method", "method", "method"]
    assert [each.required for each in parameters.values()] == [False, True, False, False]
    ranges = ["a number from 0 to 1", "a whole number, at least 1", "a number, at most 3", "true or false"]
    assert [each.range for each in parameters.values()] == ranges
    assert parameters["share"].help == "the model's part"
    mine = Combination(halves, "Halves", "nowhere", "models", "none")
    assert mine.name == "halves"
    assert mine.bind({"steps": 3}, [{}, {"share": 0.25}]) == {"share": (0.5, 0.25), "steps": 3, "lambda": 2.0, "plain": True}


def test_a_misspelt_parameter_or_method_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"No such parameter of ties\.\n  met:  'densty'\n  mend: did you mean 'density'\?"):
        METHODS["ties"].check({"weight": 1, "densty": 0.5})
    with pytest.raises(UnknownName, match=r"did you mean 'lambda'"):
        METHODS["ties"].check({"lambda_": 0.5})
    with pytest.raises(UnknownName, match=r"No such merge method\.\n  met:  'tie'\n  mend: did you mean 'ties'"):
        method("tie")
    with pytest.raises(UnknownName, match=r"did you mean 'ties'"):
        method("TIES")
    assert method("ties") is METHODS["ties"]


@pytest.mark.parametrize(
    ("name", "where", "called"),
    [(name, "learned", "learned_merge") for name in ("fisher", "regmean", "adamerging")]
    + [("greedy_soup", "soup", "greedy_soup"), ("emr", "emr", "Emr")],
)
def test_merges_that_no_recipe_can_ask_for_are_told_where_they_are(name, where, called):
    with pytest.raises(UnsupportedError, match=rf"not made from a recipe.\n  met:  '{name}'\n  mend: .*asterism.merge.{where}.{called}"):
        method(name)
    assert hasattr(import_module(f"asterism.merge.{where}"), called)


@pytest.mark.parametrize(
    ("name", "parameter", "value", "range"),
    [
        ("ties", "density", 1.01, "a number from 0 to 1"),
        ("ties", "density", "half", "a number from 0 to 1"),
        ("ties", "density", True, "a number from 0 to 1"),
        ("ties", "density", [0.5, -0.1], "a number from 0 to 1"),
        ("ties", "weight", float("nan"), "a number"),
        ("ties", "weight", float("inf"), "a number"),
        ("ties", "weight", None, "a number"),
        ("ties", "weight", {"a": 1}, "a number"),
        ("ties", "normalize", "yes", "true or false"),
        ("ties", "normalize", 2, "true or false"),
        ("ties", "lambda", [1, 2], "a number"),
        ("slerp", "t", -0.1, "a number from 0 to 1"),
        ("karcher", "max_iter", 2.5, "a whole number, at least 0"),
        ("karcher", "max_iter", -1, "a whole number, at least 0"),
        ("nearswap", "t", "-1e-4", "a number, at least 0"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused(name, parameter, value, range):
    with pytest.raises(SettingsError) as error:
        METHODS[name].check({parameter: value})
    assert f"{name}.{parameter} takes {range}.\n  met:  " in told(error)
    assert f"mend: {METHODS[name].parameters[parameter].help}" in told(error)


def test_values_are_read_as_their_kinds():
    got = METHODS["ties"].check({"weight": ("1e-4", 2), "density": 1, "normalize": 0, "rescale": True, "lambda": "-2"})
    assert got == {"weight": (1e-4, 2.0), "density": 1.0, "normalize": False, "rescale": True, "lambda": -2.0}
    assert [type(value) for value in got.values()] == [tuple, float, bool, bool, float]
    assert METHODS["karcher"].check({"max_iter": 3.0}) == {"max_iter": 3}
    assert type(METHODS["karcher"].check({"max_iter": "3"})["max_iter"]) is int


def test_a_models_own_value_comes_before_the_shared_one_and_that_before_the_default():
    got = METHODS["ties"].bind({"weight": 0.3, "lambda": 2}, [{}, {"weight": 0.5}, {"density": 0.1}])
    assert got == {"weight": (0.3, 0.5, 0.3), "density": (1.0, 1.0, 0.1), "normalize": True, "rescale": False, "lambda": 2.0}
    assert METHODS["ties"].bind({"weight": [1, 2]}, [{}, {"weight": 5}])["weight"] == (1, 5)
    assert "int8_mask" not in METHODS["ties"].bind({"weight": 1, "int8_mask": True}, [{}])


def test_a_missing_value_is_asked_for_by_name():
    with pytest.raises(
        SettingsError, match=r"ties needs weight for model 1\.\n  met:  none\n  mend: a number: factor of the model's delta"
    ):
        METHODS["ties"].bind({}, [{"weight": 1}, {}])
    with pytest.raises(SettingsError, match=r"slerp needs t\.\n  met:  none\n  mend: a number from 0 to 1: place on the arc"):
        METHODS["slerp"].bind({}, [{}, {}])


def test_what_belongs_to_all_models_is_not_given_to_one():
    with pytest.raises(SettingsError, match=r"ties.normalize has one value for all models\.\n  met:  normalize of model 1"):
        METHODS["ties"].bind({"weight": 1}, [{}, {"normalize": False}])


def test_numbers_of_models_and_of_values():
    with pytest.raises(MismatchError, match=r"slerp merges 2 models\.\n  met:  3"):
        METHODS["slerp"].bind({"t": 0.5}, [{}] * 3)
    with pytest.raises(MismatchError, match=r"nearswap merges 1 model besides the base\.\n  met:  2"):
        METHODS["nearswap"].bind({"t": 0.5}, [{}] * 2)
    with pytest.raises(MismatchError, match=r"model_stock merges at least 2 models besides the base\.\n  met:  1"):
        METHODS["model_stock"].bind({}, [{}])
    with pytest.raises(MismatchError, match=r"one value a model\.\n  met:  2 values, 3 models"):
        METHODS["ties"].bind({"weight": [1, 2]}, [{}] * 3)


def test_settings_that_contradict_each_other_are_refused_before_there_are_tensors():
    with pytest.raises(SettingsError, match="weights sum to 0"):
        METHODS["linear"].bind({"weight": 0}, [{}] * 2)
    with pytest.raises(SettingsError, match=r"density 0.9, epsilon 0.15"):
        METHODS["della"].bind({"weight": 1, "density": 0.9}, [{}] * 2)


@given(st.sampled_from(sorted(METHODS)), st.integers(0, 2**32 - 1))
def test_every_method_merges_what_its_own_signature_asks_for(name, seed):
    chosen = METHODS[name]
    count = min(max(chosen.least, 3), chosen.most or 3)
    parameters = {each.name: 0.5 for each in chosen.parameters.values() if each.required}
    keys = range(count) if isinstance(chosen, Sparse) and chosen.draws else ()
    stack = torch.randn(count, 5, 7, generator=torch.Generator().manual_seed(seed))
    merged = chosen.on_stack(stack, keys=keys, **parameters)
    assert merged.shape == (5, 7)
    assert merged.isfinite().all()
    assert torch.equal(merged, chosen.on_stack(stack.clone(), keys=keys, **parameters))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    chosen = METHODS[name]
    assert chosen.name == name
    assert chosen.title
    assert chosen.source
    assert chosen.function.__doc__
    assert "arXiv" not in chosen.source or chosen.source in chosen.function.__doc__
    assert all(each.help and each.name == key for key, each in chosen.parameters.items())
    assert chosen.stack != "deltas" or chosen.base == "required"
