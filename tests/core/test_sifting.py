"""Sparse sums of deltas against loops in NumPy float64; the kept entries against their definition, one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asterism.core.draws import below, stream_key, uniform
from asterism.core.errors import DataError, MismatchError, UnsupportedError
from asterism.core.sifting import SparseSum, _chances, finite, kept, largest, sparse_sum

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SIFTS = ["none", "magnitude", "outliers", "random", "ranked"]
CONSENSUS = ["none", "sum", "count"]


def by_magnitude(x: np.ndarray) -> list[int]:
    """Places from the largest magnitude to the smallest, of equal ones the earlier first."""
    return sorted(range(len(x)), key=lambda i: (-abs(x[i]), i))


def kept_in_numpy(delta: np.ndarray, how: SparseSum, place: int) -> np.ndarray:
    """The definition, entry by entry."""
    x, n, density = delta.reshape(-1), delta.size, how.density[place]
    keep = np.zeros(n, dtype=bool)
    if how.sift == "none" or density >= 1:
        keep[:] = True
    elif density <= 0:
        pass
    elif how.sift == "magnitude":
        keep[by_magnitude(x)[: max(1, int(density * n))]] = True
    elif how.sift == "outliers":
        ascending = by_magnitude(x)[::-1]
        target, top = int(density * n), int(how.gamma[place] * n)
        bottom = max(0, n - target - top)
        keep[ascending[bottom : bottom + target]] = True
    else:
        draws = uniform(how.keys[place], n).numpy().astype(np.float64)
        if how.sift == "random":
            return (draws < density).reshape(delta.shape)
        m = delta.shape[-1] if delta.ndim else 1
        for row in range(n // m):
            for r, i in enumerate(by_magnitude(x[row * m : (row + 1) * m])[::-1]):
                epsilon = how.epsilon[place]
                chance = density - epsilon + 2 * epsilon * r / (m - 1) if m > 1 else density
                keep[row * m + i] = draws[row * m + i] < chance
    return keep.reshape(delta.shape)


def oracle(base: np.ndarray, models: list[np.ndarray], how: SparseSum, wide: type) -> np.ndarray:
    """In float64 but for the differences, whose precision decides which entries are equal."""
    weighted, weights = [], []
    for place, model in enumerate(models):
        delta = (model.astype(wide) - base.astype(wide)).astype(np.float64)
        keep = kept_in_numpy(delta, how, place)
        some = delta * keep
        before, after = np.abs(delta).sum(), np.abs(some).sum()
        if how.rescale and how.density[place] < 1 and how.sift != "none" and before >= 1e-7 and after >= 1e-7:
            some = some * before / after
        weighted.append(some * how.weight[place])
        weights.append(how.weight[place])
    stack, w = np.stack(weighted), np.array(weights).reshape(-1, *[1] * base.ndim)
    if how.consensus == "none":
        merged, divisor = stack.sum(0), np.full(base.shape, sum(weights))
        divisor[np.abs(divisor) < 1e-8] = 1
    else:
        votes = stack.astype(wide).sum(0) if how.consensus == "sum" else np.sign(stack).sum(0)
        part = np.sign(stack) == np.where(votes >= 0, 1, -1)
        merged, divisor = (stack * part).sum(0), (w * part).sum(0)
        divisor[divisor == 0] = 1
    if how.normalize:
        merged = merged / divisor
    return base + merged * how.scale


def settings_of(k: int, sift, consensus="none", *, density=0.4, **more) -> SparseSum:
    densities = density if isinstance(density, tuple) else (density,) * k
    weight = more.pop("weight", tuple(0.5 + 0.25 * i for i in range(k)))
    keys = tuple(stream_key(3, "weight", str(i)) for i in range(k))
    return SparseSum(sift, consensus, weight, densities, gamma=(0.05,) * k, epsilon=(0.2,) * k, keys=keys, **more)


def seeded(shape, k: int, dtype: torch.dtype, *, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and K models near it: in bfloat16 many deltas are equal, many zero."""
    generator = torch.Generator().manual_seed(seed)
    base = 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)
    models = [base + 0.001 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(k)]
    return base.to(dtype), [model.to(dtype) for model in models]


def wide(*dtypes: torch.dtype) -> type:
    return np.float64 if torch.float64 in dtypes else np.float32


UNIT = {torch.float64: 2**-53, torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def assert_agrees(out: torch.Tensor, base: torch.Tensor, models: list[torch.Tensor], how: SparseSum) -> None:
    """Within one rounding to out's dtype, and those of the arithmetic: but for half precision's underflow."""
    precision = wide(base.dtype, *[m.dtype for m in models])
    want = oracle(base.double().numpy(), [m.double().numpy() for m in models], how, precision)
    unit = 2.0**-53 if precision is np.float64 else 2.0**-24
    size = np.abs(want).max() + 1
    tiny = 2.0**-25 if out.dtype == torch.float16 else 0
    gap = np.abs(out.double().numpy() - want)
    assert (gap <= 1.01 * UNIT[out.dtype] * np.abs(want) + tiny + 30 * unit * size).all(), gap.max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sift", "consensus"), list(product(SIFTS, CONSENSUS)))
def test_sparse_sums_agree_with_numpy(sift, consensus, dtype):
    for k, shape in ((1, (33,)), (2, (7, 20)), (3, (4, 3, 11)), (5, (10, 10))):
        base, models = seeded(shape, k, dtype, seed=k)
        for normalize, rescale, scale in ((False, False, 1.0), (True, True, 0.7), (True, False, -1.5), (False, True, 1.0)):
            how = settings_of(k, sift, consensus, normalize=normalize, rescale=rescale, scale=scale)
            out = torch.full(shape, float("nan"), dtype=dtype)
            sparse_sum(base, models, how, out)
            assert_agrees(out, base, models, how)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_kept_entries_are_those_of_the_definition(data):
    """Deltas of few values, so that ties cut through every quota."""
    sift = data.draw(st.sampled_from(SIFTS[1:]))
    shape = data.draw(st.sampled_from([(), (1,), (9,), (4, 1), (1, 6), (5, 7), (2, 3, 4)]))
    values = data.draw(st.lists(st.integers(-3, 3), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    delta = torch.tensor(values, dtype=data.draw(st.sampled_from(DTYPES))).view(shape)
    density = data.draw(st.floats(-0.2, 1.2))
    how = SparseSum(
        sift,
        "none",
        (1.0,),
        (density,),
        gamma=(data.draw(st.floats(0, 1)),),
        epsilon=(data.draw(st.floats(0, 0.5)),),
        keys=(data.draw(st.integers(0, 2**64 - 1)),),
    )
    got = kept(delta, how, 0)
    assert got.dtype == torch.bool
    np.testing.assert_array_equal(got.numpy(), kept_in_numpy(delta.double().numpy(), how, 0))


@given(values=st.lists(st.integers(-4, 4), max_size=30), k=st.integers(-1, 31))
def test_largest_keeps_exactly_k_the_earlier_of_equals(values, k):
    got = largest(torch.tensor(values, dtype=torch.bfloat16), k)
    want = np.zeros(len(values), dtype=bool)
    want[by_magnitude(np.array(values))[: max(0, k)]] = True
    assert got.tolist() == want.tolist()


@given(m=st.integers(2, 50), density=st.floats(0, 1), epsilon=st.floats(-0.5, 0.5))
def test_chances_rise_with_the_rank_from_end_to_end(m, density, epsilon):
    got = _chances(m, density, epsilon).tolist()
    assert got == [below(density - epsilon + 2 * epsilon * r / (m - 1)) for r in range(m)]
    assert got[0] == below(density - epsilon)
    assert _chances(1, density, epsilon).tolist() == [below(density)]


def test_it_is_k_and_not_k_plus_one():
    delta = torch.tensor([4.0, -3.0, 2.0, 1.0])
    for density, count in ((0.5, 2), (0.74, 2), (0.75, 3), (0.01, 1), (0.0, 0), (1.0, 4), (0.999, 3)):
        how = settings_of(1, "magnitude", density=density)
        assert kept(delta, how, 0).sum() == count


def test_ties_at_the_threshold_go_to_the_earlier():
    delta = torch.tensor([[1.0, -2.0, 2.0], [-2.0, 2.0, 0.5]])
    assert kept(delta, settings_of(1, "magnitude", density=0.5), 0).tolist() == [[False, True, True], [True, False, False]]
    how = replace(settings_of(1, "outliers", density=0.5), gamma=(1 / 6,))
    assert kept(delta, how, 0).tolist() == [[False, False, True], [True, True, False]]


@pytest.mark.parametrize("sift", SIFTS)
def test_density_one_keeps_everything_and_rescales_nothing(sift):
    base, models = seeded((6, 9), 2, torch.float32)
    how = settings_of(2, sift, density=1.0, rescale=True, weight=(1.0, 1.0))
    out = torch.empty_like(base)
    sparse_sum(base, models, how, out)
    want = base.double() + sum((m - base).double() for m in models)
    np.testing.assert_allclose(out.numpy(), want.numpy(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("consensus", CONSENSUS)
def test_nothing_kept_is_the_base(consensus):
    for sift in SIFTS[1:]:
        base, models = seeded((6, 9), 2, torch.bfloat16)
        out = torch.empty_like(base)
        sparse_sum(base, models, settings_of(2, sift, consensus, density=0.0, rescale=True, normalize=True), out)
        assert torch.equal(out, base)


def test_votes_that_sum_to_zero_elect_plus_and_zeros_do_not_vote():
    base, one = torch.zeros(4), torch.tensor([1.0, -1.0, 0.0, 0.0])
    other = torch.tensor([-1.0, 1.0, -2.0, 0.0])
    for consensus in ("sum", "count"):
        how = settings_of(2, "none", consensus, weight=(1.0, 1.0), normalize=True)
        out = torch.empty(4)
        sparse_sum(base, [one, other], how, out)
        assert out.tolist() == [1.0, 1.0, -2.0, 0.0]


def test_sum_and_count_elect_differently():
    base, models = torch.zeros(1), [torch.tensor([5.0]), torch.tensor([-1.0]), torch.tensor([-2.0])]
    for consensus, want in (("sum", 5.0), ("count", -3.0)):
        out = torch.empty(1)
        sparse_sum(base, models, settings_of(3, "none", consensus, weight=(1.0,) * 3), out)
        assert out.item() == want


def test_negative_weights_turn_the_vote_and_may_cancel_the_divisor():
    base, models = torch.zeros(2), [torch.tensor([2.0, 2.0]), torch.tensor([-1.0, 3.0])]
    out = torch.empty(2)
    sparse_sum(base, models, settings_of(2, "none", "sum", weight=(1.0, -1.0), normalize=True), out)
    assert out.tolist() == [3.0, 3.0]  # both take part, 1 - 1 = 0 does not divide; then the second alone: -3 over its weight, -1
    sparse_sum(base, models, settings_of(2, "none", "none", weight=(1.0, -1.0), normalize=True), out)
    assert out.tolist() == [3.0, -1.0]


def test_all_equal_models_are_the_model():
    base, (model, *_) = seeded((12, 12), 1, torch.bfloat16)
    for consensus in ("sum", "count", "none"):
        out = torch.empty_like(base)
        sparse_sum(base, [model] * 3, settings_of(3, "none", consensus, weight=(1.0,) * 3, normalize=True), out)
        assert torch.equal(out, model)
        sparse_sum(base, [base] * 3, settings_of(3, "magnitude", consensus, normalize=True, rescale=True), out)
        assert torch.equal(out, base)


def test_rescaling_restores_the_sum_of_magnitudes():
    base, models = torch.zeros(40, 50), seeded((40, 50), 1, torch.float32)[1]
    for sift in SIFTS[1:]:
        out = torch.empty(40, 50)
        sparse_sum(base, models, settings_of(1, sift, weight=(1.0,), rescale=True), out)
        assert (out == 0).any()
        assert out.abs().sum().item() == pytest.approx(models[0].abs().sum().item(), rel=1e-5)


def test_random_keeps_a_share_of_density_in_streams_of_their_own():
    delta, n = torch.randn(400, 500, generator=torch.Generator().manual_seed(0)), 200_000
    how = settings_of(2, "random", density=(0.3, 0.3))
    one, other = kept(delta, how, 0), kept(delta, how, 1)
    sigma = (0.3 * 0.7 / n) ** 0.5
    assert abs(one.float().mean() - 0.3) < 5 * sigma
    assert abs((one & other).float().mean() - 0.09) < 5 * sigma
    ranked = kept(delta, settings_of(2, "ranked", density=(0.3, 0.3)), 0)
    assert abs(ranked.float().mean() - 0.3) < 5 * sigma
    assert delta[ranked].abs().mean() > 1.2 * delta[one].abs().mean()


def test_the_result_is_rounded_once():
    base, model = torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0 + 2**-7], dtype=torch.bfloat16)
    how = settings_of(3, "none", weight=(0.3, 0.3, 0.3))
    out = torch.empty(1, dtype=torch.bfloat16)
    sparse_sum(base, [model] * 3, how, out)
    assert out.item() == 1.0 + 2**-7  # 1 + 0.9 / 128 rounds up; 1 + 0.3 / 128, rounded each time, stays 1
    wider = torch.empty(1, dtype=torch.float64)
    sparse_sum(base, [model] * 3, how, wider)
    assert wider.item() == pytest.approx(1 + 0.9 / 128, abs=1e-7)


def test_layout_out_dtype_and_mixed_inputs_are_no_matter():
    base, models = seeded((30, 40), 3, torch.float32)
    how = settings_of(3, "magnitude", "sum", normalize=True)
    want = torch.empty(30, 40)
    sparse_sum(base, models, how, want)
    turned = torch.empty(40, 30).t()
    sparse_sum(base.t().contiguous().t(), [m.t().contiguous().t() for m in models], how, turned)
    assert torch.equal(turned, want)
    for dtype in DTYPES:
        out = torch.empty(30, 40, dtype=dtype)
        sparse_sum(base, models, how, out)
        assert torch.equal(out, want.to(dtype))
        mixed = [models[0].to(dtype), models[1].bfloat16(), models[2]]
        sparse_sum(base, mixed, how, out)
        assert_agrees(out, base, mixed, how)
    itself = base.clone()
    sparse_sum(itself, models, how, itself)
    assert torch.equal(itself, want)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("sift", SIFTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_are_refused_by_name(bad, sift, dtype):
    for place in (-1, 0, 1):
        base, models = seeded((30, 40), 2, dtype)
        (base if place < 0 else models[place])[29, 39] = bad
        with pytest.raises(DataError, match="not finite") as caught:
            sparse_sum(base, models, settings_of(2, sift, "sum", density=(0.5, 0.0)), torch.empty_like(base), name="lm_head.weight")
        assert "lm_head.weight" in str(caught.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_sees_every_entry(dtype):
    for n in (0, 1, 17, 1000, 70_001):
        x = torch.full((n,), torch.finfo(dtype).max, dtype=dtype)
        assert finite(x)
        for place in {0, n // 2, n - 1} if n else ():
            for bad in (float("nan"), float("inf"), float("-inf")):
                y = x.clone()
                y[place] = bad
                assert not finite(y)
    assert not finite(torch.tensor([[1.0, float("nan")], [1.0, 1.0]]).t())


def test_what_does_not_fit_is_refused():
    base, models = seeded((3, 4), 2, torch.float32)
    how, out = settings_of(2, "none"), torch.empty(3, 4)
    for error, told, call in [
        (MismatchError, "0 tensors", lambda: sparse_sum(base, [], how, out)),
        (MismatchError, "1 tensors, 2 weights", lambda: sparse_sum(base, models[:1], how, out)),
        (MismatchError, "tensor 1 is [4, 3]", lambda: sparse_sum(base, [models[0], models[1].t()], how, out)),
        (MismatchError, "out is [12]", lambda: sparse_sum(base, models, how, torch.empty(12))),
        (UnsupportedError, "int32", lambda: sparse_sum(base, models, how, out.int())),
        (UnsupportedError, "int64", lambda: sparse_sum(base.long(), models, how, out)),
        (MismatchError, "density of 1", lambda: SparseSum("none", "none", (1.0, 1.0), (1.0,))),
        (MismatchError, "gamma of 0", lambda: SparseSum("outliers", "none", (1.0,), (1.0,))),
        (MismatchError, "keys of 0", lambda: SparseSum("random", "none", (1.0,), (1.0,))),
        (MismatchError, "epsilon of 0", lambda: SparseSum("ranked", "none", (1.0,), (1.0,), keys=(1,))),
        (MismatchError, "'topk'", lambda: SparseSum("topk", "none", (1.0,), (1.0,))),  # type: ignore[arg-type]
    ]:
        with pytest.raises(error) as caught:
            call()
        assert told in str(caught.value)


def test_nothing_is_written_where_nothing_is():
    sparse_sum(torch.empty(0, 3), [torch.empty(0, 3)], settings_of(1, "magnitude"), torch.empty(0, 3))
