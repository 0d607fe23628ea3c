"""Kernel CKA in blocks, and permutation nulls, against whole Gram matrices in NumPy float64."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from asterism.core import kernel_cka as module
from asterism.core.errors import DataError, MismatchError, SettingsError, UnknownName
from asterism.core.kernel_cka import kernel_cka, kernel_grams, permutation_null
from tests import oracles
from tests.core.test_cka import ESTIMATORS, features, streamed


def gram_of(x, kernel, bandwidth=1.0):
    return oracles.linear_gram(x.double()) if kernel == "linear" else oracles.rbf_gram(x.double(), bandwidth)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("kernel", "bandwidth"), [("linear", 1.0), ("rbf", 1.0), ("rbf", 0.3), ("rbf", 100.0)])
def test_agrees_with_whole_gram_matrices(kernel, bandwidth, estimator, monkeypatch):
    monkeypatch.setattr(module, "BUDGET", 1)  # blocks of 64 rows
    xs, ys = features(150, (5, 40), 1, 10), features(150, (7,), 2)
    ys[0][:, :5] += xs[0]
    got = kernel_grams(xs, ys, kernel=kernel, bandwidth=bandwidth).similarity(estimator)
    want = [[oracles.cka(gram_of(x, kernel, bandwidth), gram_of(y, kernel, bandwidth), estimator) for y in ys] for x in xs]
    np.testing.assert_allclose(got, want, atol=1e-9)
    assert kernel_cka(xs[1], ys[0], kernel=kernel, bandwidth=bandwidth, estimator=estimator) == pytest.approx(want[1][0], abs=1e-9)


def test_layers_of_one_model_meet_each_other():
    xs = features(50, (5, 6, 7))
    got = kernel_grams(xs, kernel="rbf").similarity()
    assert got.shape == (3, 3)
    torch.testing.assert_close(got, kernel_grams(xs, xs, kernel="rbf").similarity())
    torch.testing.assert_close(got.diagonal(), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(kernel_grams(xs).similarity(), streamed(xs).similarity(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_null_of_any_kernel_has_the_moments_of_all_permutations(kernel, estimator):
    x, y = features(6, (3, 4), 5)
    null = kernel_grams([x], [y], kernel=kernel).null(estimator)
    left, right = gram_of(x, kernel), gram_of(y, kernel)
    every = [oracles.cka(left, right[np.ix_(order, order)], estimator) for order in map(list, permutations(range(6)))]
    np.testing.assert_allclose([float(null.mean), float(null.sd)], [np.mean(every), np.std(every)], atol=1e-9)
    drawn = permutation_null(x, y, permutations=3000, kernel=kernel, estimator=estimator)
    assert drawn.mean == pytest.approx(float(null.mean), abs=0.03)
    assert drawn.sd == pytest.approx(float(null.sd), rel=0.1)
    share = np.mean(np.array(every) >= oracles.cka(left, right, estimator) - 1e-9)
    assert drawn.p == pytest.approx(share, abs=0.03)


def test_permutations_follow_their_seed():
    x, y = features(30, (3, 4))
    assert permutation_null(x, y, permutations=20, seed=1) == permutation_null(x, y, permutations=20, seed=1)
    assert permutation_null(x, y, permutations=20, seed=1) != permutation_null(x, y, permutations=20, seed=2)
    assert permutation_null(x, x, permutations=20).p == 1 / 21


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_constant_features_are_similar_to_nothing(kernel, estimator):
    x, y = features(30, (3, 4))
    x[:] = 0.1
    assert kernel_cka(x, y, kernel=kernel, estimator=estimator) == 0
    assert kernel_cka(x, x, kernel=kernel, estimator=estimator) == 0
    assert vars(permutation_null(x, y, permutations=5, kernel=kernel, estimator=estimator)) == {"mean": 0, "sd": 0, "p": 1}


def test_rows_of_which_half_are_equal_have_a_bandwidth():
    x, y = features(30, (3, 4))
    x[:28] = 1.0
    assert 0 < kernel_cka(x, x, kernel="rbf") <= 1
    assert abs(kernel_cka(x, y, kernel="rbf")) < 1


def test_what_does_not_fit_is_refused():
    x, y = features(10, (3, 4))
    bad = y.clone()
    bad[2, 1] = float("nan")
    for error, told, call in [
        (UnknownName, "did you mean 'rbf'", lambda: kernel_cka(x, y, kernel="rbff")),  # pyright: ignore[reportArgumentType]
        (UnknownName, "No such estimator", lambda: kernel_cka(x, y, estimator="unbiased")),  # pyright: ignore[reportArgumentType]
        (SettingsError, "positive multiple", lambda: kernel_cka(x, y, kernel="rbf", bandwidth=0)),
        (MismatchError, "do not belong", lambda: kernel_cka(x, y[:5])),
        (MismatchError, "do not belong", lambda: kernel_cka(x[0], y[0])),
        (MismatchError, "do not belong", lambda: kernel_grams([])),
        (DataError, "at least 4", lambda: kernel_cka(x[:3], y[:3])),
        (DataError, "layer 1", lambda: kernel_cka(x, bad)),
        (DataError, "0 permutations", lambda: permutation_null(x, y, permutations=0)),
    ]:
        with pytest.raises(error, match=told):
            call()
