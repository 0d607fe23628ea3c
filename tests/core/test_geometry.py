"""Bases, collinearity, residuals and sparsity against the oracles, and by property."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import DataError, SettingsError
from asterism.core.geometry import cosine_matrix, gini, gram_schmidt, lowdin, mean_collinearity, orthogonalise, residual_norms, unique_norms
from tests import oracles

METHODS = {"gram_schmidt": gram_schmidt, "lowdin": lowdin}


@st.composite
def centroids(draw, shared=1.0):
    """Rows with a shared direction, as real centroids have: [n, d] float64, n <= d."""
    n = draw(st.integers(2, 6))
    d = draw(st.integers(n, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    strength = draw(st.floats(0, shared)) * 3
    return torch.from_numpy(rng.normal(size=(n, d)) + strength * rng.normal(size=d))


@given(centroids())
def test_gram_schmidt_is_equation_3(x):
    np.testing.assert_allclose(gram_schmidt(x), oracles.gram_schmidt(x.numpy()), atol=1e-7)


@given(centroids())
def test_lowdin_is_the_inverse_root_of_the_gram_matrix(x):
    np.testing.assert_allclose(lowdin(x), oracles.lowdin(x.numpy()), atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@given(x=centroids())
def test_the_basis_is_orthonormal_and_spans_the_centroids(method, x):
    basis = orthogonalise(x, method)
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(x)), atol=1e-10)
    np.testing.assert_allclose((x @ basis.T) @ basis, x, atol=1e-10 * float(x.abs().max()))


@pytest.mark.parametrize("method", METHODS)
def test_orthonormal_even_when_the_centroids_are_nearly_parallel(method):
    x = torch.ones(12, 40, dtype=torch.float64) + 1e-7 * torch.randn(12, 40, dtype=torch.float64)
    basis = orthogonalise(x, method)
    np.testing.assert_allclose(basis @ basis.T, np.eye(12), atol=1e-10)
    textbook = oracles.gram_schmidt(x.numpy())
    assert np.abs(textbook @ textbook.T - np.eye(12)).max() > 1e-10  # the case is hard enough to tell


@pytest.mark.parametrize("method", [*METHODS, "none"])
@given(x=centroids(), seed=st.integers(0, 1000))
def test_the_length_of_a_centroid_changes_nothing(method, x, seed):
    lengths = torch.exp(4 * torch.randn(len(x), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    np.testing.assert_allclose(orthogonalise(x * lengths, method), orthogonalise(x, method), atol=1e-9)


@pytest.mark.parametrize("method", ["lowdin", "none"])
@given(x=centroids(), data=st.data())
def test_order_free_methods_commute_with_permutation(method, x, data):
    order = torch.tensor(data.draw(st.permutations(range(len(x)))))
    np.testing.assert_allclose(orthogonalise(x[order], method), orthogonalise(x, method)[order], atol=1e-9)


def test_gram_schmidt_does_not_commute_with_permutation():
    x = torch.randn(3, 8, dtype=torch.float64) + 1
    assert (gram_schmidt(x.flip(0)).flip(0) - gram_schmidt(x)).abs().max() > 0.1


@given(centroids())
def test_gram_schmidt_axes_lie_in_the_span_of_the_rows_so_far_and_point_along_them(x):
    along = gram_schmidt(x) @ x.T  # [axis, row]
    np.testing.assert_allclose(along.tril(-1), 0, atol=1e-10 * float(x.norm(dim=1).max()))
    assert (along.diagonal() > 0).all()


@given(centroids(), st.integers(0, 2**31))
def test_lowdin_is_the_nearest_orthonormal_set(x, seed):
    unit, best = orthogonalise(x, "none"), lowdin(x)
    rng = np.random.default_rng(seed)
    for size in (1e-3, 0.1, 10.0):
        rotation, _ = np.linalg.qr(np.eye(x.shape[1]) + size * rng.normal(size=(x.shape[1],) * 2))
        rival = best @ torch.from_numpy(rotation)
        np.testing.assert_allclose(rival @ rival.T, np.eye(len(x)), atol=1e-10)
        assert (best - unit).norm() <= (rival - unit).norm() + 1e-12
    assert (best - unit).norm() <= (gram_schmidt(x) - unit).norm() + 1e-12


def test_lowdin_after_centring_on_the_mean_is_a_simplex():
    x = torch.eye(4, 9, dtype=torch.float64)
    frame = lowdin(x - x.mean(dim=0), nullity=1)
    cosines = cosine_matrix(frame)
    np.testing.assert_allclose(cosines, np.eye(4) * 4 / 3 - 1 / 3, atol=1e-12)
    np.testing.assert_allclose(frame.sum(dim=0), 0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "loose"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_dtype_comes_back_and_the_arithmetic_is_wider(method, dtype, loose):
    x = (torch.randn(4, 32) + 2).to(dtype)
    basis = orthogonalise(x, method)
    assert basis.dtype == dtype
    np.testing.assert_allclose(basis.double(), orthogonalise(x.double(), method), atol=loose)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dependent_centroids_are_refused_by_row(method, dtype):
    x = torch.randn(5, 12, dtype=dtype)
    x[3] = 7 * x[1]
    row = "3" if method == "gram_schmidt" else "[13]"  # the first that depends on earlier ones, or any of those concerned
    with pytest.raises(DataError, match=rf"combination of the others\.\n  met:  row {row}\n  mend: the domains are not separable"):
        orthogonalise(x, method)


@pytest.mark.parametrize("method", METHODS)
def test_more_centroids_than_dimensions_are_refused(method):
    with pytest.raises(DataError, match="combination"):
        orthogonalise(torch.randn(5, 4), method)


@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_zero_and_non_finite_centroids_are_named(method):
    x = torch.randn(4, 6)
    with pytest.raises(DataError, match=r"zero\.\n  met:  row 2\n"):
        orthogonalise(x.index_fill(0, torch.tensor(2), 0.0), method)
    with pytest.raises(DataError, match=r"NaN or infinity\.\n  met:  row 1\n"):
        orthogonalise(x.index_fill(0, torch.tensor(1), float("nan")), method)
    with pytest.raises(DataError, match="at least one"):
        orthogonalise(torch.zeros(0, 6), method)


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="choose from gram_schmidt, lowdin, none"):
        orthogonalise(torch.eye(2), "loewdin")  # type: ignore[arg-type]


def test_numbers_at_the_edges_of_float32_have_directions():
    x = torch.tensor([[3e38, 3e38], [1e-38, -1e-38]])
    np.testing.assert_allclose(cosine_matrix(x), np.eye(2), atol=1e-6)


@given(centroids())
def test_collinearity_is_the_mean_of_the_pairs_cosines(x):
    pairs = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for k, a in enumerate(x.numpy()) for b in x.numpy()[:k]]
    assert mean_collinearity(x) == pytest.approx(np.mean(pairs), abs=1e-12)
    cosines = cosine_matrix(x).numpy()
    np.testing.assert_allclose(cosines[np.tril_indices(len(x), -1)], pairs, atol=1e-12)
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-12)


def test_collinearity_needs_a_pair():
    with pytest.raises(DataError, match="two directions"):
        mean_collinearity(torch.ones(1, 3))


@given(centroids())
def test_residual_norms_are_what_the_recurrence_leaves(x):
    axes = oracles.gram_schmidt(x.numpy())
    want = [row @ axis / np.linalg.norm(row) for row, axis in zip(x.numpy(), axes, strict=True)]
    got = residual_norms(x)
    np.testing.assert_allclose(got, want, atol=1e-10)
    assert float(got[0]) == pytest.approx(1)


def test_residual_norms_pass_over_dependent_rows():
    a, b, c = torch.randn(3, 7, dtype=torch.float64)
    got = residual_norms(torch.stack([a, 2 * a, b, a - b, c]))
    want = residual_norms(torch.stack([a, b, c]))
    np.testing.assert_allclose(got, [1, 0, want[1], 0, want[2]], atol=1e-12)
    np.testing.assert_allclose(residual_norms(torch.eye(2)[[0, 1, 0, 1]] + 0.0), [1, 1, 0, 0], atol=1e-12)


@given(centroids())
def test_a_rows_unique_norm_is_its_residual_when_it_comes_last(x):
    got = unique_norms(x)
    for k in range(len(x)):
        last = [*range(k), *range(k + 1, len(x)), k]
        assert float(got[k]) == pytest.approx(float(residual_norms(x[last])[-1]), abs=1e-9)


def test_rows_that_explain_each_other_have_nothing_of_their_own():
    a, b, c = torch.randn(3, 7, dtype=torch.float64)
    got = unique_norms(torch.stack([a, 2 * a, b, c]))
    np.testing.assert_allclose(got, [0, 0, *unique_norms(torch.stack([b, c, a]))[:2]], atol=1e-12)
    np.testing.assert_allclose(unique_norms(torch.randn(5, 3)), 0, atol=1e-12)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=12))
def test_gini_is_the_mean_difference_and_ignores_order_scale_and_sign(values):
    x = torch.tensor(values, dtype=torch.float64)
    got = float(gini(x))
    assert got == pytest.approx(oracles.gini(values), abs=1e-9)
    assert 0 <= got + 1e-12 < 1
    assert float(gini(-3 * x.flip(0))) == pytest.approx(got, abs=1e-9)


def test_gini_of_known_shares_over_leading_axes():
    got = gini(torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, -5.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0]]))
    np.testing.assert_allclose(got, [0, 0.75, 0, 0.625], atol=1e-6)
    assert got.dtype == torch.float32


def test_a_thousand_domains_of_a_large_model():
    x = torch.randn(1000, 1024) + 2
    basis = lowdin(x)
    assert basis.dtype == torch.float32
    np.testing.assert_allclose(basis @ basis.T, np.eye(1000), atol=1e-5)
