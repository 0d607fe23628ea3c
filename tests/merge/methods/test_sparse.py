"""Sparse sums as methods: which entries stay, who is elected, what divides; against NumPy, and trap by trap."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.draws import stream_key, uniform
from asterism.core.errors import MismatchError, SettingsError
from asterism.merge.methods import METHODS
from asterism.merge.methods.families import Sparse
from tests.merge.methods import oracles

ELECTING = {"ties", "dare_ties", "breadcrumbs_ties", "della"}
USUAL = {  # normalize, rescale: mergekit's defaults
    "ties": (True, False),
    "dare_linear": (False, True),
    "dare_ties": (False, True),
    "breadcrumbs": (False, False),
    "breadcrumbs_ties": (False, False),
    "della": (True, True),
    "della_linear": (False, True),
}


def keys(count):
    return tuple(stream_key(0, "a tensor", str(i)) for i in range(count))


def merge(name, deltas, **parameters):
    method = METHODS[name]
    given = {"keys": keys(len(deltas))} if isinstance(method, Sparse) and method.draws else {}
    return method.on_stack(torch.as_tensor(deltas), **given, **parameters)


def oracle(name, deltas, weight, density, *, gamma=0.01, epsilon=0.15, normalize=None, rescale=None, lambda_=1.0):
    kept = []
    for delta, d, key in zip(deltas, density, keys(len(deltas)), strict=True):
        drawn = uniform(key, np.size(delta)).numpy()
        if name == "ties":
            kept.append(oracles.magnitude(delta, d))
        elif name.startswith("breadcrumbs"):
            kept.append(oracles.outliers(delta, d, gamma))
        elif name.startswith("dare"):
            kept.append(oracles.random(delta, d, drawn))
        else:
            kept.append(oracles.ranked(delta, d, epsilon, drawn))
    normalize, rescale = (usual if told is None else told for told, usual in zip((normalize, rescale), USUAL[name], strict=True))
    return oracles.sparse_sum(deltas, kept, weight, elect=name in ELECTING, normalize=normalize, rescale=rescale, lambda_=lambda_)


@pytest.mark.parametrize("name", USUAL)
@given(data=st.data())
def test_against_the_oracle(name, data):
    k, rows, columns = (data.draw(st.integers(1, most)) for most in (4, 4, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    deltas = rng.normal(size=(k, rows, columns)).round(data.draw(st.sampled_from([1, 6])))  # many equal magnitudes, or few
    weight = data.draw(st.lists(st.floats(-1, 2).filter(lambda w: abs(w) > 0.01), min_size=k, max_size=k))
    density = data.draw(st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.51, 0.8, 1.0]), min_size=k, max_size=k))
    how = {"normalize": data.draw(st.booleans()), "rescale": data.draw(st.booleans())}
    how |= {"gamma": data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))} if "gamma" in METHODS[name].parameters else {}
    how |= {"epsilon": data.draw(st.sampled_from([0.0, 0.1, 0.19]))} if "epsilon" in METHODS[name].parameters else {}
    got = merge(name, deltas, weight=weight, density=density, **how, **{"lambda": 1.5})
    want = oracle(name, deltas, weight, density, **how, lambda_=1.5)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", USUAL)
def test_the_defaults_are_mergekits(name):
    deltas = np.random.default_rng(0).normal(size=(3, 6, 7))
    np.testing.assert_allclose(merge(name, deltas, weight=0.4, density=0.4), oracle(name, deltas, [0.4] * 3, [0.4] * 3), atol=1e-9)


def test_the_number_kept_is_rounded_down_but_not_to_nothing():
    for n, density, count in [
        (10, 0.5, 5),
        (5, 0.5, 2),
        (10, 0.59, 5),
        (7, 1 / 7, 1),
        (9, 0.01, 1),
        (9, 0.0, 0),
        (9, 1.0, 9),
        (100, 0.29, 28),
    ]:
        got = merge("ties", torch.randn(1, n), weight=1, density=density)
        assert int(got.count_nonzero()) == count, (n, density)


def test_of_equal_magnitudes_at_the_threshold_the_first_are_kept():
    delta = torch.tensor([[1.0, -2.0, 2.0, 3.0, -2.0, 2.0, 1.0, 1.0]])
    assert merge("ties", delta, weight=1, density=0.5).tolist() == [0, -2, 2, 3, -2, 0, 0, 0]
    assert merge("ties", torch.full((1, 6), -1.0), weight=1, density=0.5).tolist() == [-1, -1, -1, 0, 0, 0]
    assert merge("breadcrumbs", delta, weight=1, density=0.25, gamma=0.25).tolist() == [0, 0, 2, 0, -2, 0, 0, 0]
    bf16 = torch.randn(1, 5000).bfloat16()
    assert len(bf16.abs().unique()) < 2000  # so magnitudes coincide
    assert int(merge("ties", bf16, weight=1, density=0.3).count_nonzero()) == 1500


@pytest.mark.parametrize("name", USUAL)
def test_density_one_keeps_everything_and_rescales_nothing(name):
    deltas = torch.randn(2, 5, 6)
    elected = (deltas.sum(0) >= 0) == (deltas > 0)
    want = (deltas * elected).sum(0) if name in ELECTING else deltas.sum(0)
    got = merge(name, deltas, weight=1, density=1.0, normalize=False, rescale=True)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ELECTING))
def test_a_sum_of_signs_that_is_zero_elects_plus_and_a_zero_entry_takes_no_part(name):
    deltas = torch.tensor([[1.0, -1.0, 0.0, -4.0, 0.0], [-1.0, 1.0, 0.0, 0.0, 2.0]])
    assert merge(name, deltas, weight=1, density=1.0, normalize=True).tolist() == [1, 1, 0, -4, 2]


def test_a_negative_weight_turns_a_delta_round_before_the_election():
    deltas = torch.tensor([[1.0, 2.0, -3.0], [2.0, -1.0, -1.0]])
    # weighted: [1, 2, -3], [-2, 1, 1] -> signs -, +, -; divisors -1 -> -2 / -1, (1 - 1 = 0 -> 1), 1
    assert merge("ties", deltas, weight=[1, -1], density=1.0).tolist() == [2, 3, -3]


@pytest.mark.parametrize("name", USUAL)
def test_one_model_and_equal_models(name):
    delta = torch.randn(4, 8)
    want = merge(name, delta[None], weight=1, density=0.5)
    assert 0 < int(want.count_nonzero()) < 32
    if not METHODS[name].draws:
        np.testing.assert_allclose(merge(name, torch.stack([delta] * 3), weight=[0.2, 0.3, 0.5], density=0.5), want, atol=1e-6)
    np.testing.assert_allclose(merge(name, torch.stack([delta] * 3), weight=[0.2, 0.3, 0.5], density=1.0), delta, atol=1e-6)
    assert torch.equal(merge(name, torch.zeros(2, 4, 8), weight=1, density=0.5), torch.zeros(4, 8))


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_keeps_about_its_share_and_the_size_of_the_delta(name):
    delta = torch.rand(1, 20_000) + 0.5
    got = merge(name, delta, weight=1, density=0.3)
    assert float((got != 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(got.sum()) == pytest.approx(float(delta.sum()), rel=1e-5)
    assert float(got.max() / delta.max()) == pytest.approx(1 / 0.3, rel=0.05)  # the paper's factor


def test_dare_is_right_in_expectation():
    delta = torch.tensor([[1.0, -2.0, 0.5, 3.0, 1.5, -0.5] * 20])
    runs = [METHODS["dare_linear"].on_stack(delta, weight=1, density=0.5, keys=[stream_key(seed, "x")]) for seed in range(600)]
    np.testing.assert_allclose(torch.stack(runs).mean(0), delta[0], atol=0.6)
    assert (torch.stack(runs).std(0) > 0.3).all()


def test_draws_depend_on_the_key_alone():
    deltas = torch.randn(2, 10, 10)
    one, two = stream_key(0, "t", "a"), stream_key(0, "t", "b")
    both = METHODS["dare_linear"].on_stack(deltas, weight=1, density=0.5, keys=[one, two], rescale=False)
    turned = METHODS["dare_linear"].on_stack(deltas.flip(0), weight=1, density=0.5, keys=[two, one], rescale=False)
    assert torch.equal(both, turned)
    alone = METHODS["dare_linear"].on_stack(deltas[:1], weight=1, density=0.5, keys=[one], rescale=False)
    other = METHODS["dare_linear"].on_stack(deltas[1:], weight=1, density=0.5, keys=[two], rescale=False)
    np.testing.assert_allclose(both, alone + other, atol=1e-6)


def test_della_prefers_the_large_and_has_a_rule_for_rows_of_one():
    delta = torch.arange(1, 1001.0).repeat(100, 1)[None]
    mark = (merge("della", delta, weight=1, density=0.5, epsilon=0.4) != 0).float()
    assert float(mark[:, :100].mean()) == pytest.approx(0.14, abs=0.02)
    assert float(mark[:, -100:].mean()) == pytest.approx(0.86, abs=0.02)
    column = merge("della", torch.ones(1, 5000, 1), weight=1, density=0.5, epsilon=0.4)
    assert column.isfinite().all()
    assert float((column != 0).float().mean()) == pytest.approx(0.5, abs=0.03)


def test_dellas_chances_must_be_chances():
    with pytest.raises(SettingsError, match=r"between 0 and 1\.\n  met:  density 0.1, epsilon 0.15\n  mend: epsilon below 0.1 with"):
        merge("della", torch.randn(1, 4), weight=1, density=0.1)
    with pytest.raises(SettingsError, match=r"density 0.9, epsilon 0.15"):
        merge("della_linear", torch.randn(2, 4), weight=1, density=[0.5, 0.9])
    with pytest.raises(SettingsError, match=r"density 0.5, epsilon 0.5\n"):
        merge("della", torch.randn(1, 4), weight=1, density=0.5, epsilon=0.5)
    merge("della", torch.randn(2, 4), weight=1, density=[0.0, 1.0])  # nothing is drawn there


def test_methods_that_draw_take_a_key_a_model():
    for name in USUAL:
        if METHODS[name].draws:
            with pytest.raises(MismatchError, match=rf"{name} draws what it keeps.*\n  met:  1 keys, 2 models"):
                METHODS[name].on_stack(torch.randn(2, 4), weight=1, density=0.5, keys=[1])
    assert {name for name in USUAL if METHODS[name].draws} == {"dare_linear", "dare_ties", "della", "della_linear"}
