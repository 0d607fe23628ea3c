"""The register of compatible specialization on made-up measurements: each claim can hold and fail; tables, pages and the report."""

from __future__ import annotations

import json

import pytest

from asterism.core.errors import DataError
from experiments.route import advice, summaries
from experiments.route.claims import CLAIMS, judged
from experiments.route.report import html
from experiments.route.view import View
from experiments.verdicts import counted
from tests.registers import outcomes, script
from tests.report.test_html import Page
from tests.route_results import CKA, CURVE, LADDER, TUNED, results


def outcomes_of(made):
    return outcomes(judged(made))


@pytest.fixture(scope="module")
def paperlike():
    return results()


def test_every_claim_holds_where_the_paper_is_right(paperlike):
    assert {name: outcome for name, outcome in outcomes_of(paperlike).items() if outcome != "held"} == {}
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    assert counted(judged(paperlike)) == f"{len(CLAIMS)} claims: {len(CLAIMS)} held, 0 not held, 0 undecided"


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({"ladder": {"single": 2.5}}, {"ladder"}),
        ({"ladder": {"layer": 2.48}}, {"ladder", "routing-beats-interpolation", "data-mix"}),
        ({"ladder": {"with_generalist": 2.4}}, {"ladder", "base-helps"}),
        ({"ladder": {"depth2": 2.4}}, {"second-layer", "plateau"}),
        ({"ladder": {"depth3": 2.25}}, {"third-layer"}),
        ({"ladder": {"depth3": 2.0}}, {"plateau"}),
        ({"ladder": {"two_layer": 2.35}}, {"two-layer-router"}),
        ({"tuned": {"finetuned": 2.3}}, {"merging-below-tuning"}),
        ({"tuned": {"finetuned": 2.5}}, {"averaging-below-tuning", "merging-below-tuning"}),
        ({"tuned": {"mix_layer": 2.1}}, {"data-mix"}),
        ({"curve": {"lerp": (2.6, 2.55, 2.5, 2.4)}}, {"critical-point-weights"}),
        ({"curve": {"layer": (3.1, 3.2, 3.3, 3.4)}}, {"critical-point-routing"}),
        ({"curve": {"activation": (2.6, 2.55, 2.5, 2.4)}}, {"critical-point", "u-shape-target", "u-shape-general"}),
        ({"cka": {"target": (0.6, 0.7, 0.8, 0.9)}}, {"grow-apart-target", "u-shape-target"}),
        ({"cka": {"general": (0.6, 0.7, 0.8, 0.9)}}, {"grow-apart-general", "u-shape-general"}),
        ({"near": 1.1}, {"neighbours", "counterparts"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else None,
)
def test_a_claim_fails_where_the_measurements_speak_against_it(changed, fails):
    found = outcomes_of(results(**changed))
    assert fails <= {name for name, outcome in found.items() if outcome == "not held"}
    unasked = {name for name, outcome in found.items() if outcome == "not held"} - fails
    assert unasked <= {"plateau", "third-layer", "second-layer", "two-layer-router"}  # they stand on the same rungs


def test_what_noise_hides_is_undecided():
    found = outcomes_of(results(noise=0.15))
    assert found["third-layer"] == "undecided"
    assert found["second-layer"] == "held"


def test_one_seed_leaves_open_what_only_seeds_can_tell():
    found = outcomes_of(results(seeds=(42,)))
    assert found["neighbours"] == found["counterparts"] == found["grow-apart-target"] == "undecided"
    assert found["routing-beats-interpolation"] == "held"


def test_a_seed_that_disagrees_leaves_a_gain_open(paperlike):
    made = json.loads(json.dumps(paperlike))
    for row in made["gains"]:
        if (row["candidate"], row["rival"]) == ("with_generalist", "layer"):
            row["by_seed"][1] = -0.001
    assert outcomes_of(made)["base-helps"] == "undecided"


def test_nothing_is_claimed_of_parts_that_were_not_run(paperlike):
    bare = {key: [] if isinstance(value, list) and key not in ("targets", "seeds") else value for key, value in paperlike.items()}
    assert set(outcomes_of(bare).values()) == {"undecided"}
    assert summaries.tables(View(bare)) == []
    Page(html(bare))
    with pytest.raises(DataError, match="no results of routing"):
        View({"losses": []})


def test_the_report_is_one_whole_page(paperlike):
    page = Page(html(paperlike))
    words = " ".join(page.words)
    assert "None" not in words
    assert "nan" not in words.split()
    assert page.tags.count("svg") > 30
    assert "On GSM-hard the best of the ladder saves 0.26" in words.replace("\n", " ")
    assert html(paperlike) == html(json.loads(json.dumps(paperlike)))


def test_tables_name_the_ways_and_what_they_have_seen(paperlike):
    view = View(paperlike)
    everyone = summaries.everyone(view)[0]
    by_name = {row[0]: row for row in everyone.rows}
    assert by_name["composition"][-1] == by_name["logit ensemble"][-1] == "nothing"
    assert by_name["router a layer"][-1] == "trained on it"
    assert by_name["TIES"][-1] == "texts that choose"
    assert not {candidate for candidate in LADDER | TUNED if candidate in by_name} - {"generalist"}  # all have a name in words
    losses = [float(row[1]) for row in everyone.rows]
    assert losses == sorted(losses)
    assert summaries.trained(view).rows[0][-1] == "3 layers"
    steps = [row[0] for row in summaries.along(view).rows]
    assert steps == [0, *[100 * (place + 1) for place in range(len(CURVE["lerp"]))]]
    assert len(CKA["target"]) == len(steps) - 1


def test_the_advice_is_right_where_the_way_is_close_to_the_best():
    measured = {"neither": 2.52, "merge": 2.505, "compose": 2.6, "route": 2.5}
    assert [advice.is_right(way, measured) for way in advice.WAYS] == [False, True, False, True]


def test_advisers_are_counted_beside_those_who_always_say_the_same():
    measured = {"neither": 3.0, "merge": 2.7, "compose": 2.9, "route": 2.5}
    rows = [{"advice": "route", "measured": measured}, {"advice": "merge", "measured": measured}]
    told = {row["adviser"]: row for row in advice.advisers(rows)}
    assert [told[name]["right"] for name in ("compat", "always route", "always merge")] == [1, 2, 0]
    assert told["compat"]["missed"] == pytest.approx(0.1)
    assert told["always neither"]["missed"] == pytest.approx(0.5)
    assert advice.advisers([]) == []


def test_the_documents_tell_of_routing_once_it_is_measured(paperlike, tmp_path, monkeypatch):
    made = json.loads(json.dumps(paperlike))
    page = "\n".join(script("make_claims").second(made))
    assert f"**{counted(judged(made))}.**" in page
    assert page.count("| **held** |") == len(CLAIMS)
    writer = script("make_results")
    told = "\n".join(writer.routing(made))
    assert "| router a layer |" in told
    assert "None" not in told
    assert not writer.read(tmp_path / "results.json")
