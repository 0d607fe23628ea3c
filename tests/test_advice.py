"""Advice held against what every way to answer lost."""

from __future__ import annotations

import pytest

from experiments.constellation.advice import advice_rows, summary, way_losses


def losses(scale, seed, **means):
    cells = [("whole", "cross"), ("continuation", "single")]
    row = {"scale": scale, "seed": seed, "group": "all"}
    found = [
        {**row, "protocol": p, "task": t, "candidate": name, "loss": loss + d}
        for name, loss in means.items()
        for d, (p, t) in enumerate(cells)
    ]
    return [*found, {**found[0], "group": "legal", "loss": 99.0}]


def test_a_way_is_the_mean_over_cells_of_the_better_candidate_that_follows_it():
    found = way_losses(
        losses("a", 1, default=4.0, task_arithmetic=4.2, uniform=4.1, routed_coefficient=4.3, routed_activation=4.4, generalist=5.0)
    )
    assert found == pytest.approx({"compose": 4.5, "merge": 4.6, "route": 4.8, "generalist": 5.5})


def test_right_is_the_best_or_within_a_hundredth_of_a_nat():
    rows = [
        *losses("a", 42, default=4.0, task_arithmetic=4.2, routed_activation=4.005, generalist=5.0),
        *losses("b", 42, default=4.0, task_arithmetic=3.9, routed_activation=4.005, generalist=5.0),
    ]
    told = [
        {"scale": "a", "seed": 42, "advice": "route", "geometry": "merge"},
        {"scale": "b", "seed": 42, "advice": "compose", "geometry": "domains not separable"},
        {"scale": "c", "seed": 42, "advice": "compose", "geometry": "merge"},
    ]
    first, second = advice_rows(rows, told)  # nothing is known of c
    assert first["best"] == "compose"
    assert first["right"] == {"measured": True, "geometry": False, "always compose": True, "always merge": False}
    assert second["best"] == "merge"
    assert second["right"] == {"measured": False, "geometry": True, "always compose": False, "always merge": True}
    rates = {row["adviser"]: (row["rate"], row["n"]) for row in summary([first, second])}
    assert rates == {"measured": (0.5, 2), "geometry": (0.5, 2), "always compose": (0.5, 2), "always merge": (0.5, 2)}
    assert summary([]) == []
