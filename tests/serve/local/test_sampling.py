"""Tokens follow the distribution that is asked for, one row as many."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from asterism.serve.jobs import Sampling
from asterism.serve.local import sampling
from asterism.serve.local.sampling import Draw, drawn

LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04]))


def draws(count: int, **settings) -> Counter[int]:
    row = Draw.of(Sampling(1, **settings))
    return Counter(int(drawn(LOGITS[None], [row])[0]) for _ in range(count))


def test_temperature_and_top_p_shape_the_draws():
    """Chi-square distance of 1000 draws from what is asked for; the tails that top-p cuts are never met."""
    for settings, want in (
        (dict(temperature=1.0), LOGITS.exp()),
        (dict(temperature=2.0), (LOGITS / 2).softmax(0)),
        (dict(temperature=1.0, top_p=0.7), torch.tensor([2 / 3, 1 / 3, 0, 0, 0])),
        (dict(temperature=0.5, top_p=0.95), torch.tensor([0.25, 0.0625, 0.0225, 0, 0]) / 0.335),
    ):
        found = draws(1000, seed=3, **settings)
        expected = {token: 1000 * float(share) for token, share in enumerate(want) if share}
        assert set(found) <= set(expected)
        assert sum((found[token] - count) ** 2 / count for token, count in expected.items()) < 18.5  # 0.999 of 4 degrees


@pytest.mark.parametrize("settings", [dict(temperature=0.0), dict(temperature=1e-30), dict(temperature=1.0, top_p=1e-9)])
def test_the_likeliest_token_alone(settings):
    assert draws(50, **settings) == {0: 50}


def test_neighbours_change_no_draw(monkeypatch):
    """Every row as alone, also where one row's nucleus makes all sort."""
    monkeypatch.setattr(sampling, "SORTED", 4)
    logits = 3 * torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    kinds = [Sampling(1, temperature=t, top_p=p, seed=s, logprobs=n) for s, (t, p, n) in enumerate(
        ((0.0, 1.0, None), (1.0, 1.0, 0), (2.0, 0.999, None), (0.5, 0.3, 3), (3.0, 0.9, None), (1.0, 0.5, None)))]  # fmt: skip
    together, apart = [Draw.of(kind) for kind in kinds], [Draw.of(kind) for kind in kinds]
    for _ in range(20):
        ids, tokens = drawn(logits, together)
        for row, own in enumerate(apart):
            alone, (token,) = drawn(logits[row : row + 1], [own])
            assert int(alone) == int(ids[row]) == tokens[row].id
            assert tokens[row] == token


def test_rounding_of_the_scores_hardly_ever_changes_a_draw():
    """Batches of other sizes round in other ways; a row still draws what it draws alone."""
    logits = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    nudged = logits * (1 + 1e-6 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)))
    one, other = (Draw.of(Sampling(1, temperature=1.0, seed=5)) for _ in range(2))
    found = [(int(drawn(logits, [one])[0]), int(drawn(nudged, [other])[0])) for _ in range(300)]
    assert all(a == b for a, b in found)
    assert len(set(found)) > 250


def test_logprobs_are_of_the_models_own_distribution():
    row = Draw.of(Sampling(1, temperature=0.1, logprobs=2, seed=1))
    _, (token,) = drawn(LOGITS[None], [row])
    assert token.id == 0
    assert [each for each, _ in token.top] == [0, 1]
    assert [value for _, value in token.top] == pytest.approx(LOGITS[:2].tolist(), abs=1e-6)
    _, (bare,) = drawn(LOGITS[None], [Draw.of(Sampling(1, logprobs=0))])
    assert (bare.logprob, bare.top) == (pytest.approx(float(LOGITS[0]), abs=1e-6), ())


def test_a_row_that_is_not_finite_is_told_alone():
    logits = LOGITS.repeat(4, 1)
    logits[1, 2], logits[2, 0], logits[3, 4] = torch.nan, torch.inf, -torch.inf
    rows = [Draw.of(Sampling(1, temperature=t)) for t in (1.0, 1.0, 0.0, 0.0)]
    _, tokens = drawn(logits, rows)
    assert [token is None for token in tokens] == [False, True, True, False]
