"""Truncation, sizes and products of low-rank factors against NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core import lowrank
from asterism.core.errors import SettingsError
from asterism.core.lowrank import difference, nearest_for_energy, nearest_low_rank, products, rank_for_energy, shortened, size


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def decaying(rows: int, columns: int) -> torch.Tensor:
    return seeded(rows, columns) * torch.linspace(1, 0.01, columns, dtype=torch.float64) ** 2


def oracle(delta: torch.Tensor, rank: int) -> tuple[np.ndarray, float]:
    """Best approximation and its relative error."""
    u, s, vt = np.linalg.svd(delta.double().numpy(), full_matrices=False)
    best = sum((s[i] * np.outer(u[:, i], vt[i]) for i in range(min(rank, len(s)))), np.zeros(delta.shape))
    return best, float(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()))


def parts() -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    return [(seeded(9, 2, seed=1), seeded(2, 7, seed=2)), None, (seeded(9, 5, seed=3), seeded(5, 7, seed=4))]


@pytest.mark.parametrize("shape", [(9, 7), (4, 11), (6, 6)])
def test_the_nearest_of_a_rank_is_the_truncated_svd(shape):
    delta = seeded(*shape)
    for rank in (1, 3, 4, 50):
        up, down = nearest_low_rank(delta, rank)
        assert up.shape[1] == down.shape[0] == min(rank, *shape)
        np.testing.assert_allclose((up @ down).numpy(), oracle(delta, rank)[0], atol=1e-12)


def test_large_matrices_take_a_randomised_svd_that_is_as_good_and_repeats(monkeypatch):
    delta = decaying(96, 80)
    exact = nearest_low_rank(delta, 8)
    monkeypatch.setattr(lowrank, "THIN_SVD", 10)
    before = torch.random.get_rng_state()
    sketched = nearest_low_rank(delta, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    best, got = ((delta - up @ down).norm() for up, down in (exact, sketched))
    assert best <= got < 1.002 * best
    assert torch.equal(sketched[0], nearest_low_rank(delta, 8)[0])


def test_shortening_factors_is_the_svd_of_their_product():
    up, down = seeded(9, 4, seed=5), seeded(4, 7, seed=6)
    *short, error = shortened(up, down, 2)
    best, want = oracle(up @ down, 2)
    np.testing.assert_allclose((short[0] @ short[1]).numpy(), best, atol=1e-12)
    assert error == pytest.approx(want, rel=1e-9)
    assert shortened(up, down, 4)[2] == 0.0
    *wide, error = shortened(seeded(3, 8), seeded(8, 5), 3)  # more columns than the matrix has ranks
    np.testing.assert_allclose((wide[0] @ wide[1]).numpy(), (seeded(3, 8) @ seeded(8, 5)).numpy(), atol=1e-12)
    assert wide[0].shape == (3, 3)
    assert error == 0.0
    assert shortened(torch.zeros(4, 3), torch.ones(3, 4), 1)[2] == 0.0


@pytest.mark.parametrize(
    ("values", "share", "rank"),
    [
        ([3.0, 1.0], 0.9, 1),  # 9 of 10, to the last bit
        ([3.0, 1.0], 0.9000001, 2),
        ([2.0, 2.0, 2.0, 2.0], 0.5, 2),
        ([2.0, 2.0, 2.0, 2.0], 1e-9, 1),
        ([1.0, 1e-7, 0.0], 1.0, 2),
        ([1.0, 1e-17, 1e-18], 1.0, 1),  # rounding of zero
        ([0.0, 0.0], 1.0, 0),
        ([], 0.5, 0),
    ],
)
def test_rank_for_energy(values, share, rank):
    assert rank_for_energy(torch.tensor(values, dtype=torch.float64), share) == rank


def test_rank_for_energy_is_the_least_that_suffices():
    values = torch.linalg.svdvals(decaying(30, 20))
    squares = values.numpy() ** 2
    for share in (0.1, 0.5, 0.9, 0.99, 0.9999):
        rank = rank_for_energy(values, share)
        assert squares[:rank].sum() >= share * squares.sum() > squares[: rank - 1].sum()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_energy_is_a_share(share):
    with pytest.raises(SettingsError, match="share of the whole"):
        rank_for_energy(torch.ones(2), share)


@pytest.mark.parametrize("thin", [1024, 4])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999, 1.0])
def test_energy_kept_is_what_was_asked_for(monkeypatch, thin, share):
    monkeypatch.setattr(lowrank, "THIN_SVD", thin)
    monkeypatch.setattr(lowrank, "_FIRST", 2)
    delta = decaying(90, 70)
    up, down = nearest_for_energy(delta, share)
    kept = 1 - ((delta - up @ down).norm() / delta.norm()).item() ** 2
    assert kept >= share - 1e-12
    least = rank_for_energy(torch.linalg.svdvals(delta), share)
    assert least <= up.shape[1] <= (least if thin == 1024 else least + 2)


def test_all_energy_is_the_numerical_rank():
    product = seeded(20, 3, seed=1) @ seeded(3, 30, seed=2)
    up, down = nearest_for_energy(product, 1.0)
    assert up.shape == (20, 3)
    torch.testing.assert_close(up @ down, product, rtol=0, atol=1e-12)
    assert nearest_for_energy(torch.zeros(4, 5), 0.9)[0].shape == (4, 0)


def test_sizes_and_differences_survive_cancellation():
    one, _, other = parts()
    assert size(*one) == pytest.approx(np.linalg.norm((one[0] @ one[1]).numpy()), rel=1e-12)
    assert size(*difference(one, other)) == pytest.approx(np.linalg.norm((one[0] @ one[1] - other[0] @ other[1]).numpy()), rel=1e-12)
    assert size(*difference(one, one)) < 1e-14 * size(*one)
    rounded = tuple(factor.float() for factor in one)
    assert size(*difference(one, rounded)) == pytest.approx(
        np.linalg.norm((one[0] @ one[1] - rounded[0].double() @ rounded[1].double()).numpy()), rel=1e-6
    )


def test_products_are_those_of_the_matrices():
    dense = [np.zeros((9, 7)) if pair is None else (pair[0] @ pair[1]).numpy() for pair in parts()]
    whole, rows, columns = (products(parts(), by).numpy() for by in ("whole", "up", "down"))
    assert rows.shape == (9, 3, 3)
    assert columns.shape == (7, 3, 3)
    for i, one in enumerate(dense):
        for j, other in enumerate(dense):
            np.testing.assert_allclose(whole[i, j], (one * other).sum(), atol=1e-12)
            np.testing.assert_allclose(rows[:, i, j], (one * other).sum(1), atol=1e-12)
            np.testing.assert_allclose(columns[:, i, j], (one * other).sum(0), atol=1e-12)
    assert products([None, None]).tolist() == [[0, 0], [0, 0]]
