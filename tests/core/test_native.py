"""The C kernel against the torch paths: the same bits at every level, with any number of threads, however the work is cut."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from asterism.core import native
from asterism.core.draws import draws_torch, stream_key
from asterism.core.errors import DataError, UnsupportedError
from asterism.core.gram import gram, gram_native, gram_torch
from asterism.core.sifting import SparseSum, finite, sparse_sum, sparse_sum_native, sparse_sum_torch

pytestmark = pytest.mark.skipif(not native.LEVELS, reason="no compiler at installation")
LEVELS = range(len(native.LEVELS))
NARROW = [torch.bfloat16, torch.float16, torch.float32]
SIFTS = ["none", "magnitude", "outliers", "random", "ranked"]
LONG = 3 * 65536 + 777  # four chunks, the last of no round length


@contextmanager
def running(level: int = len(native.LEVELS) - 1, threads: int = 1):
    before = native._level, torch.get_num_threads()
    native._level = level
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        native._level = before[0]
        torch.set_num_threads(before[1])


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[left.itemsize]
    return left.dtype == right.dtype and torch.equal(left.view(integer), right.view(integer))


def seeded(shape, k: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and K models near it; a quarter of the entries equal the base's, as after fine-tuning in half precision."""
    generator = torch.Generator().manual_seed(seed)
    base = (0.05 * torch.randn(shape, generator=generator)).to(dtype)
    models = [(base.float() + 0.001 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(k)]
    return base, [torch.where(torch.rand(shape, generator=generator) < 0.25, base, model) for model in models]


def described(k: int, sift, consensus, *, density=0.4, normalize=False, rescale=False, scale=1.0) -> SparseSum:
    keys = tuple(stream_key(1, "weight", str(i)) for i in range(k))
    weight = tuple(0.7 - 0.4 * i for i in range(k))
    each = dict(gamma=(0.03,) * k, epsilon=(0.2,) * k, keys=keys)
    return SparseSum(sift, consensus, weight, (density,) * k, normalize=normalize, rescale=rescale, scale=scale, **each)


def both(base, models, how, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    outs = [torch.full(base.shape, float("nan"), dtype=dtype) for _ in range(2)]
    sparse_sum_native(base, tuple(models), how, outs[0], "")
    sparse_sum_torch(base, tuple(models), how, outs[1], "")
    return outs[0], outs[1]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("sift", "consensus"), list(product(SIFTS, ["none", "sum", "count"])))
def test_sparse_sums_have_the_torch_paths_bits(sift, consensus, dtype):
    for k, shape in ((1, (LONG,)), (3, (257, 300)), (5, (70, 40)), (2, (3, 5, 1))):
        base, models = seeded(shape, k, dtype, seed=k)
        how = described(k, sift, consensus, normalize=k != 2, rescale=k != 1, scale=1.0 if k == 1 else -0.8)
        got, want = both(base, models, how, dtype)
        assert same_bits(got, want)
        assert not got.isnan().any()


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_any_sparse_sum_has_the_torch_paths_bits(data):
    k = data.draw(st.integers(1, 5))
    shape = data.draw(st.one_of(st.tuples(st.integers(1, 2000)), st.tuples(st.integers(1, 60), st.integers(1, 130)), st.just(())))
    dtypes = st.sampled_from(NARROW)
    base, models = seeded(shape, k, data.draw(dtypes), seed=data.draw(st.integers(0, 5)))
    models = [model.to(data.draw(dtypes)) for model in models]
    share = st.one_of(st.floats(-0.1, 1.1), st.sampled_from([0.0, 0.5, 1.0]))
    how = SparseSum(
        data.draw(st.sampled_from(SIFTS)),  # type: ignore[arg-type]
        data.draw(st.sampled_from(["none", "sum", "count"])),  # type: ignore[arg-type]
        tuple(data.draw(st.floats(-2, 2)) for _ in range(k)),
        tuple(data.draw(share) for _ in range(k)),
        gamma=tuple(data.draw(share) for _ in range(k)),
        epsilon=tuple(data.draw(st.floats(-0.5, 0.5)) for _ in range(k)),
        normalize=data.draw(st.booleans()),
        rescale=data.draw(st.booleans()),
        scale=data.draw(st.sampled_from([1.0, 0.3, -2.0])),
        keys=tuple(data.draw(st.integers(0, 2**64 - 1)) for _ in range(k)),
    )
    out = data.draw(st.sampled_from([*NARROW, torch.float64]))
    with running(data.draw(st.sampled_from(LEVELS))):
        got, want = both(base, models, how, out)
    assert same_bits(got, want)


@pytest.mark.parametrize("sift", SIFTS)
def test_neither_level_nor_threads_change_a_bit(sift):
    for shape in ((LONG,), (300, 333)):
        base, models = seeded(shape, 3, torch.bfloat16)
        how = described(3, sift, "sum", rescale=True, normalize=True)
        outs = []
        for level, threads in [*((level, 1) for level in LEVELS), (LEVELS[-1], 2), (LEVELS[-1], 3)]:
            with running(level, threads):
                outs.append((both(base, models, how, torch.bfloat16)[0], gram(models, base), gram(models, base, by_row=True)))
        assert len(outs) > 3
        for out, *grams in outs[1:]:
            assert same_bits(out, outs[0][0])
            assert all(same_bits(one, other) for one, other in zip(grams, outs[0][1:], strict=True))


@pytest.mark.parametrize("dtype", [*NARROW, torch.float64])
def test_gram_has_the_torch_paths_bits(dtype):
    for k, shape in ((1, (7,)), (3, (LONG,)), (2, (3, 70_000)), (3, (301, 33)), (16, (40, 70)), (4, (5, 3, 100))):
        base, models = seeded(shape, k, dtype)
        for origin, level in product((None, base), LEVELS):
            for rows in {1, 1 if len(shape) == 1 else shape[0]}:
                got, want = torch.zeros(rows, k, k, dtype=torch.float64), torch.zeros(rows, k, k, dtype=torch.float64)
                with running(level):
                    gram_native(got, tuple(models), origin)
                gram_torch(want, tuple(models), origin)
                assert same_bits(got, want)
                assert got.any()


@given(
    key=st.integers(0, 2**64 - 1), start=st.one_of(st.integers(0, 2**40 - 2000), st.integers(2**32 - 900, 2**32)), n=st.integers(0, 1500)
)
def test_draws_are_the_torch_paths(key, start, n):
    want = draws_torch(key, n, start, "cpu")
    for level in LEVELS:
        with running(level):
            assert torch.equal(native.draws(key, n, start), want)


def test_halves_are_widened_and_rounded_as_torch_does():
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()]
    none = described(1, "none", "none")
    how = SparseSum("none", "none", (1.0,), (1.0,))
    for level in LEVELS:
        with running(level):
            wide = torch.empty(len(every))
            sparse_sum_native(torch.zeros(len(every)), (every,), how, wide, "")
            assert torch.equal(wide, every.float())
            # between, below and above all halves and bfloat16: ties, subnormals, overflow
            values = (
                torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0)).to(torch.int32).view(torch.float32)
            )
            near = every.float()
            step = torch.tensor([2.0**-12, 2.0**-11, 3 * 2.0**-12])
            values = torch.cat(
                [values[values.isfinite()], *(near * (1 + s) for s in step), *(near + 2.0**-25 * s for s in (1, 2, 3)), near]
            )
            for dtype in (torch.float16, torch.bfloat16, torch.float64):
                out = torch.empty(len(values), dtype=dtype)
                sparse_sum_native(values, (values,), none, out, "")
                want = (values + torch.zeros(1)).to(dtype)
                assert torch.equal(out, want)


@pytest.mark.parametrize("sift", ["magnitude", "outliers"])
def test_quotas_are_met_exactly_where_ties_cut_chunks(sift):
    """Magnitudes of three values in four chunks; every share, from one entry to all but one."""
    generator = torch.Generator().manual_seed(0)
    base = torch.zeros(LONG)
    delta = torch.randint(-2, 3, (LONG,), generator=generator).float()
    for density in (1e-9, 0.1, 0.2, 0.39, 0.41, 0.5, 0.79, 0.81, 0.999999):
        how = SparseSum(sift, "none", (1.0,), (density,), gamma=(0.05,))
        first, last = (0, max(1, int(density * LONG))) if sift == "magnitude" else (0, 0)
        if sift == "outliers":
            count = int(density * LONG)
            first = min(int(0.05 * LONG), LONG - count)
            last = first + count
        order = np.lexsort((np.arange(LONG), -delta.abs().numpy()))
        want = torch.zeros(LONG)
        want[order[first:last]] = delta[order[first:last]]
        for level in LEVELS:
            with running(level):
                out = torch.empty(LONG)
                sparse_sum_native(base, (delta,), how, out, "")
            assert torch.equal(out, want)


def test_a_tensor_past_the_cut_is_untouched():
    for dtype in NARROW:
        for offset, n in ((1, 517), (3, 64), (5, 70_001)):
            base, models = seeded((n + 70,), 2, dtype)
            whole = torch.full((n + 70,), 7.0, dtype=dtype)
            piece = slice(offset, offset + n)
            how = described(2, "magnitude", "sum", rescale=True)
            sparse_sum_native(base[piece], tuple(m[piece] for m in models), how, whole[piece], "")
            want = torch.empty(n, dtype=dtype)
            sparse_sum_torch(base[piece], tuple(m[piece] for m in models), how, want, "")
            assert same_bits(whole[piece], want)
            assert (whole[:offset] == 7).all()
            assert (whole[offset + n :] == 7).all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("sift", SIFTS)
def test_the_largest_finite_differences_are_merged(sift, dtype):
    base, (model,) = seeded((50, 30), 1, dtype)
    base[3:, 4] = 0
    model[3:, 4] = torch.finfo(dtype).max * torch.rand(47).sub(0.5).sign().to(dtype)
    got, want = both(base, [model], SparseSum(sift, "sum", (0.5,), (0.3,), gamma=(0.01,), epsilon=(0.1,), keys=(1,)), dtype)
    assert same_bits(got, want)
    assert (got.abs() >= torch.finfo(dtype).max / 4).any()


@pytest.mark.parametrize("dtype", NARROW)
def test_differences_beyond_the_arithmetic_are_refused(dtype):
    base, model = torch.full((1000,), torch.finfo(torch.float32).max), torch.zeros(1000, dtype=dtype)
    other = -base
    for sift in SIFTS:
        for path in (sparse_sum_native, sparse_sum_torch):
            with pytest.raises(DataError, match="not finite"):
                path(base, (model, other), described(2, sift, "none", rescale=True), torch.empty(1000), "")


def test_the_kernel_is_chosen_by_the_environment_and_the_tensors(monkeypatch):
    x = torch.ones(4, 6)
    monkeypatch.delenv("ASTERISM_KERNEL", raising=False)
    assert native.takes(x, x.bfloat16(), x.half(), x.double())
    assert not native.takes(x, x.t())
    assert not native.takes(x.long())
    assert not native.takes(x.to("meta"))
    monkeypatch.setenv("ASTERISM_KERNEL", "torch")
    assert not native.takes(x)
    monkeypatch.setattr(native, "_kernel", None)
    assert not native.takes(x)
    monkeypatch.delenv("ASTERISM_KERNEL")
    assert not native.takes(x)
    out = torch.empty(4, 6)
    sparse_sum(x, [2 * x], described(1, "magnitude", "sum", density=1.0), out)  # falls back by itself
    assert (out == 1.7).all()
    assert gram([x]).item() == 24
    assert finite(x)
    monkeypatch.setenv("ASTERISM_KERNEL", "fast")
    with pytest.raises(UnsupportedError, match="'fast'"):
        native.takes(x)


def test_temporaries_are_a_fraction_of_the_tensor():
    base, models = seeded((1500, 2000), 3, torch.bfloat16)
    out = torch.empty_like(base)

    def peak(work) -> int:
        """Most bytes held at once, of torch's own."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            work()
        held = most = 0
        for event in sorted(run.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        return most

    for sift in SIFTS:
        for consensus in ("none", "sum"):
            assert peak(lambda: sparse_sum(base, models, described(3, sift, consensus, rescale=True), out)) <= out.nbytes, sift  # noqa: B023
    assert peak(lambda: gram(models, base)) <= out.nbytes // 20
    assert peak(lambda: [model - base for model in models]) >= 3 * out.nbytes  # it does count


def test_more_tensors_than_the_kernel_takes_are_merged_in_torch():
    base, models = seeded((30, 40), native.MOST + 1, torch.float32)
    out, want = torch.empty(30, 40), torch.empty(30, 40)
    how = described(native.MOST + 1, "magnitude", "sum")
    sparse_sum(base, models, how, out)
    sparse_sum_torch(base, tuple(models), how, want, "")
    assert same_bits(out, want)
    assert gram(models, base).shape == (native.MOST + 1, native.MOST + 1)


def test_wrong_calls_raise():
    kernel = native._kernel
    one = ((torch.ones(4).data_ptr(), 0),)
    for args in ((9, 1, one, 4), (-1, 1, one, 4), (0, 1, (), 4), (0, 1, one * 17, 4)):
        with pytest.raises(ValueError, match=r"level|tensors"):
            kernel.finite(*args)
    with pytest.raises(TypeError):
        kernel.finite(0, 1, ((1,),), 4)


@pytest.mark.skipif(not (shutil.which("cc") and os.name == "posix"), reason="no compiler here")
def test_the_kernel_was_built_where_it_could_be():
    assert native.LEVELS[:1] == ("plain",)
