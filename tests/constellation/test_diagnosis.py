"""The diagnosis: its measurements, its advice at every threshold, and the cases where something cannot be measured."""

import json

import numpy as np
import pytest
import torch

from asterism.constellation.calibration import Calibration
from asterism.constellation.diagnosis import UNMEASURED, advise, diagnose, diagnosis_of, measured_advice
from asterism.constellation.index import Constellation
from asterism.constellation.separation import Retrieval
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError
from asterism.core.geometry import cosine_matrix, residual_norms
from asterism.core.statistics import wilson
from tests import oracles
from tests.constellation.test_separation import domains
from tests.tiny import tiny_library, tiny_probes


def figure(wins, n):
    return Retrieval(n, wilson(wins, n), wilson(n, n), {}, (), "each probe alone")


UNKNOWN = Retrieval(0, None, None, {}, (), "nothing", "every domain has a single probe")


@pytest.mark.parametrize(
    ("mean", "wins", "advice"),
    [
        (0.90, 79, "merge"),
        (0.90, 80, "compose"),
        (0.929, 50, "merge"),
        (0.93, 50, "compose"),
        (0.97, 50, "compose"),
        (0.971, 79, "add noise"),
        (0.971, 80, "compose"),
        (0.90, 30, "domains not separable"),
        (0.95, 30, "domains not separable"),
        (0.98, 30, "domains not separable"),
    ],
)
def test_advice_follows_collinearity_unless_retrieval_overrules_it(mean, wins, advice):
    given, reason = advise(mean, 4, figure(wins, 100), figure(wins, 100))
    assert given == advice
    assert f"{wins}.0% of 100 probes" in reason
    assert advice == "domains not separable" or f"{mean:.3f}" in reason


def test_the_better_of_the_two_figures_says_whether_domains_are_separable():
    assert advise(0.95, 4, figure(25, 100), figure(90, 100))[0] == "compose"
    assert advise(0.98, 4, figure(90, 100), figure(25, 100))[0] == "compose"


def test_without_a_figure_advice_rests_on_collinearity_and_says_so():
    for mean, advice in ((0.9, "merge"), (0.95, "compose"), (0.98, "add noise")):
        given, reason = advise(mean, 4, UNKNOWN, UNKNOWN)
        assert given == advice
        assert reason.endswith("(every domain has a single probe), so this rests on collinearity alone.")


def test_every_measurement_of_a_small_index():
    fingerprints = domains(shared=2.0)
    found = diagnosis_of(fingerprints, None, IndexSettings.paper())
    centroids = np.array([oracles.fingerprint(rows.numpy()) for rows in fingerprints.values()])
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    axes = oracles.gram_schmidt(centroids)
    np.testing.assert_allclose(found.collinearity, unit @ unit.T, atol=1e-12)
    assert found.mean == pytest.approx((unit @ unit.T)[np.triu_indices(4, 1)].mean())
    assert found.centred_mean == pytest.approx(found.mean)
    assert found.post == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found.residuals, [row @ axis for row, axis in zip(unit, axes, strict=True)], atol=1e-12)
    assert float(found.unique[-1]) == pytest.approx(float(found.residuals[-1]))
    assert (found.unique <= found.residuals + 1e-12).all()
    assert (found.domains, found.counts) == (("d0", "d1", "d2", "d3"), (5, 7, 4, 6))
    first, second, cosine = found.pairs()[0]
    assert cosine == pytest.approx(max((unit @ unit.T)[np.triu_indices(4, 1)]))
    assert cosine == pytest.approx(unit[int(first[1])] @ unit[int(second[1])])
    assert len(found.pairs()) == 6


def test_centring_shows_in_what_is_orthogonalised_but_not_in_the_raw_table():
    fingerprints = domains(shared=8.0)
    general = torch.stack([rows.mean(dim=0) for rows in fingerprints.values()]).mean(dim=0) + 0.1
    found = diagnosis_of(fingerprints, general, IndexSettings(centring="general"))
    assert found.mean > 0.9
    assert found.centred_mean < 0.2
    assert found.retrieval != found.order_free


def test_the_order_is_blamed_where_it_is_at_fault():
    fingerprints = domains(d=40, counts=(10,) * 4, shared=5.0, noise=0.3)
    found = diagnosis_of(fingerprints, None, IndexSettings.paper())
    assert found.retrieval.top1 == wilson(10, 40)
    assert found.order_free.top1 == wilson(40, 40)
    assert found.advice == "compose"
    assert "lowdin without centring or noise finds 100.0% of left-out probes against 25.0%" in found.notes[0]
    assert "the domain that comes first wins 100.0% of the probes" in found.notes[1]
    lowdin = diagnosis_of(fingerprints, None, IndexSettings(centring="none"))
    assert lowdin.retrieval is lowdin.order_free
    assert lowdin.notes == ()
    assert lowdin.order == found.order  # information about Gram-Schmidt, whatever the index uses


def test_probes_without_domains_are_not_separable():
    found = diagnosis_of(domains(counts=(8,) * 4, apart=0.0), None, IndexSettings())
    assert found.advice == "domains not separable"
    assert "no better than guessing (25.0%)" in found.reason


@pytest.mark.parametrize("method", ["lowdin", "gram_schmidt"])
def test_equal_domains_are_diagnosed_not_refused(method):
    fingerprints = {name: rows.float() for name, rows in domains().items()}
    fingerprints["d2"] = fingerprints["d0"].clone()
    found = diagnosis_of(fingerprints, None, IndexSettings(orthogonalisation=method, centring="none"))
    assert found.post is None
    assert found.order is None
    assert found.retrieval.top1 is None
    np.testing.assert_allclose(found.unique[[0, 2]], 0)
    assert found.notes[0].startswith(
        "Gram-Schmidt has no basis here, so no order could be tried: A direction is a combination of the others (domain 'd2')"
    )
    if method == "gram_schmidt":
        assert "(domain 'd2')" in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


def test_centring_on_the_mean_leaves_nothing_for_gram_schmidt_yet_is_diagnosed():
    found = diagnosis_of(domains(shared=6.0), None, IndexSettings(centring="mean"))
    assert found.order == diagnosis_of(domains(shared=6.0), None, IndexSettings(centring="none")).order
    assert found.residuals[-1] > 0.01
    assert found.post == pytest.approx(-1 / 3, abs=0.05)
    assert found.retrieval.top1 is not None
    refused = diagnosis_of(domains(shared=6.0), None, IndexSettings.paper(centring="mean"))
    assert refused.post is None
    assert refused.retrieval.reason is not None
    assert refused.retrieval.reason.startswith("Gram-Schmidt cannot follow centring on the mean")
    assert refused.order_free.top1 is not None


def test_single_probe_domains_are_noted():
    found = diagnosis_of(domains(counts=(1, 5, 1, 5), noise=0.1), None, IndexSettings())
    assert "Not in the retrieval figure, for want of a second probe: d0, d2." in found.notes
    alone = diagnosis_of(domains(counts=(1, 1, 1, 1)), None, IndexSettings())
    assert alone.retrieval.top1 is None
    assert "every domain has a single probe" in alone.reason


def test_the_dictionary_is_json_and_complete():
    found = diagnosis_of(domains(2, counts=(3, 3)), None, IndexSettings())
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["domains"] == ["d0", "d1"]
    assert told["collinearity"]["pairs"][0][1] == pytest.approx(found.mean)
    assert told["retrieval"]["top1"] == found.retrieval.top1[0]
    assert told["retrieval"]["by_domain"]["d1"]["top1_high"] == found.retrieval.by_domain["d1"][2]
    assert told["order"]["orders"] == 2
    assert told["settings"]["orthogonalisation"] == "lowdin"
    assert set(told) == {
        "domains",
        "counts",
        "settings",
        "collinearity",
        "residuals",
        "order",
        "retrieval",
        "order_free",
        "advice",
        "reason",
        "notes",
        "geometry",
    }


def test_a_constellation_is_diagnosed_from_what_it_stores(tmp_path, monkeypatch):
    library = tiny_library(tmp_path)
    built = Constellation.build(library, tiny_probes())
    monkeypatch.setattr(type(library), "model", None)  # no model is run
    found = diagnose(built)
    assert found.domains == built.domains
    assert found.counts == built.counts
    np.testing.assert_allclose(found.collinearity, cosine_matrix(built.centroids), atol=1e-6)
    np.testing.assert_allclose(found.residuals, residual_norms(built.centroids), atol=1e-5)
    assert found.settings == built.settings
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_cannot_be_diagnosed_is_refused_by_name():
    with pytest.raises(DataError, match=r"met:  1 domain\(s\)"):
        diagnosis_of(domains(1, counts=(3,)), None, IndexSettings())
    with pytest.raises(DataError, match=r"no probes\.\n  met:  'd1'"):
        diagnosis_of({**domains(), "d1": torch.zeros(0, 12)}, None, IndexSettings())
    broken = domains()
    broken["d3"][0, 0] = float("nan")
    with pytest.raises(DataError, match=r"NaN or infinity\.\n  met:  domain 'd3'"):
        diagnosis_of(broken, None, IndexSettings())


# ---- advice from what calibration measured

LOSSES = {"generalist": 5.0, "uniform": 4.9, "task_arithmetic@0.5": 4.8, "routed_activation": 4.6, "best_single": 4.4, "default": 4.5}


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({}, "compose"),  # the oracle best_single is no way to answer
        ({"routed_activation": 4.504}, "route"),  # as good, and cheaper
        ({"task_arithmetic@0.5": 4.49}, "merge"),
        ({"task_arithmetic@0.5": 4.506}, "compose"),
        ({"generalist": 4.5}, "generalist"),
    ],
)
def test_measured_advice_is_the_cheapest_way_near_the_best(changed, advice):
    found, reason = measured_advice({**LOSSES, **changed}, 60)
    assert found == advice
    assert "60 validation probes" in reason
    assert ("cheapest within" in reason) == (advice == "route")


def test_a_calibrated_index_is_advised_by_measurement_and_told_what_geometry_says(tmp_path):
    built = Constellation.build(tiny_library(tmp_path), tiny_probes())
    plain = diagnose(built)
    assert plain.notes[-1] == UNMEASURED
    routed = {**LOSSES, "routed_activation": 4.0}
    found = diagnose(built.with_calibration(Calibration(probes=("x",), losses=routed)))
    assert (found.advice, found.geometry) == ("route", plain.advice)
    assert found.notes[-1].startswith(f"Geometry alone would say: {plain.advice}")
