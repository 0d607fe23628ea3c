"""The loss barrier against NumPy, and on paths whose shape is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError
from asterism.route.barrier import barrier

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def drawn(bump: float, n: int = 40, seed: int = 0) -> torch.Tensor:
    """Losses whose excess is bump * 4 s (1 - s), plus noise that differs by text and not by share."""
    rng = np.random.default_rng(seed)
    ends, level = np.array([3.0, 2.5]), rng.normal(size=n)
    share = np.array(SHARES)[:, None]
    return torch.tensor(share * ends[1] + (1 - share) * ends[0] + bump * 4 * share * (1 - share) + level)


def test_excess_is_over_the_ends_own_line():
    losses = drawn(0.0) + torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = barrier(SHARES, losses)
    rows = losses.numpy()
    want = [rows[i].mean() - (s * rows[4].mean() + (1 - s) * rows[0].mean()) for i, s in enumerate(SHARES)]
    np.testing.assert_allclose(found.excess, want, atol=1e-12)
    assert found.height == pytest.approx(max(want))
    assert found.share == SHARES[int(np.argmax(want))]
    assert found.low < found.height < found.high


def test_pairing_takes_the_texts_own_level_out():
    found = barrier(SHARES, drawn(0.3))
    assert (found.height, found.share) == (pytest.approx(0.3), 0.5)
    assert found.high - found.low < 1e-9  # although losses differ by whole nats between texts


def test_a_valley_is_no_barrier():
    found = barrier(SHARES, drawn(-0.3))
    assert (found.height, found.low, found.high) == (0, 0, 0)
    assert found.excess[2] == pytest.approx(-0.3)


def test_points_come_in_any_order():
    losses = drawn(0.2)
    turned = [2, 4, 1, 0, 3]
    found = barrier([SHARES[i] for i in turned], losses[turned])
    assert (found.height, found.share) == (pytest.approx(0.2), 0.5)


def test_a_path_without_an_end_is_refused():
    for shares, losses in (((0.0, 0.5), drawn(0)[:2]), ((0.0, 1.0), drawn(0)), (SHARES, drawn(0)[:, 0])):
        with pytest.raises(DataError, match="both its ends"):
            barrier(shares, losses)
