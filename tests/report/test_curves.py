"""Curves stand where their numbers are, and say what they show."""

from __future__ import annotations

import pytest

from asterism.report.curves import loss_by_similarity, loss_curves, path_curves
from tests.report.svg import lines, texts

SHARES = (0.0, 0.5, 1.0)
HIGH = [(share, loss, loss - 0.1, loss + 0.1) for share, loss in zip(SHARES, (3.0, 3.4, 2.6), strict=True)]
LOW = [(share, loss, loss - 0.1, loss + 0.1) for share, loss in zip(SHARES, (3.0, 2.7, 2.6), strict=True)]


def test_a_path_shows_its_ends_its_line_and_its_barrier():
    svg = path_curves({"weights": HIGH, "MLP outputs": LOW}, ("code", "math"), 120, levels={"generalist": 3.3}, barrier=(0.5, 0.6))
    assert {"code", "math", "50 %", "share of math", "loss, nats a token (n = 120)", "generalist", "barrier 0.600"} <= set(texts(svg))
    assert {"weights", "MLP outputs"} <= set(texts(svg))
    curve = next(points for points in lines(svg, "--s1") if len(points) == 3)
    line = next(points for points in lines(svg, "dasharray") if len(points) == 2 and points[0] == pytest.approx(curve[0], abs=1e-3))
    assert line[1] == pytest.approx(curve[2], abs=1e-3)
    assert curve[1][0] - curve[0][0] == pytest.approx(curve[2][0] - curve[1][0])
    assert (curve[0][1] - curve[1][1]) / (curve[2][1] - curve[0][1]) == pytest.approx(1.0, rel=1e-3)  # up by 0.4, then down by 0.4 below


def test_a_path_without_a_barrier_has_no_arrow():
    assert "barrier" not in path_curves({"weights": LOW}, ("code", "math"), 9, barrier=(0.0, 0.0))


def test_losses_along_training_mark_a_step():
    svg = loss_curves({"math": HIGH, "merged": LOW}, 80, title="Loss along training", mark=(0.5, "critical point"))
    assert {"math", "merged", "critical point", "training step", "loss, nats a token (n = 80)"} <= set(texts(svg))
    assert 'aria-label="Loss along training"' in svg
    assert "critical" not in loss_curves({"math": HIGH}, 80, title="Loss along training")


def test_losses_against_similarity_tell_first_and_last_step_and_ring_the_least():
    points = [(200.0, 0.95, 3.0), (400.0, 0.9, 2.8), (600.0, 0.7, 2.9)]
    svg = loss_by_similarity({"on target data": points, "on general data": points[:1]}, 80, title="Merged loss over CKA")
    shown = texts(svg)
    assert {"200", "600", "CKA of the two experts (no unit)"} <= set(shown)
    assert "400" not in shown
    curve = next(path for path in lines(svg, "--s1") if len(path) == 3)
    assert curve[0][0] > curve[1][0] > curve[2][0]
    assert svg == loss_by_similarity({"on target data": points, "on general data": points[:1]}, 80, title="Merged loss over CKA")
