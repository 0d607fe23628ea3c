"""Node weights against equations 7, 8, 10 and 11 in NumPy, and by property."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import SettingsError
from asterism.core.weights import entropy_bits, joint, node_weights, raw_weights, top_k, two_stage
from tests import oracles


@st.composite
def queries(draw, dtype=torch.float64):
    """Coefficients [K] of both signs and signatures [K, d] with some dead nodes."""
    k, d = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    signatures = np.abs(rng.normal(size=(k, d))) * (rng.random((k, d)) > 0.2)
    return torch.tensor(rng.normal(size=k), dtype=dtype), torch.tensor(signatures, dtype=dtype)


@given(queries())
def test_each_equation_agrees_with_numpy(query):
    coefficients, signatures = query
    raw = oracles.raw(coefficients.numpy(), signatures.numpy())
    np.testing.assert_allclose(raw_weights(coefficients, signatures), raw, atol=1e-15)
    np.testing.assert_allclose(node_weights(coefficients, signatures), oracles.two_stage(raw), atol=1e-12)
    np.testing.assert_allclose(node_weights(coefficients, signatures, "joint"), oracles.joint(raw), atol=1e-12)
    np.testing.assert_allclose(entropy_bits(two_stage(torch.from_numpy(raw))), oracles.entropy(oracles.two_stage(raw)), atol=1e-12)


def test_the_two_normalisations_differ():
    coefficients, signatures = torch.tensor([1.0, 2.0, 0.5]), torch.rand(3, 17)
    assert (node_weights(coefficients, signatures) - node_weights(coefficients, signatures, "joint")).abs().max() > 0.1


@given(queries(torch.float32), st.floats(-30, 30))
def test_columns_sum_to_one_at_any_scale(query, power):
    coefficients, signatures = query
    weights = node_weights(coefficients, signatures * 10**power)
    assert weights.dtype == torch.float32
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights.sum(dim=0), 1, atol=1e-6)
    np.testing.assert_allclose(node_weights(coefficients, signatures * 10**power, "joint").sum(), 1, atol=1e-6)


@given(queries(), st.floats(1e-3, 1e3))
def test_weights_ignore_the_length_of_the_fingerprint(query, length):
    coefficients, signatures = query
    np.testing.assert_allclose(node_weights(coefficients * length, signatures), node_weights(coefficients, signatures), atol=1e-12)


@given(queries(), st.data())
def test_weights_follow_the_specialists_order(query, data):
    coefficients, signatures = query
    order = torch.tensor(data.draw(st.permutations(range(len(coefficients)))))
    np.testing.assert_allclose(
        node_weights(coefficients[order], signatures[order]), node_weights(coefficients, signatures)[order], atol=1e-12
    )


def test_a_negative_coefficient_weighs_nothing():
    weights = node_weights(torch.tensor([1.0, -5.0, 3.0]), torch.ones(3, 2))
    np.testing.assert_allclose(weights, [[0.25, 0.25], [0, 0], [0.75, 0.75]], atol=1e-7)


def test_a_dead_node_and_a_query_nobody_answers_fall_back_to_uniform():
    weights = node_weights(torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(weights, [[0.5, 1], [0.5, 0]], atol=1e-7)
    negative = torch.tensor([-1.0, -2.0]), torch.rand(2, 4)
    np.testing.assert_allclose(node_weights(*negative), np.full((2, 4), 1 / 2), atol=1e-7)
    np.testing.assert_allclose(node_weights(*negative, "joint"), np.full((2, 4), 1 / 8), atol=1e-7)


def test_equal_magnitudes_weigh_like_the_coefficients():
    weights = two_stage(raw_weights(torch.tensor([3.0, 1.0]), torch.full((2, 5), 1e-30)))
    np.testing.assert_allclose(weights, [[0.75] * 5, [0.25] * 5], atol=1e-6)


def test_leading_axes_are_batched():
    coefficients, signatures = torch.randn(2, 3, 4), torch.rand(2, 3, 4, 6)
    for batched in (node_weights(coefficients, signatures), joint(raw_weights(coefficients, signatures))):
        assert batched.shape == signatures.shape
    whole, both = node_weights(coefficients, signatures), node_weights(coefficients, signatures, "joint")
    entropies = entropy_bits(whole)
    assert entropies.shape == (2, 3, 6)
    for place in np.ndindex(2, 3):
        np.testing.assert_array_equal(whole[place], node_weights(coefficients[place], signatures[place]))
        np.testing.assert_allclose(both[place], node_weights(coefficients[place], signatures[place], "joint"), rtol=1e-6)
        np.testing.assert_array_equal(entropies[place], entropy_bits(whole[place]))


def test_half_precision_is_widened():
    weights = node_weights(torch.tensor([1.0, 1.0, 1.0], dtype=torch.bfloat16), torch.rand(3, 40).to(torch.bfloat16))
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.sum(dim=0), 1, atol=1e-6)


def test_entropy_of_known_mixtures_in_bits():
    weights = torch.tensor([[1.0, 0.5, 0.25, 0.5], [0.0, 0.5, 0.25, 0.25], [0.0, 0.0, 0.25, 0.125], [0.0, 0.0, 0.25, 0.125]])
    np.testing.assert_allclose(entropy_bits(weights), [0, 1, 2, 1.75], atol=1e-6)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.data())
def test_top_k_takes_the_largest_sizes_and_the_earlier_of_equals(values, data):
    k = data.draw(st.integers(1, len(values)))
    got = top_k(torch.tensor(values, dtype=torch.float32), k).tolist()
    assert got == sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k]


def test_ties_go_to_the_earlier_however_many_domains_there_are():
    assert top_k(torch.ones(5000), 3).tolist() == [0, 1, 2]
    assert top_k(torch.arange(5000) % 2 * 1.0, 3).tolist() == [1, 3, 5]


def test_top_k_is_batched_and_refuses_more_than_there_are():
    assert top_k(torch.tensor([[0.1, -3.0, 2.0], [5.0, 5.0, -6.0]]), 2).tolist() == [[1, 2], [2, 0]]
    for k in (0, 4):
        with pytest.raises(SettingsError, match=f"met:  {k}\n  mend: 1 <= top_k <= 3"):
            top_k(torch.ones(3), k)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(SettingsError, match="two_stage or joint"):
        node_weights(torch.ones(2), torch.ones(2, 3), "softmax")  # type: ignore[arg-type]


def test_signed_ranking_puts_negative_coefficients_last():
    coefficients = torch.tensor([0.2, -0.9, 0.1, 0.5])
    assert top_k(coefficients, 3).tolist() == [1, 3, 0]
    assert top_k(coefficients, 3, signed=True).tolist() == [3, 0, 2]
