"""Streamed linear CKA and its null against Gram matrices in NumPy float64 and against every permutation there is."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.cka import ROWS, LinearCka
from asterism.core.errors import DataError, MismatchError, UnknownName
from tests import oracles

ESTIMATORS = ["debiased", "biased"]


def features(n: int, widths: tuple[int, ...], seed: int = 0, offset: float = 0.0, dtype: torch.dtype = torch.float32):
    """Layers that share some directions: [n, d] each."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    layers = []
    for width in widths:
        own = torch.randn(n, width, generator=generator, dtype=torch.float64)
        mixing = torch.randn(3, width, generator=generator, dtype=torch.float64)
        layers.append((offset + own + shared @ mixing).to(dtype))
    return layers


def streamed(xs, ys=None, batch=97) -> LinearCka:
    cka = LinearCka([x.shape[1] for x in xs], None if ys is None else [y.shape[1] for y in ys])
    for top in range(0, len(xs[0]), batch):
        cka.add([x[top : top + batch] for x in xs], None if ys is None else [y[top : top + batch] for y in ys])
    return cka


def in_gram_form(xs, ys, estimator) -> np.ndarray:
    left, right = ([oracles.linear_gram(layer.double()) for layer in side] for side in (xs, ys))
    return np.array([[oracles.cka(k, m, estimator) for m in right] for k in left])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("n", "dtype", "offset"), [(5, torch.float64, 0), (60, torch.float32, 1000), (600, torch.float64, -5), (1030, torch.bfloat16, 1)]
)
def test_agrees_with_the_gram_form(n, dtype, offset, estimator):
    xs, ys = features(n, (7, 130, 1), 1, offset, dtype), features(n, (64, 20), 2, offset, dtype)
    ys[0][:, :7] += 2 * xs[0]
    got = streamed(xs, ys).similarity(estimator)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, in_gram_form(xs, ys, estimator), atol=1e-8)
    np.testing.assert_allclose(streamed(xs).similarity(estimator), in_gram_form(xs, xs, estimator), atol=1e-8)


def test_debiased_is_free_of_what_biased_shows_for_unrelated_features():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 128, 768, generator=generator)
    cka = streamed([x], [y])
    assert abs(float(cka.similarity("debiased"))) < 0.03
    assert float(cka.similarity("biased")) > 0.8


@pytest.mark.parametrize("batch", [1, 3, ROWS, ROWS + 1, 5000])
def test_batches_are_no_matter(batch):
    xs, ys = features(2 * ROWS + 9, (5, 6)), features(2 * ROWS + 9, (4,), 1)
    torch.testing.assert_close(streamed(xs, ys, batch).similarity(), streamed(xs, ys).similarity(), rtol=0, atol=1e-10)


def test_asking_in_between_changes_nothing():
    xs = features(90, (5, 6))
    cka = LinearCka([5, 6])
    for top in (0, 30, 60):
        cka.add([x[top : top + 30] for x in xs])
        got = cka.similarity()
        torch.testing.assert_close(got, streamed([x[: top + 30] for x in xs]).similarity(), rtol=0, atol=1e-9)


def test_what_was_given_is_copied_and_left_alone():
    xs = [x.requires_grad_() for x in features(20, (5, 6))]
    given_first = [x.detach().clone() for x in xs]
    cka = LinearCka([5, 6])
    cka.add(xs)
    for x, before in zip(xs, given_first, strict=True):
        assert torch.equal(x, before)
        x.data.zero_()
    torch.testing.assert_close(cka.similarity(), streamed(given_first).similarity())


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), offset=st.floats(-1e3, 1e3))
def test_rotation_scale_and_shift_are_no_matter(seed, scale, offset):
    x, y = features(25, (6, 4), seed, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    for estimator in ESTIMATORS:
        moved = streamed([scale * (x @ turn) + offset], [y]).similarity(estimator)
        torch.testing.assert_close(moved, streamed([x], [y]).similarity(estimator), rtol=0, atol=1e-8)


def test_outlying_rows_and_a_late_shift_of_the_mean_cost_no_digits():
    xs, ys = features(1500, (20,), 1), features(1500, (30,), 2)
    xs[0][700:] += 300  # nothing like the rows that set the shift
    ys[0][::400] *= 1000
    for estimator in ESTIMATORS:
        np.testing.assert_allclose(streamed(xs, ys).similarity(estimator), in_gram_form(xs, ys, estimator), atol=1e-8)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_constant_features_are_similar_to_nothing(constant, estimator):
    xs, ys = features(600, (4, 5)), features(600, (3, 3), 1)
    xs[1][:], ys[0][:] = constant, -constant
    cka = streamed(xs, ys)
    got, null = cka.similarity(estimator), cka.null(estimator)
    assert got[1].tolist() == [0, 0]
    assert got[:, 0].tolist() == [0, 0]
    assert got[0, 1] != 0
    assert null.sd[0, 0] == null.z(got)[0, 0] == 0
    assert null.p(got)[0, 0] == 1
    assert null.sd[0, 1] > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_null_has_the_moments_of_all_permutations(estimator):
    xs, ys = features(6, (3, 1), 3), features(6, (4,), 4)
    null = streamed(xs, ys).null(estimator)
    right = oracles.linear_gram(ys[0])
    for row, x in enumerate(xs):
        left = oracles.linear_gram(x)
        every = [oracles.cka(left, right[np.ix_(order, order)], estimator) for order in map(list, permutations(range(6)))]
        np.testing.assert_allclose([null.mean[row, 0], null.sd[row, 0]], [np.mean(every), np.std(every)], atol=1e-9)
    within = streamed(xs).null(estimator)
    assert within.sd.shape == (2, 2)


@pytest.mark.parametrize("width", [1, 2, 30])
def test_p_is_not_smaller_than_the_share_of_permutations(width):
    xs, ys = ([torch.randn(80, width, generator=torch.Generator().manual_seed(seed))] for seed in (0, 1))
    left, right = oracles.linear_gram(xs[0]), oracles.linear_gram(ys[0])
    random = np.random.default_rng(0)
    drawn = [oracles.hsic(left, right[np.ix_(order, order)], "debiased") for order in (random.permutation(80) for _ in range(4000))]
    scale = np.sqrt(oracles.hsic(left, left, "debiased") * oracles.hsic(right, right, "debiased"))
    null = streamed(xs, ys).null()
    for share in (0.05, 0.02):
        similarity = torch.tensor([[np.quantile(drawn, 1 - share) / scale]])
        p = float(null.p(similarity))
        assert 0.8 * share < p < (1.4 * share if width == 1 else 0.1)  # a single chi^2 is the very law of one direction on each side
        assert float(null.z(similarity)) == pytest.approx(float(similarity) * (80 * 77 / 2) ** 0.5)


def test_what_does_not_fit_is_refused():
    xs = features(10, (4, 5))
    for error, told, call in [
        (MismatchError, "on both sides", lambda: LinearCka([])),
        (MismatchError, "on both sides", lambda: LinearCka([3], [])),
        (MismatchError, "do not fit", lambda: LinearCka([4, 5], [4]).add(xs)),
        (MismatchError, "do not fit", lambda: LinearCka([4, 4]).add(xs)),
        (MismatchError, "do not fit", lambda: LinearCka([4, 5]).add([xs[0], xs[1][:3]])),
        (MismatchError, "do not fit", lambda: LinearCka([4]).add([xs[0][0]])),
        (DataError, "needs features", lambda: LinearCka([4]).similarity()),
        (DataError, "at least 4 samples", lambda: streamed([x[:3] for x in xs]).similarity()),
        (UnknownName, "did you mean 'debiased'", lambda: streamed(xs).similarity("debias")),
        (DataError, "too large", lambda: streamed([x * 1e30 for x in xs]).similarity()),
    ]:
        with pytest.raises(error, match=told):
            call()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_layer(bad):
    xs, ys = features(9, (4, 5)), features(9, (4,))
    ys[0][3, 2] = bad
    with pytest.raises(DataError, match="right layer 0"):
        streamed(xs, ys).similarity()
