"""Figures are well-formed SVG, carry the numbers they were given, and are the same bytes for the same numbers."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from asterism.report import figures
from tests.report.svg import texts

BARS = [("generalist", 0.93, 0.88, 0.96), ("uniform average", 0.41, 0.33, 0.49)]
CELL = {"rate": 0.93, "low": 0.88, "high": 0.96}
OPEN = {"rate": 0.52, "low": 0.44, "high": 0.60}
DRAWN = {
    "win_bars": lambda: figures.win_bars({"default": BARS, "paper": BARS}, 150),
    "win_map": lambda: figures.win_map(["a", "b & c"], ["x", "y"], [[CELL, OPEN], [None, CELL]]),
    "loss_dots": lambda: figures.loss_dots([("a", 3.1, 3.0, 3.2), ("b", 3.4, 3.3, 3.5)], 150, ["a"]),
    "collinearity_map": lambda: figures.collinearity_map(["medical", "legal"], [[1.0, 0.981], [0.981, 1.0]]),
    "coefficient_scatter": lambda: figures.coefficient_scatter(
        {"code": [(1.0, 2.0), (1.5, 2.5)], "legal": [(0.0, 1.0)]}, {"code": (1.2, 2.2)}, (0.6, 0.3), [(0.0, 1.0), (1.5, 2.5)]
    ),
    "mixture_nodes": lambda: figures.mixture_nodes(["code", "legal"], [[0.9, 0.2, 0.4], [0.1, 0.8, 0.6]]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_well_formed_themed_and_without_time_or_outside_links(name):
    svg = DRAWN[name]()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("width") is None, "the page sets the width"
    assert "var(--ink" in svg
    assert not any(part in svg for part in ("<metadata", "dc:date", "<?xml", "<!DOCTYPE", "#0101", "#0a0a"))
    outside = [line for line in svg.split('"') if line.startswith("http") and not line.startswith("http://www.w3.org/")]
    assert not outside


def test_the_users_matplotlib_settings_neither_matter_nor_change():
    import matplotlib

    before = DRAWN["win_bars"]()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert DRAWN["win_bars"]() == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("name", DRAWN)
def test_equal_input_gives_equal_bytes(name):
    assert DRAWN[name]() == DRAWN[name]()


def test_equal_bytes_in_another_process():
    program = (
        "from asterism.report import figures; print(figures.loss_dots([('a', 3.1, 3.0, 3.2), ('b', 3.4, 3.3, 3.5)], 150, ['a']), end='')"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert other == DRAWN["loss_dots"]()


def test_win_bars_say_rate_units_and_n():
    shown = texts(DRAWN["win_bars"]())
    assert {"93", "41", "generalist", "uniform average", "default", "paper", "probes won, % (n = 150)"} <= set(shown)


def test_bar_lengths_follow_the_rates():
    """The two bars' widths stand in the ratio of their rates."""
    svg = figures.win_bars({"default": BARS}, 10)
    paths = [
        node.get("d")
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path")
        if "--s1" in (node.get("style") or "")
    ]
    widths = []
    for path in paths:
        xs = [float(word) for word in path.replace("M", " ").replace("L", " ").replace("z", " ").split()[0::2]]
        widths.append(max(xs) - min(xs))
    assert len(widths) == 2
    assert widths[0] / widths[1] == pytest.approx(0.93 / 0.41, rel=1e-3)


def test_win_map_marks_sure_cells_and_gaps():
    svg = DRAWN["win_map"]()
    bold = [
        node.text.strip()
        for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        if "font-weight: 700" in (node.get("style") or "")
    ]
    assert bold == ["93", "93"]
    assert "52" in texts(svg)
    assert "·" in texts(svg)
    assert "b & c" in texts(svg)


def test_collinearity_shows_pairs_and_not_the_diagonal():
    shown = texts(DRAWN["collinearity_map"]())
    assert shown.count("0.981") == 2
    assert "1.000" not in shown


def test_large_libraries_are_drawn_without_numbers():
    many = [f"domain {i}" for i in range(40)]
    shown = texts(figures.collinearity_map(many, [[1.0 if a == b else 0.9 + 0.001 * a for b in range(40)] for a in range(40)]))
    assert "domain 3" not in shown
    assert "0.901" not in shown


def test_mixture_says_shares_and_stays_small_at_many_nodes():
    assert {"code (50 %)", "legal (50 %)"} <= set(texts(DRAWN["mixture_nodes"]()))
    wide = figures.mixture_nodes(["code", "legal"], [[0.25] * 8192, [0.75] * 8192])
    assert {"code (25 %)", "legal (75 %)"} <= set(texts(wide))
    assert len(wide) < 100_000
