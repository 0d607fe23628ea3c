"""The register of HeteroFusion on made-up measurements: each claim can hold and fail; tables, pages and the report."""

from __future__ import annotations

import json

import pytest

from asterism.core.errors import DataError
from experiments.fuse import summaries
from experiments.fuse.claims import CLAIMS, judged
from experiments.fuse.judging import needed
from experiments.fuse.report import html, size
from experiments.fuse.view import View, mirrored
from experiments.verdicts import counted
from tests.fuse_results import TEXTS, results
from tests.registers import outcomes, script
from tests.report.test_html import Page


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
    ("part", "changed", "fails"),
    [
        ("single", {"quality": {"control": 0.95}}, {"sources-single", "sources-single-loss"}),
        ("single", {"quality": {"control_up": 0.95}}, {"sources-single-up"}),
        ("single", {"quality": {"fusellm": 0.95}}, {"outperforms-single"}),
        ("single", {"quality": {"gac": 0.98}}, {"outperforms-single"}),
        (
            "single",
            {"quality": {"fused": 0.1}},
            {"gains-single", "outperforms-single", "sources-single", "sources-single-loss", "sources-single-up"},
        ),
        ("single", {"growth": 30.0}, {"conditioned"}),
        ("multi", {"quality": {"fused:multi": 0.1}}, {"gains-multi", "outperforms-multi", "sources-multi"}),
        ("noisy", {"quality": {"fused:random": 0.5}}, {"robust"}),
        ("noisy", {"quality": {"ties": 0.95}}, {"outperforms-noisy"}),
        ("noisy", {"opened": {"noise": 0.9}}, {"silenced"}),
        ("unseen", {"quality": {"fused:unseen": 0.1}}, {"unseen", "unseen-control"}),
        ("anchors", {"quality": {"fused:another rank": 0.4}}, {"anchors-control"}),
        ("anchors", {"quality": {"fused:another task": 0.1}}, {"anchors", "anchors-control"}),
        ("sensitivity", {"quality": {"alpha 0.9": 0.4}}, {"steady"}),
        ("ablations", {"quality": {"random pairing": 0.95}}, {"alignment"}),
        ("ablations", {"quality": {"shuffled sources": 0.95}}, {"structure"}),
        ("ablations", {"quality": {"no gate": 0.95, "no regulariser": 0.95}}, {"gate", "regulariser"}),
        ("ablations", {"quality": {"A free": 0.95, "layers proportional": 0.95}}, {"basis", "layers"}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else None,
)
def test_a_claim_fails_where_the_measurements_speak_against_it(part, changed, fails):
    found = outcomes_of(results(parts=[part], seeds=(42, 43), **changed))
    assert {name for name, outcome in found.items() if outcome == "not held"} == fails


def test_what_was_not_measured_is_undecided():
    found = outcomes_of(results(parts=["single"], seeds=(42, 43)))
    assert found["gains-single"] == "held"
    assert {found[name] for name in ("gains-multi", "robust", "silenced", "unseen", "anchors", "alignment", "steady")} == {"undecided"}


def test_what_noise_hides_or_a_seed_denies_is_undecided():
    hidden = outcomes_of(results({"control": 0.78}, parts=["single"], seeds=(42, 43), noise=0.3))
    assert hidden["sources-single"] == "undecided"
    denied = outcomes_of(results({"control": 0.7}, parts=["single"], seeds=(42, 43, 44), jitter={43: -0.15}))
    assert denied["sources-single"] == "undecided"
    assert denied["gains-single"] == "held"


def test_one_seed_leaves_open_what_only_seeds_can_tell():
    assert outcomes_of(results(parts=["noisy"], seeds=(42,)))["silenced"] == "undecided"


def test_a_mirrored_gain_is_the_other_sides(paperlike):
    view = View(paperlike)
    row = view.gain("single", "single", "fused", "control")
    other = view.gain("single", "single", "control", "fused")
    assert row["gain"] == -other["gain"] > 0
    assert (row["low"], row["high"]) == (-other["high"], -other["low"])
    assert mirrored(mirrored(row)) == row


def test_tasks_without_marks_take_no_part_in_the_mean(paperlike):
    view = View(paperlike)
    assert view.tasks("multi", "multi") == ["all", "slots-medical", "slots-legal", "mit-movie", "slots-science", "nl2bash"]
    whole = view.row("multi", "multi", "fused")
    assert whole["n"] == 4 * TEXTS
    assert view.score("multi", "multi", "fused", "nl2bash") is None
    assert view.loss("multi", "multi", "fused", "nl2bash").n == TEXTS


def test_ensembles_are_compared_on_the_examples_that_they_answered():
    made = results(parts=["single"], seeds=(42,))
    view = View(made)
    assert view.row("single", "single", "gac")["n"] == view.gain("single", "single", "fused", "gac")["n"] == 3 * 20
    assert view.row("single", "single", "fused")["n"] == 3 * TEXTS


def test_a_control_that_does_as_well_is_said_plainly():
    made = results({"control": 0.79}, parts=["single"], seeds=(42, 43), noise=0.3)
    row = View(made).gain("single", "single", "fused", "control")
    told = " ".join(summaries.lines(View(made)))
    assert "The control without sources does as well with one source of another family" in told
    if row["gain"] > 0:
        assert f"{needed(row):,} held-out examples" in told
    else:
        assert "more held-out examples would not help" in told


def test_sources_that_matter_or_harm_are_said_too(paperlike):
    assert "The sources matter with one source" in " ".join(summaries.lines(View(paperlike)))
    harmed = results({"control": 0.95}, parts=["single"], seeds=(42, 43))
    told = " ".join(summaries.lines(View(harmed)))
    assert "cost more than they bring" in told
    assert f"it would need tasks of which far fewer examples can be replayed than the sources learnt from, or {summaries.KNOW_MORE}" in told


@pytest.mark.parametrize(
    ("scarce", "told"),
    [
        ({}, "it would need fewer examples to replay, a tenth or a third of these (below, one source), or experts"),
        ({"fused:a third": 0.6}, "it would need fewer examples to replay, a tenth of these (below, one source), or experts"),
        (
            {"shuffled sources": 0.8},
            "with a tenth or a third of the examples to replay they do not surely matter either (below, one source): it",
        ),
        (
            {"fused:a tenth": 0.6, "fused:a third": 0.6},
            "with a tenth or a third of the examples to replay they do not surely matter either",
        ),
    ],
)
def test_what_fewer_replay_examples_tell_of_what_would_be_needed(scarce, told):
    made = results({"control": 0.7, "fused:single": 0.5, **scarce}, parts=["single", "scarce"], seeds=(42, 43))
    said = summaries.lines(View(made))
    assert told in " ".join(said)
    assert [line.startswith("With a t") for line in said[-2:]] == [True, True]
    for rival, words in (("control", "beside the control that has no more"), ("shuffled sources", "beside the same source shuffled")):
        row = View(made).gain("scarce", "a tenth", "fused", rival)
        assert f"{100 * row['gain']:+.1f} points".replace("-", "−") in said[-2].split(words)[0].rsplit(", ", 1)[-1]
    titles = [table.title for table in summaries.tables(View(made))]
    assert {"Fewer replay examples: a tenth", "Fewer replay examples: a third"} <= set(titles)


def test_examples_needed_grow_with_the_square_of_the_interval():
    row = {"n": 100, "gain": 0.01, "low": -0.03, "high": 0.05, "saved": 0.1, "saved_low": 0.05, "saved_high": 0.2}
    assert needed(row) == 1600
    assert needed(row | {"gain": -0.01}) is None
    assert needed(row | {"low": 0.001}) is None


def test_the_report_shows_every_part(paperlike):
    text = html(paperlike)
    assert Page(text).tags.count("h1") == 1
    for title in summaries.TITLES.values():
        assert title in text
    assert text.count("<svg") > 20
    assert "Every claim" in text


def test_a_part_that_lacks_a_seed_says_so():
    made = results(parts=["single", "unseen"], lacking={44: ["unseen"]})
    view = View(made)
    assert (view.fewer("single"), view.fewer("unseen")) == ([], [42, 43])
    assert len(view.row("single", "single", "fused")["by_seed"]) == 3
    assert len(view.row("unseen", "unseen", "fused")["by_seed"]) == 2
    told = "A family nothing was chosen by (seeds 42, 43 alone)"
    titles = [table.title for table in summaries.tables(view)]
    assert told in titles
    assert "A single source" in titles
    assert told in html(made)
    assert size(view).endswith(f"3 seeds; {told}.")


def test_the_report_of_one_part_leaves_the_others_out():
    text = html(results(parts=["single"], seeds=(42,)))
    assert "<h2>Among noise</h2>" not in text
    assert "<h2>A single source</h2>" in text


def test_tables_hold_every_candidate(paperlike):
    made = {table.title: table for table in summaries.tables(View(paperlike))}
    single = made["A single source"]
    assert len(single.rows) == 14
    assert single.rows[0][0] == "fused"
    assert {row[0] for row in made["Its pieces"].rows} >= {"fused", "no gate", "A free"}
    assert {row[2] for row in made["How far the gates let each source in"].rows} == {"real", "noise"}


def test_results_survive_json_and_others_are_refused(paperlike):
    assert outcomes_of(json.loads(json.dumps(paperlike))) == outcomes_of(paperlike)
    with pytest.raises(DataError, match="no results of fusions"):
        View({"scores": []})


def test_the_pages_of_the_docs_get_a_part_each(paperlike):
    page = "\n".join(script("make_results").fusing(paperlike))
    assert page.startswith("## Fusing experts of different families")
    assert "### Its pieces" in page
    assert "| fused |" in page
    register = "\n".join(script("make_claims").third(paperlike))
    assert f"**{counted(judged(paperlike))}.**" in register
    assert register.count("| **held** |") == len(CLAIMS)
