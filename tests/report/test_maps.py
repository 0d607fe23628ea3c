"""Maps of layers carry the numbers that they were given, in the order given, and stay small."""

from __future__ import annotations

import pytest

from asterism.report.maps import heat_map, reach_map, similarity_map
from tests.report.svg import texts


def similar(rows: int, columns: int, names: tuple[str, str] = ("math", "code")) -> dict:
    """As `Similarity.to_dict()` gives it; no two values are equal."""
    table = [[0.9 - 0.05 * row - 0.003 * column for column in range(columns)] for row in range(rows)]
    layers = [list(range(rows)), list(range(columns))]
    return {"map": table, "names": list(names), "layers": layers, "n": 500, "settings": {"estimator": "debiased"}}


def test_a_map_says_its_numbers_layers_models_and_estimator():
    svg = similarity_map(similar(3, 4))
    assert [text for text in texts(svg) if text.startswith("0.") and len(text) == 4 and text < "0.91"][:4] == ["0.90"] * 2 + ["0.89"] * 2
    assert {"layer of math", "layer of code", "CKA, debiased (no unit; n = 500)", "0", "3"} <= set(texts(svg))
    assert svg == similarity_map(similar(3, 4))
    assert "layers of math to those of code" in svg
    assert 'aria-label="Similarity of the layers of math"' in similarity_map(similar(3, 3, ("math", "math")))


def test_a_negative_zero_is_none_and_what_is_beyond_the_scale_is_drawn():
    shown = texts(heat_map(["a"], ["x", "y", "z"], [[-0.001, 1.2, -0.02]], title="t", unit="u"))
    assert {"0.00", "1.20", "−0.02"} <= set(shown)


def test_many_layers_are_drawn_without_numbers_and_with_few_labels():
    svg = similarity_map(similar(40, 36))
    shown = texts(svg)
    assert "0.90" not in shown
    assert shown.count("2") == 2
    assert "3" not in shown
    assert len(svg) < 500_000


def test_reach_sums_the_models_of_a_block_and_leaves_the_rest_empty():
    experts = [{"model": name, "block": block} for block in (0, 1) for name in ("math", "code")]
    blocks = [{"block": 0, "experts": experts, "mass": [0.4, 0.3, 0.2, 0.1]}, {"block": 1, "experts": experts[2:], "mass": [0.25, 0.75]}]
    assert [text for text in texts(reach_map(blocks)) if "." in text and len(text) == 4] == ["0.70", "0.30", "1.00"]


@pytest.mark.parametrize("rows", [1, 2, 14])
def test_any_number_of_rows_fits(rows):
    assert "aria-label" in similarity_map(similar(rows, 14))
