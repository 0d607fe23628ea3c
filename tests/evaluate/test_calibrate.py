"""Calibration: what it fits, what it remembers, and that nothing it saw is ever scored as a test."""

from __future__ import annotations

import pytest
import torch

from asterism.constellation.calibration import Calibration
from asterism.constellation.index import Constellation
from asterism.core.corpus import Corpus, Probe
from asterism.core.errors import DataError, UnknownName
from asterism.evaluate.calibrate import GRIDS, MARGIN, calibrate, fitted, mean_loss
from asterism.evaluate.probes import draw, draw_general, validation_probes
from asterism.evaluate.run import evaluate
from asterism.evaluate.settings import EvaluationSettings
from tests.tiny import DOMAINS, tiny_cross, tiny_library, tiny_probes, tiny_singles

SETTINGS = EvaluationSettings(max_length=64, ensembles=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def probes():
    return [*tiny_singles()[:4], *tiny_cross()[:3]]


@pytest.fixture(scope="module")
def calibrated(library, probes):
    return calibrate(library, Constellation.build(library, tiny_probes()), probes, SETTINGS)


def test_a_number_is_taken_where_it_is_better_by_the_margin():
    seen = []

    def loss(tried: Calibration) -> float:
        seen.append(tried)
        return (tried.scale - 1.15) ** 2 + (0 if tried.temperature == 0.2 else MARGIN * (0.5 if tried.temperature == 0.3 else -0.5))

    best, least = fitted(Calibration(), {"scale": (1.0, 1.15, 1.3), "temperature": (0.1, 0.2, 0.3)}, loss, lambda n: None)
    assert (best.scale, best.temperature) == (1.15, 0.2)  # 0.1 is better, but by less than the margin
    assert least == pytest.approx(0)
    assert len(seen) == 1 + 2 + 2
    assert all(tried.scale == 1.15 for tried in seen[3:])


def test_both_tasks_and_both_protocols_count_alike():
    given = [Probe("a", "x", ("legal",)), Probe("b", "x", ("legal", "code")), Probe("c", "x", ("legal", "code"))]
    losses = {"whole": torch.tensor([1.0, 2.0, 4.0]), "continuation": torch.tensor([5.0, 6.0, 6.0])}
    assert mean_loss(losses, given) == pytest.approx((1 + 3 + 5 + 6) / 4)
    assert mean_loss({"whole": torch.tensor([1.0])}, given[:1]) == 1
    general = Probe("d", "x", ("general",))
    assert mean_loss({"whole": torch.tensor([1.0, 2.0, 4.0, 8.0])}, [*given, general]) == pytest.approx((1 + 3 + 8) / 3)


def test_the_fit_is_at_least_as_good_as_the_defaults_and_names_its_rivals(library, probes, calibrated):
    found = calibrated.calibration
    assert found.fitted
    assert set(found.specialists) == set(DOMAINS)
    assert {"default", "fast", "generalist", "routed_coefficient", "best_single", "uniform", "task_arithmetic@0.3"} <= set(found.losses)
    as_fitted = evaluated(library, calibrated, tiny_singles()[4:6])
    assert "calibrated" in as_fitted["candidates"]["default"]
    again = calibrate(library, calibrated.with_calibration(Calibration(scale=0.5)), probes, SETTINGS)
    assert again.calibration == found  # it starts from the defaults, whatever was there


def evaluated(library, constellation, probes):
    import tempfile

    with tempfile.TemporaryDirectory() as out:
        return evaluate(library, constellation, probes, SETTINGS, out=out)


def test_a_probe_that_was_calibrated_on_is_no_test(library, probes, calibrated, tmp_path):
    with pytest.raises(DataError, match=r"calibrated on.*\n.*1 of 2"):
        evaluate(library, calibrated, [probes[0], tiny_singles()[5]], SETTINGS, out=tmp_path)
    renamed = Probe("another-name", probes[0].text, probes[0].domains)
    with pytest.raises(DataError, match="calibrated on"):
        evaluate(library, calibrated, [renamed], SETTINGS, out=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_probe_of_another_domain_is_refused(library, calibrated):
    with pytest.raises(UnknownName, match="cooking"):
        calibrate(library, calibrated, [Probe("a", "how to boil an egg in water", ("cooking",))], SETTINGS)
    with pytest.raises(DataError, match="needs validation probes"):
        calibrate(library, calibrated, [], SETTINGS)


def test_validation_probes_are_what_the_draw_leaves():
    corpus = Corpus(heldout={d: [Probe(f"{d}-{i}", f"{d} text {i}", (d,)) for i in range(7)] for d in DOMAINS})
    settings = EvaluationSettings(single_per_domain=4, seed=5)
    left = validation_probes(corpus, DOMAINS, settings, per_group=2)
    assert len(left) == 8
    assert not {probe.text for probe in left} & {probe.text for probe in draw(corpus, DOMAINS, settings)}
    corpus.heldout["general"] = [Probe(f"g-{i}", f"general text {i}", ("general",)) for i in range(20)]
    with_general = validation_probes(corpus, DOMAINS, settings, per_group=2)
    assert with_general[:8] == left
    assert len(with_general) == 8 + 8
    assert not {probe.text for probe in with_general} & {probe.text for probe in draw_general(corpus, settings)}
    assert len(draw_general(corpus, settings)) == 4
    with pytest.raises(DataError, match="left to calibrate"):
        validation_probes(corpus, DOMAINS, settings.changed(single_per_domain=7))


def test_an_interrupted_fit_goes_on_where_it_stopped(library, probes, calibrated, tmp_path, monkeypatch):
    from asterism.evaluate import calibrate as module

    index, real, calls = calibrated.with_calibration(Calibration()), module.score_composed, []

    def counted(*given):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(module, "score_composed", counted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(library, index, probes, SETTINGS, state=tmp_path / "state")
    before = len(calls)
    assert calibrate(library, index, probes, SETTINGS, state=tmp_path / "state").calibration == calibrated.calibration
    assert not (tmp_path / "state").exists()
    assert len(calls) - before == 2 * TRIED - 6  # three candidates by two protocols were finished


TRIED = 2 + sum(len(values) - 1 for grid in GRIDS.values() for values in grid.values())
"""Both modes' starts, and every value that is not the one that stands."""
