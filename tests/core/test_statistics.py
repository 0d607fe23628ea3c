"""Intervals against their definitions, coverage, and the degenerate cases an evaluation meets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import DataError
from asterism.core.statistics import bootstrap_mean, bootstrap_ratio, mean_interval, pearson, ratio_gain, wilson, win_rate
from tests import oracles


@given(st.integers(1, 400), st.data())
def test_wilson_is_the_score_interval(n, data):
    wins = data.draw(st.integers(0, 2 * n)) / 2
    rate, low, high = wilson(wins, n)
    assert rate == wins / n
    assert (low, high) == pytest.approx(oracles.wilson(wins, n), abs=1e-9)
    assert 0 <= low <= rate <= high <= 1
    assert wilson(n - wins, n) == pytest.approx((1 - rate, 1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("wins", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_rate(wins, n):
    with pytest.raises(DataError, match=f"met:  {wins} of {n}"):
        wilson(wins, n)


def test_win_rate_counts_lower_losses_and_half_of_the_ties():
    rate, low, high, n = win_rate([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 1.0, 5.0])
    assert (rate, n) == (0.625, 4)
    assert (rate, low, high) == wilson(2.5, 4)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_one_sides_wins_are_the_others_defeats(pairs):
    ours, theirs = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    assert win_rate(ours, theirs)[0] + win_rate(theirs, ours)[0] == pytest.approx(1)


def test_win_rate_wants_paired_finite_losses():
    with pytest.raises(DataError, match="met:  2 and 1"):
        win_rate([1.0, 2.0], [1.0])
    with pytest.raises(DataError, match="1 of them not finite"):
        win_rate([float("nan"), 2.0], [1.0, 1.0])
    with pytest.raises(DataError, match="empty group"):
        win_rate([], [])


def test_bootstrap_brackets_the_mean_like_the_standard_error():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=200)
    mean, low, high = bootstrap_mean(values, seed=5)
    error = values.std(ddof=1) / np.sqrt(200)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.2 * error)


def test_bootstrap_repeats_with_its_seed_and_only_with_it():
    values = np.random.default_rng(2).exponential(size=30)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_bootstrap_of_equal_values_is_a_point():
    assert bootstrap_mean([2.5]) == (2.5, 2.5, 2.5)
    assert bootstrap_mean([0.1] * 7) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(DataError, match="1 of them not finite"):
        bootstrap_mean([1.0, float("inf")])


def test_one_value_has_no_interval():
    assert mean_interval([2.5]) == (2.5, None, None)
    assert mean_interval([2.5, 2.5]) == (2.5, 2.5, 2.5)
    assert mean_interval([1.0, 4.0], seed=3) == bootstrap_mean([1.0, 4.0], seed=3)


def test_pearson_is_the_correlation_with_fishers_interval():
    rng = np.random.default_rng(3)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    r, low, high = pearson(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    half = 1.959963984540054 / np.sqrt(60 - 3)
    assert (low, high) == pytest.approx((np.tanh(np.arctanh(r) - half), np.tanh(np.arctanh(r) + half)))


def test_pearson_where_nothing_can_be_measured():
    assert pearson([1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]) == (0.0, -1.0, 1.0)
    assert pearson([1.0, 2.0, 3.0], [3.0, 1.0, 2.0])[1:] == (-1.0, 1.0)
    assert pearson([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]) == pytest.approx((1.0, 1.0, 1.0))
    assert pearson([5.0], [5.0]) == (0.0, -1.0, 1.0)


COUNTS = [([2, 0, 4], [4, 2, 5]), ([1, 1, 0, 0], [1, 1, 1, 1])]


def test_a_ratio_of_sums_is_averaged_over_parts():
    value, low, high = bootstrap_ratio(COUNTS)
    assert value == pytest.approx((6 / 11 + 2 / 4) / 2)
    assert low < value < high
    assert bootstrap_ratio(COUNTS) == (value, low, high) != bootstrap_ratio(COUNTS, seed=1)
    assert bootstrap_ratio([([0, 0], [0, 0])]) == (1, 1, 1)
    assert bootstrap_ratio([([3, 3], [3, 3])]) == (1, 1, 1)


def test_a_ratio_of_accuracies_brackets_like_the_standard_error():
    right = (np.arange(400) % 4 > 0).astype(float)
    value, low, high = bootstrap_ratio([(right, np.ones(400))])
    error = np.sqrt(0.75 * 0.25 / 400)
    assert (value, low, high) == pytest.approx((0.75, 0.75 - 1.96 * error, 0.75 + 1.96 * error), abs=0.2 * error)


def test_a_gain_is_paired_text_by_text():
    ours = [(np.array([1.0, 1, 0, 1, 0, 1] * 20), np.ones(120))]
    theirs = [(ours[0][0] * (np.arange(120) % 10 > 0), np.ones(120))]
    gain, low, high = ratio_gain(ours, theirs)
    assert gain == pytest.approx(bootstrap_ratio(ours)[0] - bootstrap_ratio(theirs)[0])
    assert 0 < low < gain < high
    assert high - low < bootstrap_ratio(ours)[2] - bootstrap_ratio(ours)[1]
    assert ratio_gain(theirs, ours) == pytest.approx((-gain, -high, -low))
    assert ratio_gain(ours, ours) == (0, 0, 0)


def test_ratios_want_parts_and_equal_texts():
    with pytest.raises(DataError, match="no parts"):
        bootstrap_ratio([])
    with pytest.raises(DataError, match="empty group"):
        bootstrap_ratio([([], [])])
    with pytest.raises(DataError, match=r"\[3, 4\] and \[3\] texts"):
        ratio_gain(COUNTS, COUNTS[:1])
