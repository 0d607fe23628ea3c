"""The page of two models: the advice first, every figure and table, and nothing for what was not measured."""

from __future__ import annotations

from typing import get_args

import pytest

from asterism.report.compat import ADVICE, compat_html, write_compat
from asterism.route.advice import Advice
from tests.report.sample_routing import compatibility, similar
from tests.report.test_html import Page


@pytest.fixture(scope="module")
def page() -> str:
    return compat_html(compatibility())


def test_a_page_is_well_formed_and_needs_nothing_else(page):
    read = Page(page)
    assert not {"script", "link", "img"} & set(read.tags)
    assert read.tags.count("svg") == 1 + 2 + 4  # ways, path and models, maps across and within


def test_the_advice_leads(page):
    assert f'<p class="lead">{ADVICE["route"]}</p>' in page
    assert set(ADVICE) == set(get_args(Advice))


def test_figures_are_the_measurements(page):
    said = Page(page).text
    assert "0.125 nats (0.110 to 0.140) for the weights" in said
    assert "0.970 on target texts and 0.960 on general texts" in said
    assert "47.0 %" in said
    assert "other" not in said.split("What they changed")[1]  # neither changed it
    assert "what compose is" in said
    assert "100 texts do not decide" in said


def test_no_barrier_and_no_maps_within_are_left_out():
    found = compatibility()
    found["barriers"]["lerp"] |= {"height": 0.0}
    page = compat_html(found | {"within": {}})
    assert "the weights have none" in page
    assert "Within math" not in page


def test_a_map_far_below_zero_sets_the_scale_of_all():
    found = compatibility()
    low = similar("math", "code")
    low["map"][0][4] = -0.4
    assert "−0.40" in compat_html(found | {"similarity": {"target": low}})


def test_the_page_is_written_and_equal_measurements_give_equal_pages(page, tmp_path):
    assert write_compat(compatibility(), tmp_path / "page.html").read_text("utf-8") == page
