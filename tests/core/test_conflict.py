"""Sign conflict and cosine of two deltas, against plain loops in NumPy float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.conflict import Conflict, sign_conflict
from asterism.core.errors import DataError, MismatchError, UnsupportedError


def oracle(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    shared = opposed = 0
    mass = against = inner = xx = yy = 0.0
    for a, b in zip(x.ravel().astype(np.float64), y.ravel().astype(np.float64), strict=True):
        inner, xx, yy, mass = inner + a * b, xx + a * a, yy + b * b, mass + abs(a * b)
        if a != 0 and b != 0:
            shared += 1
            if np.sign(a) != np.sign(b):
                opposed, against = opposed + 1, against + abs(a * b)
    return {
        "signs": opposed / shared if shared else 0.0,
        "mass": against / mass if mass else 0.0,
        "cosine": inner / np.sqrt(xx * yy) if xx * yy else 0.0,
        "x": np.sqrt(xx),
        "y": np.sqrt(yy),
        "shared": shared,
    }


def seeded(shape, dtype=torch.float32, seed=0, zeros=0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Two related deltas with entries at zero."""
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    common = drawn()
    kept = [torch.rand(shape, generator=generator, dtype=torch.float64) > zeros for _ in range(2)]
    return tuple(((common + drawn()) * own).to(dtype) for own in kept)  # pyright: ignore[reportReturnType]


def figures(found: Conflict) -> dict[str, float]:
    x, y = found.norms
    return {"signs": found.signs, "mass": found.mass, "cosine": found.cosine, "x": x, "y": y, "shared": found.shared}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 33), (3, 4, 70)])
def test_figures_agree_with_numpy(shape, dtype):
    x, y = seeded(shape, dtype)
    found = sign_conflict(x, y)
    assert figures(found) == pytest.approx(oracle(x.double().numpy(), y.double().numpy()), rel=1e-12)
    assert found.entries == x.numel()


def test_tensors_add_up_and_blocks_do_too():
    x, y = seeded((1_100_003,), zeros=0.1)  # more than one block
    whole = sign_conflict(x, y)
    cut = [0, 5, 400_000, 1_100_003]
    pieces = sum((sign_conflict(x[a:b], y[a:b]) for a, b in pairwise(cut)), Conflict())
    assert (pieces.entries, pieces.shared, pieces.opposed) == (whole.entries, whole.shared, whole.opposed)
    assert figures(pieces) == pytest.approx(figures(whole), rel=1e-12)
    share = ((x * y < 0).sum() / ((x != 0) & (y != 0)).sum()).item()
    assert whole.signs == pytest.approx(share)
    assert 0.1 < whole.mass < whole.signs < 0.4  # related deltas agree more, and most in large entries


def test_layout_and_threads_change_no_bit():
    x, y = seeded((300, 400))
    turned = [tensor.t().contiguous().t() for tensor in (x, y)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert sign_conflict(*turned) == sign_conflict(x, y)
        two = sign_conflict(x, y)
    finally:
        torch.set_num_threads(threads)
    assert two == sign_conflict(x, y)


@given(st.integers(0, 10_000), st.floats(0.01, 100))
def test_scale_does_not_matter_and_a_turn_of_sign_turns_conflict_round(seed, scale):
    x, y = seeded((6, 5), torch.float64, seed)
    one, scaled, turned = (sign_conflict(x, other) for other in (y, scale * y, -y))
    assert figures(scaled) == pytest.approx({**figures(one), "y": scale * one.norms[1]}, abs=1e-12)
    if one.shared:
        assert (turned.signs, turned.mass, turned.cosine) == pytest.approx((1 - one.signs, 1 - one.mass, -one.cosine))


def test_the_same_and_the_opposite():
    x = torch.tensor([1.0, -2.0, 0.0, 3.0])
    assert sign_conflict(x, x).to_dict() == {"cosine": 1, "signs": 0, "mass": 0, "shared": 0.75, "norms": pytest.approx([14**0.5] * 2)}
    assert sign_conflict(x, -x).to_dict() == {"cosine": -1, "signs": 1, "mass": 1, "shared": 0.75, "norms": pytest.approx([14**0.5] * 2)}


def test_products_that_underflow_still_conflict():
    tiny = torch.full((4,), 1e-30)
    assert sign_conflict(tiny, -tiny).signs == 1


def test_nothing_shared_is_no_conflict():
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    for found in (sign_conflict(x, y), sign_conflict(x, 0 * x), Conflict(), sign_conflict(torch.empty(0), torch.empty(0))):
        assert (found.signs, found.mass, found.cosine) == (0, 0, 0)
        assert found.to_dict()["shared"] == 0


def test_what_cannot_be_compared_is_refused_by_name():
    x = torch.ones(3)
    with pytest.raises(MismatchError):
        sign_conflict(x, torch.ones(4))
    with pytest.raises(UnsupportedError):
        sign_conflict(x.int(), x.int())
    with pytest.raises(DataError, match=r"h\.0\.mlp"):
        sign_conflict(x, torch.tensor([1.0, float("nan"), 0.0]), "h.0.mlp")
