"""All twenty of mergekit's methods, as its own Python functions compute them: names, parameters, defaults, numbers.

In float64 on both sides, but for the one test of bf16. Where ours differ on purpose, a test says how far.
"""

import warnings

import numpy as np
import pytest
import torch

from asterism.core.draws import stream_key, uniform
from asterism.merge.methods import METHODS
from asterism.merge.methods.families import Sparse

pytest.importorskip("mergekit")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mergekit.merge_methods import TensorGroup, registered_methods
    from mergekit.merge_methods.base import MISSING, BasePolicy

THEIRS = {method.spec.name: method for method in registered_methods()}
KEYS = tuple(stream_key(0, "a tensor", str(i)) for i in range(8))
PER_MODEL = {"weight": (0.7, -0.2, 0.6), "density": (0.5, 0.3, 1.0), "gamma": (0.1, 0.2, 0.3), "epsilon": (0.1, 0.2, 0.15)}
CASES = [
    *[("linear", 3, {"weight": PER_MODEL["weight"], "normalize": normalize}) for normalize in (True, False)],
    *[("slerp", 2, {"t": t}) for t in (0.0, 0.3, 1.0)],
    ("nuslerp", 2, {"weight": (0.7, 0.2)}),
    ("nuslerp", 2, {"weight": (0.7, -0.7)}),
    *[("nuslerp", 2, {"weight": (0.7, 0.2), "nuslerp_flatten": False, "nuslerp_row_wise": by_row}) for by_row in (True, False)],
    *[("multislerp", 3, {"weight": (0.7, 0.2, 0.6), "normalize_weights": normalize}) for normalize in (True, False)],
    ("multislerp", 1, {"weight": (0.7,)}),
    ("karcher", 3, {}),
    ("karcher", 4, {"max_iter": 2}),
    ("karcher", 1, {}),
    ("task_arithmetic", 3, {"weight": PER_MODEL["weight"]}),
    ("task_arithmetic", 3, {"weight": PER_MODEL["weight"], "density": 0.1, "rescale": True, "int8_mask": True, "lambda": 0.5}),
    ("task_arithmetic", 3, {"weight": PER_MODEL["weight"], "normalize": True}),
    *[
        (name, 3, {each: PER_MODEL[each] for each in ("weight", "density", "gamma", "epsilon") if each in METHODS[name].parameters} | more)
        for name in ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear")
        for more in ({}, {"normalize": True, "rescale": False, "lambda": 0.5}, {"normalize": False, "rescale": True, "int8_mask": True})
    ],
    *[("sce", 3, {"select_topk": share}) for share in (0.0, 0.25, 1.0)],
    ("ram", 3, {}),
    ("ram", 3, {"epsilon": 1.0}),
    ("ramplus_tl", 3, {"epsilon": 1.0}),
    ("ramplus_tl", 3, {"epsilon": 1.0, "r": 0.5, "alpha": 0.7}),
    *[("model_stock", k, {"filter_wise": by_row}) for k in (2, 3) for by_row in (True, False)],
    ("nearswap", 1, {"t": 0.5}),
    ("arcee_fusion", 2, {}),
    ("passthrough", 1, {"scale": (0.3,)}),
    ("passthrough", 1, {}),
]


def theirs(name, models, base, parameters, monkeypatch, **dtypes):
    """mergekit's merge; the draws of its n-th sparsified delta are ours with the n-th key."""
    density = np.broadcast_to(parameters.get("density", 1.0), len(models))
    keys = iter([key for key, share in zip(KEYS, density, strict=False) if 0 < share < 1])

    def bernoulli(chances):
        return (uniform(next(keys), chances.numel()).view(chances.shape) < chances).to(chances.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    tensors = [model.clone() for model in models]
    if base is not None:
        tensors.append(base.clone())
    group = TensorGroup.from_tensors(tensors, base_index=None if base is None else len(tensors) - 1)
    method = THEIRS[name]
    (result,) = method([group], parameters=parameters, **dtypes)
    return result


def arranged(name, k, dtype=torch.float64, scale=1.0):
    """Models for mergekit (the base apart), and a stack and a base for ours."""
    method = METHODS[name]
    base = torch.randn(6, 10, dtype=torch.float64).to(dtype)
    models = [(base + scale * torch.randn(6, 10, dtype=torch.float64)).to(dtype) for _ in range(k)]
    if method.stack == "models":
        return (models[1:], models[0], models, None) if method.base == "required" else (models, None, models, None)
    return models, base, models, base


def ours(name, tensors, base, parameters, dtype=None):
    method = METHODS[name]
    out = torch.full_like(tensors[0], float("nan"), dtype=dtype or tensors[0].dtype)
    keys = KEYS[: len(tensors)] if isinstance(method, Sparse) and method.draws else ()
    method.into(out, tensors, base, bound=method.bind(parameters, [{}] * len(tensors)), keys=keys)
    return out


@pytest.mark.parametrize(("name", "k", "parameters"), CASES)
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_the_numbers_are_mergekits(name, k, parameters, scale, monkeypatch):
    models, base, tensors, our_base = arranged(name, k, scale=scale)
    want = theirs(name, models, base, parameters, monkeypatch)
    got = ours(name, tensors, our_base, parameters)
    through_float32 = ("dare_linear", "dare_ties", "della", "della_linear", "ramplus_tl")  # in mergekit, whatever the inputs
    loose = 1e-6 if name in through_float32 else 1e-9
    np.testing.assert_allclose(got, want, rtol=loose, atol=loose)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_without_a_base_the_models_themselves_are_merged(name, monkeypatch):
    _, _, models, _ = arranged(name, 2)
    want = theirs(name, models, None, {"weight": (0.3, 0.4)}, monkeypatch)
    np.testing.assert_allclose(ours(name, models, None, {"weight": (0.3, 0.4)}), want, atol=1e-9)
    assert float((METHODS[name].on_stack(torch.stack(models), weight=(0.3, 0.4)) - want).abs().max()) < 1e-9


@pytest.mark.parametrize(
    "name", ["linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "model_stock", "nearswap", "sce"]
)
def test_bf16_is_merged_in_float32_and_rounded_once(name, monkeypatch):
    k = METHODS[name].most or 3
    parameters = {"weight": 0.3} if "weight" in METHODS[name].parameters else {"t": 0.3} if "t" in METHODS[name].parameters else {}
    models, base, tensors, our_base = arranged(name, k, torch.bfloat16)
    wide = theirs(name, models, base, parameters, monkeypatch, dtype=torch.float64)
    got = ours(name, tensors, our_base, parameters)
    assert got.dtype == torch.bfloat16
    unlike = (got.double() - wide).abs() > 2**-8 * 1.01 * wide.abs() + 1e-6
    assert not unlike.any()
    narrow = theirs(name, models, base, parameters, monkeypatch)
    if name not in ("linear", "slerp"):  # mergekit works in bf16 there
        assert ((narrow.double() - wide).abs() > 2**-8 * 1.01 * wide.abs() + 1e-6).any()


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_names_scopes_and_defaults_are_mergekits(name):
    spec, method = THEIRS[name].spec, METHODS[name]
    assert {each.name for each in spec.parameters} == set(method.parameters)
    for each in spec.parameters:
        parameter = method.parameters[each.name]
        assert parameter.scope == ("method" if each.scope.value == "shared" else "model")
        assert parameter.required == (each.default is MISSING)
        if not parameter.required and each.default is not None:
            assert parameter.default == each.default or parameter.idle
        assert parameter.kind == getattr(each.value_type, "__name__", "float").lower().replace("optional", "float")


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_a_base_and_numbers_of_models_are_asked_for_as_in_mergekit(name):
    contract, method = THEIRS[name].spec.contract, METHODS[name]
    policy = {BasePolicy.REQUIRED: "required", BasePolicy.OPTIONAL: "optional", BasePolicy.IGNORED: "none"}
    assert method.base == policy[contract.base]
    for count in range(6):  # stacked models
        inputs = count + (method.stack == "deltas")
        beside = count if method.stack != "models" or method.base == "none" else count - 1
        fits = contract.min_inputs <= inputs and (contract.max_inputs is None or inputs <= contract.max_inputs)
        fits &= (contract.min_non_base or 0) <= beside and (contract.max_non_base is None or beside <= contract.max_non_base)
        assert (method.least <= count and (method.most is None or count <= method.most)) == fits, count


def test_there_are_all_twenty():
    assert len(THEIRS) == 20
    assert set(METHODS) == set(THEIRS) | {"lerp", "uniform"}


# Where ours differ on purpose.


def test_mergekit_finds_no_chance_for_rows_of_one_and_no_mean_of_unchanged_models(monkeypatch):
    base = torch.randn(6, 1, dtype=torch.float64)
    models = [torch.randn(6, 1, dtype=torch.float64) for _ in range(2)]
    with monkeypatch.context() as patch:
        assert theirs("della", models, base, {"weight": 1, "density": 0.5}, patch).equal(base)  # chances that are NaN keep nothing
    assert not ours("della", models, base, {"weight": 1, "density": 0.5}).equal(base)
    with pytest.raises(ValueError, match="weighted sum of the input tensors is zero"):
        theirs("multislerp", [base.clone() for _ in range(3)], base, {"weight": 1}, monkeypatch)
    assert ours("multislerp", [base.clone() for _ in range(3)], base, {"weight": 1}).equal(base)


def test_small_deltas_are_told_apart_by_model_stock_and_sce(monkeypatch):
    for name, parameters in (("model_stock", {}), ("sce", {})):
        models, base, _, _ = arranged(name, 3, scale=1e-5)
        models = [base + (i + 1) * (model - base) for i, model in enumerate(models)]
        usual = [base + 1e4 * (model - base) for model in models]
        want = base + 1e-4 * (theirs(name, usual, base, parameters, monkeypatch) - base)
        got = ours(name, models, base, parameters)
        np.testing.assert_allclose(got - base, want - base, rtol=1e-6, atol=1e-12)
        small = theirs(name, models, base, parameters, monkeypatch)
        assert float((small - want).abs().max() / (want - base).abs().max()) > 0.05
