"""Leave-one-out retrieval and order sensitivity against loops in NumPy."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asterism.constellation import separation
from asterism.constellation.separation import leave_one_out, order_sensitivity
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError
from asterism.core.statistics import wilson
from tests import oracles


def domains(n=4, d=12, counts=(5, 7, 4, 6), *, shared=3.0, apart=1.0, noise=1.0, seed=0):
    """{domain: [count, d]} float64 around centroids that share a direction."""
    rng = np.random.default_rng(seed)
    common = shared * rng.normal(size=d)
    own = apart * rng.normal(size=(n, d))
    return {
        f"d{k}": torch.from_numpy(common + own[k] + noise * rng.normal(size=(count, d))) for k, count in zip(range(n), counts, strict=True)
    }


def looked_up(probe, rows, method, general=None):
    """Domains by size of coefficient in an index of `rows` (list of [n, d] arrays), largest first."""
    offset = np.zeros(len(probe)) if general is None else general
    centroids = np.array([oracles.fingerprint(each) - offset for each in rows])
    basis = getattr(oracles, method)(centroids)
    return np.argsort(-np.abs(oracles.coefficients(probe - offset, basis)), kind="stable")


def plain_leave_one_out(fingerprints, method, general=None):
    """(top 1 hits, top 3 hits) by domain."""
    rows = [each.numpy() for each in fingerprints.values()]
    first, three = np.zeros(len(rows), int), np.zeros(len(rows), int)
    for k, own in enumerate(rows):
        for i, probe in enumerate(own):
            ranks = looked_up(probe, [np.delete(each, i, 0) if j == k else each for j, each in enumerate(rows)], method, general)
            first[k] += ranks[0] == k
            three[k] += k in ranks[:3]
    return first, three


@pytest.mark.parametrize("method", ["lowdin", "gram_schmidt"])
@pytest.mark.parametrize("centring", ["none", "general"])
@pytest.mark.parametrize("seed", range(3))
def test_every_probe_is_looked_up_in_an_index_without_it(method, centring, seed):
    fingerprints = domains(seed=seed)
    general = next(iter(domains(shared=2.5, seed=seed + 10).values())).mean(dim=0)
    found = leave_one_out(fingerprints, general, IndexSettings(orthogonalisation=method, centring=centring, ranking="absolute"))
    first, three = plain_leave_one_out(fingerprints, method, general.numpy() if centring == "general" else None)
    assert found.n == 22
    assert found.top1 == wilson(int(first.sum()), 22)
    assert found.top3 == wilson(int(three.sum()), 22)
    assert [found.by_domain[name] for name in fingerprints] == [
        wilson(int(w), len(rows)) for w, rows in zip(first, fingerprints.values(), strict=True)
    ]
    assert found.grouping == "each probe alone"


def test_groups_are_left_out_together_where_each_alone_would_take_long(monkeypatch):
    monkeypatch.setattr(separation, "ALONE_UP_TO", 0)
    monkeypatch.setattr(separation, "GROUPS", 3)
    fingerprints = domains(noise=1.5)
    rows = [each.numpy() for each in fingerprints.values()]
    hits = 0
    for group in range(3):
        rest = [np.array([row for i, row in enumerate(each) if i % 3 != group]) for each in rows]
        hits += sum(looked_up(probe, rest, "lowdin")[0] == k for k, each in enumerate(rows) for probe in each[group::3])
    found = leave_one_out(fingerprints, None, IndexSettings(centring="none", ranking="absolute"))
    assert (found.n, found.top1) == (22, wilson(int(hits), 22))
    assert found.grouping == "probes of all domains together, in 3 groups"


def test_probes_that_share_nothing_are_found_only_in_an_index_that_holds_them():
    fingerprints = domains(counts=(2, 2, 2, 2), d=200, shared=0, apart=0)
    rows = [each.numpy() for each in fingerprints.values()]
    assert all(looked_up(probe, rows, "lowdin")[0] == k for k, each in enumerate(rows) for probe in each)
    found = leave_one_out(fingerprints, None, IndexSettings(centring="none", ranking="absolute"))
    assert found.top1 is not None
    assert found.top1[0] < 0.6


@pytest.mark.parametrize("grouped", [False, True])
def test_a_domain_with_one_probe_is_named_and_stays_in_the_index(monkeypatch, grouped):
    if grouped:
        monkeypatch.setattr(separation, "ALONE_UP_TO", 0)
    fingerprints = domains(counts=(1, 4, 1, 3), noise=0.1)
    found = leave_one_out(fingerprints, None, IndexSettings(centring="none", ranking="absolute"))
    assert found.left_out == ("d0", "d2")
    assert found.n == 7
    assert list(found.by_domain) == ["d1", "d3"]
    assert found.top1 == wilson(7, 7)
    fingerprints["d1"][0] = fingerprints["d0"][0] * 1.01  # a probe that is rather d0's
    assert leave_one_out(fingerprints, None, IndexSettings(centring="none", ranking="absolute")).top1 == wilson(6, 7)


def test_single_probes_alone_give_no_figure_but_the_reason():
    found = leave_one_out(domains(counts=(1, 1, 1, 1)), None, IndexSettings(centring="none", ranking="absolute"))
    assert (found.top1, found.top3, found.n) == (None, None, 0)
    assert found.left_out == ("d0", "d1", "d2", "d3")
    assert found.reason == "every domain has a single probe: give each at least two"
    assert found.to_dict()["top1_low"] is None


def test_an_index_that_falls_apart_without_a_probe_gives_no_figure_but_the_reason():
    fingerprints = domains(2, counts=(2, 2))
    fingerprints["d1"][0] = fingerprints["d0"].mean(dim=0)  # without d1's other probe, d1 is d0
    found = leave_one_out(fingerprints, None, IndexSettings(orthogonalisation="gram_schmidt", centring="none"))
    assert found.top1 is None
    assert found.reason == "with some probes left out there is no index: A direction is a combination of the others (domain 'd1')"


@settings(max_examples=8)
@given(st.permutations(range(4)), st.floats(0.01, 100))
def test_order_free_retrieval_ignores_the_order_of_domains_and_the_length_of_fingerprints(order, length):
    fingerprints = domains(seed=3, noise=1.5)
    found = leave_one_out(fingerprints, None, IndexSettings(centring="none", ranking="absolute"))
    moved = leave_one_out(
        {f"d{k}": fingerprints[f"d{k}"] * length for k in order}, None, IndexSettings(centring="none", ranking="absolute")
    )
    assert moved.top1 == found.top1
    assert dict(moved.by_domain) == dict(found.by_domain)


@pytest.mark.parametrize("seed", range(3))
def test_order_sensitivity_over_all_orders_is_the_plain_loop(seed):
    fingerprints = domains(3, 9, (3, 4, 5), shared=1.0, seed=seed)
    rows = [each.numpy() for each in fingerprints.values()]
    probes, owners = np.concatenate(rows), np.repeat([0, 1, 2], [3, 4, 5])
    table = []
    for order in permutations(range(3)):
        basis = oracles.gram_schmidt(np.array([oracles.fingerprint(rows[k]) for k in order]))
        table.append([[oracles.coefficients(probe, basis)[order.index(k)] for k in range(3)] for probe in probes])
    table = np.array(table)  # [6, 12, 3]
    winners = np.abs(table).argmax(axis=2)
    changed = (winners != winners[0]).mean(axis=1)
    firsts = [(winner == order[0]).mean() for winner, order in zip(winners, permutations(range(3)), strict=True)]
    accuracy = (winners == owners).mean(axis=1)
    found = order_sensitivity(fingerprints, None, IndexSettings(centring="none", ranking="absolute"))
    assert (found.orders, found.exhaustive, found.probes) == (6, True, 12)
    assert found.changed == pytest.approx(changed[1:].mean())
    assert found.changed_most == pytest.approx(changed.max())
    assert found.unsteady == pytest.approx((winners != winners[0]).any(axis=0).mean())
    assert found.first_wins == pytest.approx(np.mean(firsts))
    assert found.spread == pytest.approx(table.std(axis=0).mean() / np.linalg.norm(probes, axis=1).mean())
    assert found.accuracy == pytest.approx((accuracy.min(), accuracy.max()))
    assert found.unsteady > 0  # the case tells something


def test_where_domains_share_a_direction_the_first_wins():
    found = order_sensitivity(domains(shared=10.0, apart=1.0, noise=0.5), None, IndexSettings(centring="none", ranking="absolute"))
    assert found.first_wins > 0.95
    assert found.accuracy == pytest.approx((0.25, 0.25), abs=0.1)


def test_orthogonal_domains_have_no_order():
    fingerprints = {f"d{k}": torch.eye(5)[k].expand(3, 5) for k in range(4)}
    found = order_sensitivity(fingerprints, None, IndexSettings(centring="none", ranking="absolute"))
    assert (found.changed, found.unsteady, found.spread, found.accuracy) == (0, 0, 0, (1, 1))
    assert found.first_wins == 0.25


def test_orders_are_sampled_above_six_domains_and_repeat_with_the_seed():
    fingerprints = domains(8, 20, (2,) * 8)
    found = order_sensitivity(fingerprints, None, IndexSettings(seed=1))
    assert (found.orders, found.exhaustive) == (201, False)
    assert found == order_sensitivity(fingerprints, None, IndexSettings(seed=1))
    assert found != order_sensitivity(fingerprints, None, IndexSettings(seed=2))


def test_centring_is_taken_off_before_the_orders_are_tried():
    fingerprints = domains(shared=10.0)
    general = torch.stack([rows.mean(dim=0) for rows in domains(shared=10.0, seed=0, noise=0).values()]).mean(dim=0)
    centred = order_sensitivity(fingerprints, general, IndexSettings(centring="general"))
    by_hand = order_sensitivity(
        {name: rows - general for name, rows in fingerprints.items()}, None, IndexSettings(centring="none", ranking="absolute")
    )
    assert vars(centred) == {key: pytest.approx(value) for key, value in vars(by_hand).items()}
    assert centred.first_wins < 0.9


def test_many_probes_are_sampled_evenly(monkeypatch):
    monkeypatch.setattr(separation, "SAMPLED_PROBES", 11)
    found = order_sensitivity(domains(noise=0.1, shared=0.0, apart=5.0), None, IndexSettings(centring="none", ranking="absolute"))
    assert found.probes == 11
    assert found.accuracy[1] == 1  # each sampled fingerprint goes with its own domain


def test_dependent_centroids_have_no_order():
    fingerprints = domains()
    fingerprints["d2"] = fingerprints["d0"].clone()
    with pytest.raises(DataError, match="row 2"):
        order_sensitivity(fingerprints, None, IndexSettings(centring="none", ranking="absolute"))
