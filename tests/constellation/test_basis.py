"""Centring, noise and orthogonalisation of centroids; coefficients (Eq. 3, 5, section 7.4)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.constellation.basis import Basis, make_basis, noisy
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError, SettingsError
from tests import oracles


def collinear(n=4, d=12, seed=0):
    """Centroids with a large shared part, as real ones have: float64 [n, d]."""
    draw = torch.Generator().manual_seed(seed)
    return 3 + torch.randn(n, d, generator=draw, dtype=torch.float64)


GENERAL = 3 + torch.randn(12, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
ORACLES = {
    "gram_schmidt": oracles.gram_schmidt,
    "lowdin": oracles.lowdin,
    "none": lambda x: np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True),
}


@pytest.mark.parametrize("centring", ["none", "general"])
@pytest.mark.parametrize("method", ORACLES)
def test_basis_agrees_with_numpy(method, centring):
    centroids = collinear()
    offset = GENERAL.numpy() if centring == "general" else np.zeros(12)
    basis = make_basis(centroids, GENERAL, IndexSettings(orthogonalisation=method, centring=centring))
    want = ORACLES[method](centroids.numpy() - offset)
    np.testing.assert_allclose(basis.vectors, want, atol=1e-10)
    np.testing.assert_array_equal(basis.offset, offset)
    query = collinear(n=1, seed=5)[0]
    np.testing.assert_allclose(basis.coefficients(query), oracles.coefficients(query.numpy() - offset, want), atol=1e-10)


def test_centring_on_the_mean_subtracts_the_mean_of_the_centroids():
    centroids = collinear()
    basis = make_basis(centroids, GENERAL, IndexSettings(orthogonalisation="none", centring="mean"))
    want = centroids.numpy() - centroids.numpy().mean(axis=0)
    np.testing.assert_allclose(basis.vectors, want / np.linalg.norm(want, axis=1, keepdims=True), atol=1e-12)


def test_symmetric_basis_after_mean_centring_is_the_nearest_tight_frame():
    centroids = collinear().numpy()
    basis = make_basis(torch.from_numpy(centroids), None, IndexSettings(orthogonalisation="lowdin", centring="mean"))
    unit = centroids - centroids.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    values, turns = np.linalg.eigh(unit @ unit.T)
    frame = (turns[:, 1:] / np.sqrt(values[1:])) @ turns[:, 1:].T @ unit
    np.testing.assert_allclose(basis.vectors, frame / np.linalg.norm(frame, axis=1, keepdims=True), atol=1e-9)
    off = (basis.vectors @ basis.vectors.T)[~torch.eye(4, dtype=torch.bool)]
    assert off.mean() == pytest.approx(-1 / 3, abs=0.02)  # a simplex, nearly


def test_gram_schmidt_after_mean_centring_is_refused():
    with pytest.raises(SettingsError, match=r"(?s)cannot follow centring on the mean.*lowdin or none"):
        make_basis(collinear(), None, IndexSettings(orthogonalisation="gram_schmidt", centring="mean"))


def test_centring_on_general_probes_needs_them():
    with pytest.raises(SettingsError, match="needs some"):
        make_basis(collinear(), None, IndexSettings(centring="general"))


@given(st.permutations(range(4)))
def test_lowdin_does_not_look_at_the_order_and_gram_schmidt_does(order):
    centroids = collinear()
    lowdin, schmidt = (IndexSettings(orthogonalisation=o, centring="none") for o in ("lowdin", "gram_schmidt"))
    np.testing.assert_allclose(
        make_basis(centroids[list(order)], None, lowdin).vectors, make_basis(centroids, None, lowdin).vectors[list(order)], atol=1e-9
    )
    moved = make_basis(centroids[list(order)], None, schmidt).vectors - make_basis(centroids, None, schmidt).vectors[list(order)]
    assert bool(moved.abs().max() > 1e-3) == (list(order) != [0, 1, 2, 3])


@given(st.floats(0.01, 100))
def test_coefficients_grow_with_the_fingerprint(factor):
    basis = make_basis(collinear(), None, IndexSettings(centring="none"))
    query = collinear(n=3, seed=7)
    torch.testing.assert_close(basis.coefficients(factor * query), factor * basis.coefficients(query), rtol=1e-9, atol=1e-9)


def test_coefficients_take_any_leading_axes_and_keep_wide_inputs_wide():
    basis = make_basis(collinear().float(), None, IndexSettings(centring="none"))
    queries = collinear(n=6, seed=3)
    found = basis.coefficients(queries.view(2, 3, 12))
    assert (found.shape, found.dtype) == ((2, 3, 4), torch.float64)
    torch.testing.assert_close(found.view(6, 4)[4], basis.coefficients(queries[4]))
    assert basis.coefficients(queries.bfloat16()).dtype == torch.float32


def test_a_fingerprint_of_another_model_is_refused():
    with pytest.raises(DataError, match="d = 12"):
        make_basis(collinear(), None, IndexSettings(centring="none")).coefficients(torch.zeros(16))


def test_noise_has_the_size_asked_for_and_its_seed_decides_it():
    centroids = collinear(n=3, d=20_000)
    settings = IndexSettings(centring="none", noise_site="centroids", noise=0.02, seed=7)
    drawn = noisy(centroids, settings) - centroids
    sigma = 0.02 * centroids.norm(dim=1).mean()  # section 7.4
    assert drawn.std() == pytest.approx(float(sigma), rel=0.02)
    assert abs(drawn.mean()) < 0.02 * sigma
    torch.testing.assert_close(noisy(centroids, settings), centroids + drawn, rtol=0, atol=0)
    assert not torch.equal(noisy(centroids, settings.changed(seed=8)), centroids + drawn)


def test_noise_of_the_control_has_the_same_norms_along_one_shared_direction():
    centroids = collinear(n=3, d=500)
    settings = IndexSettings(centring="none", noise_site="centroids", noise=0.05, seed=7)
    free = noisy(centroids, settings) - centroids
    control = noisy(centroids, settings.changed(noise_site="direction")) - centroids
    torch.testing.assert_close(control.norm(dim=1), free.norm(dim=1), rtol=1e-9, atol=0)
    axes = torch.nn.functional.normalize(control, dim=1)
    torch.testing.assert_close(axes @ axes.T, torch.ones(3, 3, dtype=torch.float64), rtol=0, atol=1e-9)
    between = torch.nn.functional.normalize(free, dim=1) @ axes[0]
    assert between.abs().max() < 0.2  # the centroids' own noise points elsewhere
    other = noisy(centroids, settings.changed(noise_site="direction", seed=8)) - centroids
    assert abs(torch.nn.functional.cosine_similarity(other[0], control[0], dim=0)) < 0.2


def test_noise_is_added_before_orthogonalisation_and_only_at_its_site():
    centroids = collinear()
    settings = IndexSettings(orthogonalisation="gram_schmidt", centring="none", noise_site="centroids", noise=0.1)
    np.testing.assert_allclose(make_basis(centroids, None, settings).vectors, oracles.gram_schmidt(noisy(centroids, settings)), atol=1e-10)
    plain = make_basis(centroids, None, settings.changed(noise_site="none"))
    assert (make_basis(centroids, None, settings).vectors - plain.vectors).abs().max() > 0.01
    for silent in (settings.changed(noise_site="weights"), settings.changed(noise=0.0)):
        torch.testing.assert_close(make_basis(centroids, None, silent).vectors, plain.vectors, rtol=0, atol=0)


def test_equal_centroids_are_refused_and_noise_tells_them_apart():
    centroids = collinear().float()
    centroids[2] = centroids[0]
    with pytest.raises(DataError, match="row 2"):
        make_basis(centroids, None, IndexSettings.paper())
    vectors = make_basis(centroids, None, IndexSettings.paper(noise_site="centroids")).vectors
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(4), atol=1e-5, rtol=0)


def test_one_domain_has_its_own_direction_as_basis():
    centroid = collinear(n=1)
    basis = make_basis(centroid, None, IndexSettings(centring="none"))
    assert isinstance(basis, Basis)
    torch.testing.assert_close(basis.coefficients(centroid[0]), centroid.norm(dim=1))


def test_a_single_domain_is_not_centred_on_itself():
    basis = make_basis(collinear()[:1], None, IndexSettings(centring="mean"))
    assert torch.equal(basis.offset, torch.zeros_like(basis.offset))
    torch.testing.assert_close(basis.vectors, torch.nn.functional.normalize(collinear()[:1], dim=1))
