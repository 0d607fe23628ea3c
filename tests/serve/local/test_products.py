"""Products of a batch with several matrices at once, against loops in plain words."""

from __future__ import annotations

import pytest
import torch

from asterism.models.changes import LowRank
from asterism.serve.local.products import Addition, Meeting, composed, gathered, low_rank, woven
from asterism.serve.local.slabs import room, runs, woven_whole

N, IN, OUT = 5, 6, 8
ROWS = ((0, 1, 4), (1, 2), (3, 0, 2, 4))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def meetings(matrices, width: int) -> list[Meeting]:
    return [Meeting(rows, drawn(len(rows), width, seed=i), matrix) for i, (rows, matrix) in enumerate(zip(ROWS, matrices, strict=True))]


def by_hand(x: torch.Tensor, given: list[Meeting], *, outputs_last: bool = False) -> torch.Tensor:
    out = torch.zeros(*x.shape[:-1], OUT, dtype=torch.float64)
    for rows, weights, matrix in given:
        for place, row in enumerate(rows):
            own = x[row] @ (matrix if outputs_last else matrix.T)
            out[row] += own if weights is None else own * weights[place]
    return out


def filled(places: list[torch.Tensor]) -> list[torch.Tensor]:
    return [place.copy_(drawn(*place.shape, seed=10 + i)) for i, place in enumerate(places)]


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("width", [1, OUT])
@pytest.mark.parametrize("inside", [(), (1,), (3,)])
@pytest.mark.parametrize("outputs_last", [False, True])
def test_gathered(batched, width, inside, outputs_last):
    like = torch.empty(IN, OUT, dtype=torch.float64) if outputs_last else torch.empty(OUT, IN, dtype=torch.float64)
    first, second, third = filled([*room(like, 2), *room(like, 1)])
    given = meetings((second, third, first), width)
    x = drawn(N, *inside, IN, seed=99)
    product = gathered(given, N, outputs_last=outputs_last, batched=batched, memo=lambda key, make: make())
    torch.testing.assert_close(product(x), by_hand(x, given, outputs_last=outputs_last))


@pytest.mark.parametrize("outputs_last", [False, True])
def test_woven(outputs_last):
    like = torch.empty(IN, OUT, dtype=torch.float64) if outputs_last else torch.empty(OUT, IN, dtype=torch.float64)
    given = meetings(filled(room(like, 3, woven=not outputs_last)), 1)
    product = woven(given, N, outputs_last=outputs_last)
    assert product is not None
    x = drawn(N, 2, IN, seed=99)
    torch.testing.assert_close(product(x), by_hand(x, given, outputs_last=outputs_last))
    assert woven(meetings([each.matrix for each in given], OUT), N, outputs_last=outputs_last) is None
    assert woven(meetings(filled([like.clone() for _ in range(3)]), 1), N, outputs_last=outputs_last) is None


def test_composed_takes_each_matrix_when_its_turn_has_come():
    matrices, scratch = [drawn(OUT, IN, seed=i) for i in range(3)], torch.empty(OUT, IN, dtype=torch.float64)
    rows = ((0, 1), (4, 2), (3,))
    product = composed([(own, lambda m=m: scratch.copy_(m)) for own, m in zip(rows, matrices, strict=True)], N, OUT, outputs_last=False)
    x = drawn(N, 3, IN, seed=99)
    given = [Meeting(own, None, matrix) for own, matrix in zip(rows, matrices, strict=True)]
    torch.testing.assert_close(product(x), by_hand(x, given))


def test_low_rank():
    factors = [LowRank(drawn(OUT, r, seed=r), drawn(r, IN, seed=r + 1)) for r in (1, 2, 3)]
    weights = (drawn(3, 1), drawn(2, OUT), None)
    given = [Addition(*each) for each in zip(ROWS, weights, factors, strict=True)]
    x = drawn(N, 2, IN, seed=99)
    want = by_hand(x, [Meeting(each.rows, each.weights, each.factors.up @ each.factors.down) for each in given])
    torch.testing.assert_close(low_rank(given, N, torch.float64)(x), want)


@pytest.mark.parametrize("woven_ones", [False, True])
def test_runs_lie_beside_each_other(woven_ones):
    like = torch.empty(OUT, IN, dtype=torch.float64)
    a, b, c, d = filled(room(like, 4, woven=woven_ones))
    alone = filled(room(like, 1, woven=woven_ones))[0]
    found = {run.places: run.matrices for run in runs([d, alone, a, b])}
    assert set(found) == {(0,), (1,), (2, 3)}
    assert torch.equal(found[2, 3], torch.stack([a, b]))
    assert c.data_ptr() not in {matrix.data_ptr() for matrix in found.values()}
    if woven_ones:
        pair = next(run for run in runs([a, b]) if len(run.places) == 2)
        assert torch.equal(woven_whole(pair), torch.cat([a, b], dim=1))
