"""Both paths of mixing, every level of the kernel, against NumPy: the kernel bit for bit in float32, the torch path to rounding."""

import os
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import profile

from asterism.core import mixing
from asterism.core.errors import MismatchError, UnsupportedError
from asterism.core.mixing import backend, mix_into, mix_native, mix_torch

LEVELS = mixing._kernel.levels() if mixing._kernel else ()
NATIVE = [
    pytest.param(partial(mix_native, level=i, stream=stream, chunk=chunk), id=f"{name}-{'stream' if stream else 'cache'}-{chunk}")
    for i, name in enumerate(LEVELS)
    for stream, chunk in ((False, 1 << 20), (True, 1 << 20), (True, 600))
]
PATHS = [*NATIVE, pytest.param(mix_torch, id="torch")]
needs_kernel = pytest.mark.skipif(mixing._kernel is None, reason="no compiler at installation")

ACCUMULATOR = {torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float32, torch.bfloat16: np.float32}
UNIT = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def oracle(tensors: list[np.ndarray], weights: list[np.ndarray], axis: int) -> np.ndarray:
    """sum_i w_i theta_i, node after node, in the arrays' own precision, products and sums rounded one by one."""
    out = np.empty_like(tensors[0])
    for node in range(out.shape[axis]):
        at = (slice(None),) * axis + (node,)
        total = weights[0][node % len(weights[0])] * tensors[0][at]
        for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
            total = total + weight[node % len(weight)] * tensor[at]
        out[at] = total
    return out


def seeded(shape: tuple[int, ...], k: int, axis: int, dtype: torch.dtype, *, seed: int = 0, offset: int = 0, uniform: bool = False):
    """Tensors starting `offset` elements into their memory, weights in the accumulator's dtype, and an out full of NaN."""
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape))
    whole = [torch.randn(count + offset, generator=generator, dtype=torch.float64).to(dtype) for _ in range(k)]
    tensors = tuple(one[offset:].view(shape) for one in whole)
    length = 1 if uniform else shape[axis]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = tuple(torch.randn(length, generator=generator, dtype=wide) for _ in range(k))
    return torch.full((count + offset,), float("nan"), dtype=dtype)[offset:].view(shape), tensors, weights


def in_numpy(tensors, weights, axis: int, precision) -> np.ndarray:
    arrays = [tensor.double().numpy().astype(precision) for tensor in tensors]
    with np.errstate(invalid="ignore", over="ignore"):
        return oracle(arrays, [weight.numpy().astype(precision) for weight in weights], axis)


def assert_close(out: Tensor, exact: np.ndarray, size: np.ndarray, k: int) -> None:
    """Within one rounding to out's dtype, and those of an accumulator that sums k terms as large as `size` in all."""
    accumulator = 2.0**-53 if out.dtype == torch.float64 else 2.0**-24
    assert (np.abs(out.double().numpy() - exact) <= 1.001 * UNIT[out.dtype] * np.abs(exact) + (k + 1) * accumulator * size).all()


def assert_close_to_exact(out: Tensor, tensors, weights, axis: int) -> None:
    size = in_numpy([t.abs() for t in tensors], [w.abs() for w in weights], axis, np.float64)
    assert_close(out, in_numpy(tensors, weights, axis, np.float64), size, len(tensors))


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit, except that any NaN equals any NaN."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.itemsize]
    return bool(((left.view(integer) == right.view(integer)) | (left.isnan() & right.isnan())).all())


CASES = [((7, 5), 0), ((7, 5), 1), ((33, 257), 0), ((33, 257), 1), ((64, 96), 1), ((5, 3104), 1), ((1031,), 0), ((3, 4, 5), 1), ((1, 1), 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_paths_agree_with_numpy(dtype):
    for number, (shape, axis) in enumerate(CASES):
        for k in range(1, 7):
            out, tensors, weights = seeded(shape, k, axis, dtype, seed=number, offset=k % 3)
            exact = in_numpy(tensors, weights, axis, np.float64)
            size = in_numpy([t.abs() for t in tensors], [w.abs() for w in weights], axis, np.float64)
            for path in (mix_torch, *([mix_native] if LEVELS else [])):
                out.fill_(float("nan"))
                path(out, tensors, weights, axis)
                assert_close(out, exact, size, k)


@needs_kernel
@given(
    shape=st.one_of(st.tuples(st.integers(1, 40), st.integers(1, 300)), st.tuples(st.integers(1, 2000)), st.just((9, 2080))),
    k=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    level=st.sampled_from(range(len(LEVELS))),
    stream=st.booleans(),
    chunk=st.sampled_from([64, 1000, 1 << 14, 1 << 20]),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_the_kernel_has_numpys_bits(shape, k, dtype, level, stream, chunk, data):
    """However the work is cut, aligned or stored: the sequence of rounded operations, rounded to the dtype as torch rounds."""
    axis = data.draw(st.integers(0, len(shape) - 1))
    uniform, offset = data.draw(st.booleans()), data.draw(st.integers(0, 40))
    out, tensors, weights = seeded(shape, k, axis, dtype, seed=k, offset=offset, uniform=uniform)
    mix_native(out, tensors, weights, axis, level=level, stream=stream, chunk=chunk)
    assert same_bits(out, torch.from_numpy(in_numpy(tensors, weights, axis, ACCUMULATOR[dtype])).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_level_has_the_same_bits(dtype):
    for shape, axis in (
        ((9, 2080), 1),
        ((9, 2080), 0),
        ((33, 257), 1),
        ((64, 96), 0),
        ((3, 4, 70), 1),
    ):  # the first shares its weights among rows
        out, tensors, weights = seeded(shape, 3, axis, dtype)
        want = torch.from_numpy(in_numpy(tensors, weights, axis, ACCUMULATOR[dtype])).to(dtype)
        for path in NATIVE:
            path.values[0](out.fill_(float("nan")), tensors, weights, axis)
            assert same_bits(out, want), path.id


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_written_beside_out(path):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for offset, count in ((1, 517), (16, 64), (31, 2000)):
            whole = torch.full((offset + count + 64,), 7.0, dtype=dtype)
            _, tensors, weights = seeded((count,), 3, 0, dtype)
            path(whole[offset : offset + count], tensors, weights, 0)
            assert (whole[:offset] == 7).all()
            assert (whole[offset + count :] == 7).all()


@pytest.mark.parametrize("path", PATHS)
def test_bfloat16_rounds_ties_to_even_and_keeps_every_value(path):
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    out, one = torch.empty_like(every), torch.ones(1)
    path(out, (every,), (one,), 0)
    assert same_bits(out, every)  # Inf, subnormals, -0 and NaN among them
    normal = every[torch.isfinite(every) & (every.abs() > 1e-30) & (every.abs() < 1e30)]
    half = torch.full((1,), 1 + 2.0**-8)  # most products lie exactly between two bfloat16
    out = torch.empty_like(normal)
    path(out, (normal,), (half,), 0)
    assert same_bits(out, (normal.float() * half).bfloat16())
    assert not same_bits(out, (normal.double() * half * (1 + 2.0**-20)).bfloat16())  # tells even from away


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_torch_path_differs_from_float32_sums_by_one_unit_at_most(dtype):
    out, tensors, weights = seeded((64, 96), 3, 0, dtype)
    mix_torch(out, tensors, weights, 0)
    want = torch.from_numpy(in_numpy(tensors, weights, 0, ACCUMULATOR[dtype])).to(dtype)
    size = in_numpy([t.abs() for t in tensors], [w.abs() for w in weights], 0, np.float64)
    accumulator = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    assert (np.abs((out.double() - want.double()).numpy()) <= 2 * UNIT[dtype] * want.double().abs().numpy() + 6 * accumulator * size).all()
    assert (out == want).double().mean() > 0.6  # most are equal


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_nan_and_inf_propagate(path, dtype):
    for axis in (0, 1):
        out, tensors, weights = seeded((40, 70), 3, axis, dtype)
        tensors[1][3, 4], tensors[2][39, 69], tensors[0][20, 33] = float("nan"), float("inf"), float("-inf")
        path(out, tensors, weights, axis)
        assert out[3, 4].isnan()
        assert out[39, 69] == torch.sign(weights[2][(39, 69)[axis]]) * float("inf")
        assert out[20, 33] == -torch.sign(weights[0][(20, 33)[axis]]) * float("inf")
        assert torch.isfinite(out).sum() == out.numel() - 3
        tensors[0][39, 69] = -tensors[2][39, 69] * weights[0][(39, 69)[axis]].sign() * weights[2][(39, 69)[axis]].sign()
        weights[1][:] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN whose rounding would carry over
        path(out, tensors, weights, axis)
        assert out.isnan().all()


@pytest.mark.parametrize("kernel", [*(["native"] if LEVELS else []), "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(kernel, dtype, monkeypatch):
    monkeypatch.setenv("ASTERISM_KERNEL", kernel)
    monkeypatch.setattr(mixing, "_BLOCK", 1 << 12)
    threads, outs = torch.get_num_threads(), []
    native = partial(mix_native, chunk=1 << 12)
    monkeypatch.setattr(mixing, "mix_native", native)
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            out, tensors, weights = seeded((300, 257), 3, 1, dtype)
            mix_into(out, tensors, weights, 1)
            outs.append(out)
    finally:
        torch.set_num_threads(threads)
    assert same_bits(outs[0], outs[1])
    assert same_bits(outs[0], outs[2])


def test_other_layouts_dtypes_and_sizes_take_the_torch_path():
    out, tensors, weights = seeded((30, 20), 3, 1, torch.float32)
    turned = tuple(tensor.t().contiguous().t() for tensor in tensors)
    mix_into(out, turned, weights, 1)
    assert_close_to_exact(out, tensors, weights, 1)
    wide = torch.full((30, 40), float("nan"))
    mix_into(wide[:, ::2], tensors, weights, -1)
    assert_close_to_exact(wide[:, ::2], tensors, weights, 1)
    assert wide[:, 1::2].isnan().all()
    half, tensors, weights = seeded((30, 20), 2, 0, torch.float16)
    mix_into(half, tensors, weights, 0)
    assert_close_to_exact(half, tensors, weights, 0)
    scalar = torch.zeros(())
    mix_into(scalar, [torch.tensor(2.0), torch.tensor(3.0)], [torch.tensor([0.5]), torch.tensor([2.0])], 0)
    assert scalar == 7
    mix_into(torch.empty(0, 3), [torch.empty(0, 3)], [torch.empty(0)], 0)


def test_one_weight_stands_for_all_nodes_even_beside_vectors():
    out, tensors, weights = seeded((12, 9), 3, 0, torch.float32)
    mixed = [weights[0], torch.tensor([0.25]), weights[2].double()]
    mix_into(out, tensors, mixed, 0)
    assert_close_to_exact(out, tensors, [weights[0], torch.full((12,), 0.25), weights[2]], 0)


def test_parameters_are_written_in_place_and_autograd_is_told():
    parameter = torch.nn.Parameter(torch.zeros(4, 6))
    squared = (parameter**2).sum()
    mix_into(parameter, [torch.ones(4, 6), torch.ones(4, 6)], [torch.full((4,), 0.5, requires_grad=True), torch.tensor([2.0])], 0)
    assert (parameter == 2.5).all()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()
    with torch.inference_mode():
        for out in (parameter, torch.zeros(4, 6)):
            mix_into(out, [torch.ones(4, 6)], [torch.tensor([3.0])], 0)
            assert (out == 3).all()


def peak(work) -> int:
    """The most bytes held at once of what torch's CPU allocator gave out during `work`."""
    with profile(profile_memory=True) as watched:
        work()
    held = most = 0
    for event in sorted(watched.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def test_no_temporary_is_larger_than_a_tensor():
    for dtype in (torch.float32, torch.bfloat16):
        out, tensors, weights = seeded((2048, 1200), 3, 0, dtype)
        if LEVELS:
            assert peak(lambda: mix_native(out, tensors, weights, 0)) == 0  # noqa: B023
        assert peak(lambda: mix_torch(out, tensors, weights, 0)) <= out.nbytes  # noqa: B023
    assert peak(lambda: sum(w[:, None] * t for w, t in zip(weights, tensors, strict=True))) > out.nbytes  # it does count


REFUSED = [
    ("at least one tensor", MismatchError, lambda o, t, w: (o, [], [], 0)),
    ("3 tensors, 2 weights", MismatchError, lambda o, t, w: (o, t, w[:2], 0)),
    ("tensor 1 is", MismatchError, lambda o, t, w: (o, [t[0], t[1].t(), t[2]], w, 0)),
    ("tensor 2 is", MismatchError, lambda o, t, w: (o, [t[0], t[1], t[2].double()], w, 0)),
    ("on meta", MismatchError, lambda o, t, w: (o, [t[0].to("meta"), *t[1:]], w, 0)),
    ("weights 0 are [4], axis 1", MismatchError, lambda o, t, w: (o, t, w, 1)),
    ("weights 1 are [4, 1]", MismatchError, lambda o, t, w: (o, t, [w[0], w[1][:, None], w[2]], 0)),
    ("axis 2 of [4, 6]", MismatchError, lambda o, t, w: (o, t, w, 2)),
    ("cannot be mixed", UnsupportedError, lambda o, t, w: (o.int(), [x.int() for x in t], w, 0)),
    ("out overlaps", MismatchError, lambda o, t, w: (t[1], t, w, 0)),
]


@pytest.mark.parametrize(("told", "error", "call"), REFUSED, ids=[case[0] for case in REFUSED])
def test_what_does_not_fit_is_refused(told, error, call):
    out, tensors, weights = seeded((4, 6), 3, 0, torch.float32)
    with pytest.raises(error) as caught:
        mix_into(*call(out, list(tensors), list(weights)))
    assert told in str(caught.value)
    assert "mend:" in str(caught.value)
    assert out.isnan().all()


def test_neighbours_in_memory_may_be_mixed_but_overlaps_not():
    memory, weight = torch.arange(30.0), [torch.ones(1)]
    mix_into(memory[:10], [memory[10:20]], weight, 0)
    assert memory[0] == 10
    for other in (memory[9:19], memory[5:25:2], memory.view(3, 10)[:, 0].expand(10, 3).t()[:, 0]):
        out = memory[: len(other)]
        with pytest.raises(MismatchError, match="overlaps"):
            mix_into(out, [other], weight, 0)


def test_the_kernel_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.delenv("ASTERISM_KERNEL", raising=False)
    assert backend() == ("native" if LEVELS else "torch")
    monkeypatch.setenv("ASTERISM_KERNEL", "torch")
    assert backend() == "torch"
    monkeypatch.setenv("ASTERISM_KERNEL", "fast")
    with pytest.raises(UnsupportedError, match="'fast'"):
        backend()
    monkeypatch.setenv("ASTERISM_KERNEL", "native")
    monkeypatch.setattr(mixing, "_kernel", None)
    with pytest.raises(UnsupportedError, match="not built"):
        backend()
    monkeypatch.delenv("ASTERISM_KERNEL")
    assert backend() == "torch"
    out, tensors, weights = seeded((4, 6), 3, 0, torch.float32)
    mix_into(out, tensors, weights, 0)  # falls back by itself
    assert_close_to_exact(out, tensors, weights, 0)


@pytest.mark.skipif(not (shutil.which("cc") and os.name == "posix"), reason="no compiler here")
def test_the_kernel_was_built_where_it_could_be():
    assert LEVELS[:1] == ("plain",)
