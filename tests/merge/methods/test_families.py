"""Carrying methods out on raw tensors: dtypes, bases, layouts, and inputs that are refused."""

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError, MismatchError, UnsupportedError
from asterism.merge.methods import METHODS
from asterism.merge.methods.families import Sparse

ROWS = [
    ("model_stock", {"filter_wise": True}),
    ("nuslerp", {"nuslerp_flatten": False}),
    ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
]
ALL = [(name, {}) for name in METHODS] + ROWS


def count(name):
    return min(max(METHODS[name].least, 3), METHODS[name].most or 3)


def into(name, out, tensors, base=None, parameters=None, label=""):
    chosen = METHODS[name]
    required = {each.name: 0.4 for each in chosen.parameters.values() if each.required}
    required |= {"density": 0.5} if "density" in chosen.parameters else {}
    bound = chosen.bind(required | (parameters or {}), [{}] * len(tensors))
    keys = range(len(tensors)) if isinstance(chosen, Sparse) and chosen.draws else ()
    chosen.into(out, tensors, base, bound=bound, keys=keys, name=label)
    return out


def given(name, dtype, shape=(6, 10)):
    """Tensors, and a base where the method may have one beside the stack."""
    base = torch.randn(shape, dtype=torch.float64)
    tensors = [(base + 0.3 * torch.randn(shape, dtype=torch.float64)).to(dtype) for _ in range(count(name))]
    return tensors, None if METHODS[name].stack == "models" else base.to(dtype)


@pytest.mark.parametrize(("name", "parameters"), ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_merged_wide_and_rounded_once(name, parameters, dtype):
    tensors, base = given(name, dtype)
    out = into(name, torch.full_like(tensors[0], float("nan")), tensors, base, parameters)
    wide_base = None if base is None else base.float()
    wide = into(name, torch.empty(out.shape), [tensor.float() for tensor in tensors], wide_base, parameters)
    assert out.dtype == dtype
    assert torch.equal(out, wide.to(dtype)) or ((out - wide.to(dtype)).abs() <= 2 * torch.finfo(dtype).eps * wide.abs()).all()
    assert float((out != wide.to(dtype)).float().mean()) < 0.05  # but for float32's own rounding next to a midpoint


@pytest.mark.parametrize(("name", "parameters"), ALL)
def test_inputs_and_output_may_be_of_several_dtypes(name, parameters):
    tensors, base = given(name, torch.bfloat16)
    want = into(name, torch.empty(6, 10, dtype=torch.float64), tensors, base, parameters)
    mixed = [tensor.to(dtype) for tensor, dtype in zip(tensors, (torch.float32, torch.bfloat16, torch.float64), strict=False)]
    np.testing.assert_allclose(into(name, torch.empty(6, 10), mixed, base, parameters), want, rtol=1e-5, atol=1e-6)
    if base is not None:
        np.testing.assert_allclose(into(name, torch.empty(6, 10), tensors, base.float(), parameters), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "parameters"), ALL)
def test_a_narrower_output_is_rounded_to_once(name, parameters):
    tensors, base = given(name, torch.float32)
    want = into(name, torch.empty(6, 10), tensors, base, parameters).bfloat16()
    assert torch.equal(into(name, torch.empty(6, 10, dtype=torch.bfloat16), tensors, base, parameters), want)


@pytest.mark.parametrize(("name", "parameters"), ALL)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 1), (2, 3, 4), (0, 5)])
def test_any_shape(name, parameters, shape):
    tensors, base = given(name, torch.float32, shape)
    out = into(name, torch.full(shape, float("nan")), tensors, base, parameters)
    assert out.shape == shape
    assert out.isfinite().all()


@pytest.mark.parametrize(("name", "parameters"), ALL)
def test_a_transposed_input_is_read_as_it_stands(name, parameters):
    tensors, base = given(name, torch.float32)
    want = into(name, torch.empty(6, 10), tensors, base, parameters)
    turned = [tensor.T.contiguous().T for tensor in tensors]
    turned_base = None if base is None else base.T.contiguous().T
    assert torch.equal(into(name, torch.empty(6, 10), turned, turned_base, parameters), want)


@pytest.mark.parametrize(("name", "parameters"), ALL)
def test_the_base_is_added_to_the_merged_deltas(name, parameters):
    tensors, base = given(name, torch.float64)
    if base is None:
        with pytest.raises(MismatchError, match=rf"{name} merges models, no deltas"):
            into(name, torch.empty(6, 10, dtype=torch.float64), tensors, tensors[0], parameters)
        return
    want = base + into(name, torch.empty_like(base), [tensor - base for tensor in tensors], None, parameters)
    np.testing.assert_allclose(into(name, torch.empty_like(base), tensors, base, parameters), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "parameters"), ALL)
def test_models_equal_to_the_base_leave_it_bit_for_bit(name, parameters):
    _, base = given(name, torch.bfloat16)
    if base is not None:
        out = into(name, torch.empty_like(base), [base.clone() for _ in range(count(name))], base, parameters)
        assert torch.equal(out, base)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].least == 0])
def test_the_base_alone_is_its_own_merge(name):
    base = torch.randn(3, 4).bfloat16()
    assert torch.equal(into(name, torch.empty_like(base), [], base), base)


@pytest.mark.parametrize(("name", "parameters"), ALL)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name(name, parameters, bad):
    for dtype in (torch.bfloat16, torch.float32):
        tensors, base = given(name, dtype)
        tensors[-1][3, 4] = bad
        with pytest.raises(DataError, match=r"not finite \(NaN or Inf\)\.\n  met:  layers.3.weight\n"):
            into(name, torch.empty_like(tensors[0]), tensors, base, parameters, "layers.3.weight")
    if base is not None:
        base[0, 0] = bad
        with pytest.raises(DataError, match="not finite"):
            into(name, torch.empty_like(base), given(name, torch.float32)[0], base, parameters)


@pytest.mark.parametrize("name", METHODS)
def test_other_shapes_and_dtypes_are_refused(name):
    tensors, base = given(name, torch.float32)
    with pytest.raises(MismatchError, match="differ in shape"):
        into(name, torch.empty(6, 10), [*tensors[:-1], torch.randn(6, 1)], base)
    with pytest.raises(MismatchError, match="differ in shape"):
        into(name, torch.empty(10, 6), tensors, base)
    with pytest.raises(UnsupportedError, match="dtype"):
        into(name, torch.empty(6, 10), [*tensors[:-1], torch.ones(6, 10, dtype=torch.int64)], base)


@pytest.mark.parametrize(
    ("name", "parameters"), [("linear", {"weight": 1, "normalize": False}), ("multislerp", {"weight": 1, "normalize_weights": False})]
)
def test_a_merge_too_large_for_its_dtype_is_refused(name, parameters):
    tensors = [torch.full((2, 2), 4e4) for _ in range(2)]
    with pytest.raises(DataError, match=r"too large for its dtype\.\n  met:  w, torch.float16\n"):
        into(name, torch.empty(2, 2, dtype=torch.float16), tensors, None, parameters, "w")
    assert float(into(name, torch.empty(2, 2), tensors, None, parameters)[0, 0]) == pytest.approx(8e4)


def test_a_large_tensor_merged_in_blocks_is_what_it_is_whole():
    base = torch.randn(1100, 1000)
    other = base + 0.1 * torch.randn(1100, 1000)
    got = into("nearswap", torch.empty_like(base), [other], base, {"t": 0.05})
    np.testing.assert_array_equal(got, base + METHODS["nearswap"].on_stack((other - base)[None], t=0.05))


@pytest.mark.parametrize(("name", "parameters"), ALL)
def test_equal_tensors_may_be_passed_on_only_where_they_merge_to_themselves(name, parameters):
    chosen = METHODS[name]
    for more in ({}, {"normalize": False}, {"normalize_weights": False}, {"lambda": 0.5}, {"scale": 0.5}):
        if not set(more) <= set(chosen.parameters):
            continue
        tensors, base = given(name, torch.float64)
        alike, origin = [tensors[0]] * len(tensors), None if base is None else tensors[0]
        required = {each.name: 0.4 for each in chosen.parameters.values() if each.required}
        bound = chosen.bind(required | parameters | more, [{}] * len(alike))
        merged = into(name, torch.empty_like(tensors[0]), alike, origin, parameters | more)
        same = float((merged - tensors[0]).abs().max()) < 1e-6
        assert chosen.keeps(len(alike), bound, based=base is not None) == same
        if chosen.stack == "either":
            bare = into(name, torch.empty_like(tensors[0]), alike, None, parameters | more)
            assert chosen.keeps(len(alike), bound, based=False) == (float((bare - tensors[0]).abs().max()) < 1e-6)
