"""Weights over tokens and loads of blocks: every token is there once, shares add up."""

from __future__ import annotations

import pytest

from asterism.report.tokens import LINE_OF, load_bars, model_shares, token_map
from tests.report.svg import lines, texts

EXPERTS = [{"model": name, "block": block} for block in (0, 1) for name in ("math", "code")]
BLOCKS = [
    {"block": 0, "experts": EXPERTS, "mass": [0.1, 0.2, 0.3, 0.4], "entropy": 1.25},
    {"block": 1, "experts": EXPERTS[2:], "mass": [0.5, 0.5], "entropy": 1.0},
]


def test_every_token_is_shown_once_and_blanks_are_seen():
    words = [f"w{place}" for place in range(2 * LINE_OF + 5)]
    shown = texts(token_map(words, ["0", "1"], [[0.5] * len(words)] * 2, name="math"))
    assert [text for text in shown if text.startswith("w") and text[1:].isdigit()] == words
    assert "weight of math; a row a block, from the first" in shown
    brief = texts(token_map(["\n", " def", "\n    ", "incomprehensible"], ["all"], [[0.1, 0.2, 0.3, 0.4]], name="math"))
    assert brief[:4] == ["⏎", "def", "⏎␣4", "incompreh…"]


def test_characters_that_matplotlib_cannot_draw_are_left_to_the_browser():
    assert texts(token_map(["日本", "π"], ["0"], [[0.1, 0.9]], name="math"))[:2] == ["日本", "π"]


def test_experts_of_several_blocks_count_for_their_model():
    assert model_shares(BLOCKS, "math") == pytest.approx([0.4, 0.5])


def test_bars_are_as_long_as_the_shares():
    svg = load_bars(BLOCKS, ["math", "code"])
    assert {"math", "code", "1.25", "bits", "block"} <= set(texts(svg))
    widths = [max(x for x, _ in bar) - min(x for x, _ in bar) for bar in lines(svg, "--s1") + lines(svg, "--s2") if len(bar) == 4]
    first, second, third, fourth = sorted(widths)[-4:]
    assert first / fourth == pytest.approx(0.4 / 0.6, rel=1e-3)
    assert second == pytest.approx(third, rel=1e-3)


def test_equal_numbers_give_equal_bytes():
    assert load_bars(BLOCKS, ["math", "code"]) == load_bars(BLOCKS, ["math", "code"])
