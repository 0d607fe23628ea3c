"""What the report says in words is what the numbers say."""

import numpy as np
import pytest

from asterism.core.errors import DataError
from asterism.report.findings import Cell, Findings, label, listed, plane, verdict
from tests.report.sample import DOMAINS, sample_results

CROSS = Cell("continuation", "cross")


def row(candidate, rival, rate, low, high, **more):
    where = {"scale": "s", "seed": 1, "protocol": "continuation", "task": "cross", "group": "all"}
    return {
        **where,
        "candidate": candidate,
        "rival": rival,
        "n": 150,
        "rate": rate,
        "low": low,
        "high": high,
        "loss": 3.0,
        "rival_loss": 3.1,
        **more,
    }


def results(table, losses=()):
    empty = dict(scale="s", seeds=[1], settings={}, origin={}, domains=list(DOMAINS), candidates={}, retrieval=[], correlation=[])
    return {**empty, "collinearity": {}, "mixtures": [], "probes": [], "example": {}, "table": table, "losses": list(losses)}


def test_the_lead_sorts_rivals_by_what_the_intervals_allow():
    table = [
        row("default", "generalist", 0.93, 0.88, 0.96),
        row("default", "task_arithmetic", 0.54, 0.46, 0.62),
        row("default", "best_single", 0.12, 0.08, 0.18),
        row("default", "uniform", 0.70, 0.62, 0.77),
    ]
    loss = {
        "seed": 1,
        "protocol": "continuation",
        "task": "cross",
        "group": "all",
        "candidate": "default",
        "n": 150,
        "loss": 3.0,
        "low": 2.9,
        "high": 3.1,
    }
    lead = Findings(results(table, [loss])).lead()[0].replace("\u00a0", " ")
    on = "On 150 texts that need two domains (cross-domain probes)"
    beats = "the generalist (on 93 % of the probes, 95 % interval 88–96) and the uniform average (70 %, 62–77)"
    level, loses = "task arithmetic at its best scale (54 %, 46–62)", "the best single specialist picked with hindsight (12 %, 8–18)"
    assert lead == f"{on}, the model composed for each text beats {beats}; it is level with {level}; it loses to {loses}."


@pytest.mark.parametrize(("low", "high", "want"), [(0.51, 0.6, "wins"), (0.5, 0.6, "even"), (0.4, 0.49, "loses"), (0.4, 0.5, "even")])
def test_a_verdict_needs_an_interval_clear_of_one_half(low, high, want):
    assert verdict({"low": low, "high": high}) == want


def test_the_losses_are_told_with_unit_and_interval():
    said = Findings(sample_results(seeds=(42,), single=4, pair=3)).lead()
    assert "nats a token (95\u00a0% interval" in said[1]
    assert said[2].startswith("With the paper's settings")


def test_several_seeds_are_shown_pooled_one_seed_as_it_is():
    assert Findings(sample_results(seeds=(42, 43), single=2, pair=2)).seed == "all"
    assert Findings(sample_results(seeds=(42,), single=4, pair=3)).seed == 42


def test_cross_domain_and_the_honest_protocol_come_first():
    cells = Findings(sample_results(seeds=(42,), single=4, pair=3)).cells
    assert cells[0] == CROSS
    assert len(cells) == 4


def test_candidates_are_sorted_by_loss():
    findings = Findings(sample_results(seeds=(42,), single=4, pair=3))
    losses = [findings.loss(CROSS, name)["loss"] for name in findings.candidates(CROSS)]
    assert len(losses) == 20
    assert losses == sorted(losses)


def test_a_missing_part_is_named():
    broken = sample_results(seeds=(42,), single=4, pair=3)
    del broken["retrieval"]
    with pytest.raises(DataError, match=r"Results lack a part.\n  met:  no retrieval\n  mend: evaluate again"):
        Findings(broken)


def test_labels():
    assert label("specialist:code") == "code specialist"
    assert label("task_arithmetic@0.3") == "task arithmetic 0.3"
    assert label("some_new_thing") == "some new thing"
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


def test_the_plane_is_the_one_in_which_the_groups_differ():
    """Three groups that differ in coordinates 1 and 3 only: the plane is spanned by those two."""
    centres = {"a": (0, 5, 0, 0), "b": (0, 0, 0, 5), "c": (0, 0, 0, 0)}
    noise = np.random.default_rng(0).standard_normal((60, 4)) * 0.01
    probes = [
        {"group": "abc"[i % 3], "task": "single", "coefficients": (np.array(centres["abc"[i % 3]]) + noise[i]).tolist()} for i in range(60)
    ]
    directions, shares = plane(probes)
    np.testing.assert_allclose(directions.T @ directions, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(np.abs(directions[[0, 2]]).max(), 0, atol=0.02)
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    again, _ = plane(probes)
    assert (again == directions).all()
