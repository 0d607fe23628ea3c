"""A router's page: well-formed, complete for what it is given, every token once, its sentences as the figures say."""

from __future__ import annotations

import html
import re

import pytest

from asterism.report.routing import routing_html, write_routing
from tests.report.sample_routing import TEXT, router
from tests.report.test_html import Page

COMPARED = ("texts", "router_loss", "rivals")
SHOWN = ("text", "tokens", "shares")


def without(found: dict, names: tuple[str, ...]) -> dict:
    return {name: value for name, value in found.items() if name not in names}


@pytest.fixture(scope="module")
def page() -> str:
    return routing_html(router(depth=2))


def test_a_page_is_well_formed_and_needs_nothing_else(page):
    read = Page(page)
    assert not {"script", "link", "img"} & set(read.tags)
    assert read.tags.count("svg") == 1 + 1 + 1 + 1  # losses, weights of the first of two models, load, layers
    assert "prefers-color-scheme: dark" in page


def test_the_text_is_there_whole_token_by_token_and_escaped(page):
    spans = re.findall(r'<span class="m[1-6]" style="--lead:\d+" title="[^"]*">(.*?)</span>', page, flags=re.DOTALL)
    assert html.unescape("".join(spans)) == TEXT
    assert "<b>A pen" not in page


def test_a_page_tells_the_best_rival_and_what_the_texts_do_not_decide(page):
    assert "On 120 texts the router loses 2.700 nats a token, 0.210 less than math, the best specialist, alone" in page
    found = router()
    for row in found["rivals"]:
        row.update(gain=-0.01, gain_low=-0.03, gain_high=0.01)
    assert "the texts do not decide between them (gain 95\u00a0% interval −0.030 to 0.010)" in routing_html(found)
    for row in found["rivals"]:
        row.update(gain_high=-0.005)
    assert "0.010 more than math, the best specialist, alone" in routing_html(found)


def test_parts_that_were_not_measured_are_left_out():
    compared = routing_html(without(router(), SHOWN))
    assert "Beside the models" in compared
    assert "Where the tokens" not in compared
    shown = routing_html(without(router(), COMPARED))
    assert "Where the tokens" in shown
    assert "Beside the models" not in shown
    assert "The weights of this text&#39;s" in shown


@pytest.mark.parametrize(
    ("share", "told"), [(0.1, "mostly choose one expert"), (0.5, "lean to some experts"), (0.95, "hardly tell tokens apart")]
)
def test_entropy_is_put_into_words(share, told):
    found = router()
    for own in found["blocks"]:
        own["entropy"] = share
    assert told in routing_html(found)


def test_a_text_that_was_cut_and_a_top_k_are_told():
    found = router(depth=2)
    count = len(found["tokens"])
    assert f"this text&#39;s {count} tokens go to" in routing_html(found)
    page = routing_html(found | {"left_out": 7, "settings": found["settings"] | {"top_k": 1}})
    assert f"this text&#39;s first {count} tokens (of {count + 7}) go to" in page
    assert "before the top-k" in page
    assert "math, layer 2" in page


def test_one_gate_for_all_blocks_is_one_row():
    page = routing_html(router(scope="single"))
    assert page.count("<td>all</td>") == 1
    assert "<td>3</td>" not in page


def test_three_models_have_a_map_each():
    page = routing_html(router(models=("math", "code", "generalist")))
    assert [f"Weight of {name}, block by block" in page for name in ("math", "code", "generalist")] == [True] * 3


def test_the_page_is_written_and_equal_figures_give_equal_pages(page, tmp_path):
    assert write_routing(router(depth=2), tmp_path / "page.html").read_text("utf-8") == page
