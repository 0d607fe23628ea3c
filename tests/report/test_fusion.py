"""A fusion's page: well-formed, its sentences as the figures say, complete for what it is given."""

from __future__ import annotations

import pytest

from asterism.report.bars import share_bars
from asterism.report.fusion import fusion_html, write_fusion
from asterism.report.scores import score_tables, verdict
from tests.report.sample_fusion import fusion, results, told
from tests.report.svg import texts
from tests.report.test_html import Page

FEW = ("target", "fused", "control")
SIX = (*FEW, "fusellm", "gac", "ties")


@pytest.fixture(scope="module")
def found():
    return fusion(names=SIX)


@pytest.fixture(scope="module")
def page(found):
    return fusion_html(found)


def test_a_page_is_well_formed_and_needs_nothing_else(page):
    read = Page(page)
    assert not {"script", "link", "img", "b>", "i"} & set(read.tags)
    assert read.tags.count("svg") == 3 + 1 + 1 + 1  # scores of all and of each task, losses, gates, changes
    assert "prefers-color-scheme: dark" in page
    assert "List <b>all" not in page
    assert "(nothing)" in read.text


def test_the_lead_tells_scores_and_whether_the_sources_matter():
    lead, target, control = verdict(results(FEW, lift=0.4))
    assert lead.startswith("On 80 texts of movies and reviews the fused adapter scores ")
    assert "points better than the target adapter as it was (95\u00a0% interval " in target
    assert control.endswith(": the sources do matter.")
    even = verdict(results(FEW, lift=0.0))
    assert "so these texts do not decide between them." in even[1]
    assert even[2].endswith("so these texts do not show that the sources matter.")
    worse = verdict(results(FEW, lift=-0.4))
    assert worse[2].endswith(": the sources do harm.")
    assert "points worse than the target" in worse[1]


def test_without_answers_losses_speak():
    own = results(FEW, written=False)
    said = verdict(own)
    assert "loses" in said[0]
    assert "nats a token better than the target" in said[1]
    page = fusion_html({"stages": {"fusion": told()}, "results": {**own, "answers": []}})
    assert Page(page).tags.count("svg") == 1 + 2
    assert score_tables(own)[0][2][0][1] == ""


def test_tables_have_every_candidate_best_first(found):
    tables = score_tables(found["results"])
    assert [title.split(" (")[0] for title, _, _ in tables] == ["All tasks, of equal weight", "movies", "reviews"]
    for _, columns, rows in tables:
        assert columns == ("candidate", "score", "over target", "over control", "loss")
        assert len(rows) == len(SIX)
        scores = [float(row[1].split()[0]) for row in rows]
        assert scores == sorted(scores, reverse=True)
        own = next(row for row in rows if row[0] == "target")
        assert own[2] == ""
        assert own[3].startswith(("-", "+"))
    assert "micro F1" in tables[1][0]
    assert "accuracy" in tables[2][0]


def test_sources_gates_and_changes_are_told(page):
    read = Page(page).text
    assert "The gates let in qwen-movies (62\u00a0% open) and gpt2-noise (4\u00a0% open); 35 modules changed, by " in page
    assert (
        "35 modules of the target take from a source , 7 from none." in read
        or "35 modules of the target take from a source, 7 from none." in read
    )
    assert "loss was 1.2345 nats a token before and 1.1000 after" in read
    bare = fusion_html({"stages": {"fusion": told(gates=False)}})
    assert "came in without gates" in bare
    assert Page(bare).tags.count("svg") == 1
    two = fusion_html({"stages": {"first": told(), "second": told()}})
    assert "In second the gates let in" in two
    assert "<h2>first: What came from whom</h2>" in two


def test_bars_say_their_shares():
    svg = share_bars([("fused", 0.625, 0.5, 0.7), ("gac", 0.052, None, None), ("none", 0.0, None, None)], title="t", unit="accuracy, %")
    assert {"fused", "62", "5.2", "0", "accuracy, %"} <= set(texts(svg))
    assert 'aria-label="t"' in svg


def test_the_page_is_written_and_equal_figures_give_equal_pages(page, found, tmp_path):
    assert write_fusion(found, tmp_path / "page.html").read_text("utf-8") == page
