"""Win rates and mean losses from raw rows."""

from __future__ import annotations

import pytest

from asterism.evaluate.tables import best_of, tables
from tests import oracles


def rows(seed: int, **losses: list[float]) -> list[dict]:
    where = {"scale": "s", "seed": seed, "protocol": "whole", "task": "cross", "group": "a-b", "tokens": 9}
    return [{**where, "probe": str(i), "candidate": name, "loss": loss} for name, values in losses.items() for i, loss in enumerate(values)]


def test_win_rate_counts_wins_and_half_ties():
    wins, _ = tables(rows(1, default=[1.0, 2.0, 3.0, 1.0], generalist=[2.0, 2.0, 1.0, 3.0]), "s")
    row = next(w for w in wins if w["candidate"] == "default" and w["group"] == "all")
    low, high = oracles.wilson(2.5, 4)
    assert (row["rate"], row["n"]) == (0.625, 4)
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
    assert (row["loss"], row["rival_loss"]) == (1.75, 2.0)


def test_the_rival_sees_the_complement():
    wins, _ = tables(rows(1, uniform=[1.0, 5.0, 3.0], generalist=[2.0, 2.0, 4.0]), "s")
    rates = {(w["candidate"], w["rival"]): w["rate"] for w in wins if w["group"] == "all"}
    assert rates["uniform", "generalist"] == pytest.approx(2 / 3)
    assert rates["generalist", "uniform"] == pytest.approx(1 / 3)


def test_over_seeds_each_probe_counts_once():
    wins, losses = tables(rows(1, default=[1.0, 2.0], generalist=[2.0, 1.0]) + rows(2, default=[1.0, 0.0], generalist=[2.0, 1.0]), "s")
    row = next(w for w in wins if (w["seed"], w["candidate"], w["group"]) == ("all", "default", "all"))
    assert (row["n"], row["rate"]) == (2, 0.75)
    mean = next(x for x in losses if (x["seed"], x["candidate"], x["group"]) == ("all", "default", "all"))
    assert (mean["n"], mean["loss"]) == (2, 1.0)
    assert {w["seed"] for w in wins} == {1, 2, "all"}


def test_best_of_takes_the_lowest_mean_not_the_best_a_probe():
    made = rows(1, **{"task_arithmetic@0.3": [1.0, 5.0], "task_arithmetic@1": [2.0, 2.0]})
    best = best_of(made, "task_arithmetic@", "task_arithmetic")
    assert [row["loss"] for row in best] == [2.0, 2.0]
    assert {row["candidate"] for row in best} == {"task_arithmetic"}


def test_probes_of_equal_name_in_different_groups_stay_apart():
    made = rows(1, default=[1.0], generalist=[2.0]) + [{**r, "group": "c-d"} for r in rows(1, default=[3.0], generalist=[2.0])]
    row = next(w for w in tables(made, "s")[0] if w["candidate"] == "default" and w["group"] == "all")
    assert (row["n"], row["rate"]) == (2, 0.5)
