"""Who is most active in which block, as bars: widths are shares, colours are the specialists' own."""

from __future__ import annotations

import re

from asterism.report.figures import coefficient_scatter
from asterism.report.layers import layer_bars

LAYERS = [{"layer": block, "held": {"legal": 0.25 * block, "code": 1 - 0.25 * block}} for block in range(3)]
NAMES = ("medical", "legal", "code")


def test_bars_have_the_widths_of_the_shares_and_only_those_who_were_asked():
    page = layer_bars(LAYERS, NAMES)
    assert "legal" in page
    assert "medical" not in page
    assert "var(--s1" not in page
    widths = {colour: [] for colour in ("s2", "s3")}
    for path, colour in re.findall(r'<path d="M ([^"]*?)z?\s*" clip-path[^>]*style="fill: var\(--(s\d)', page, re.DOTALL):
        xs = [float(x) for x in re.findall(r"(-?[\d.]+) -?[\d.]+", path)]
        widths[colour].append(max(xs) - min(xs))
    assert len(widths["s2"]) == len(widths["s3"]) == 3
    whole = widths["s3"][0]
    for block in range(3):
        assert abs(widths["s2"][block] - 0.25 * block * whole) < 0.01
        assert abs(widths["s3"][block] - (1 - 0.25 * block) * whole) < 0.01


def test_a_star_is_named_in_the_legend():
    points = {"a": [(0.0, 0.0), (1.0, 1.0)], "b": [(2.0, 0.0), (3.0, 2.0)]}
    limits = [(0.0, 0.0), (3.0, 2.0)]
    assert "this text" not in coefficient_scatter(points, {}, (0.9, 0.1), limits)
    page = coefficient_scatter(points, {}, (0.9, 0.1), limits, star=(0.1, 1.0))
    assert len(re.findall(r"<text[^>]*>this text", page)) == 1
