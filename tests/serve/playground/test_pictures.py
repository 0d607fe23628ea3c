"""Bars, blocks and the map: right numbers, one colour a specialist, nothing that a browser would run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from asterism.constellation.explanation import explain
from asterism.serve.playground.pictures import Map, error_box, layers_picture, mixture_bars, plain

TOLD = {
    "mode": "evidence", "shares": {"legal": 0.2, "medical": 0.5}, "generalist": 0.3, "scale": 1.5, "entropy": 1.48,
    "losses": {"legal": 3.5, "medical": 3.1, "generalist": 3.3}, "read_tokens": 12, "choosing_s": 0.0123,
}  # fmt: skip
NAMES = ("medical", "legal", "code")


class Read(HTMLParser):
    """Tags, and whether they are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_bars_tell_shares_and_losses_in_order():
    page = mixture_bars(TOLD, "The mixture", NAMES)
    words = [word for word in Read(page).words if word.strip()]
    assert words[:15] == [
        "The mixture", "share", "loss", "medical", "50 %", "3.10", "legal", "20 %", "3.50", "generalist", "30 %", "3.30",
        "mode evidence · entropy 1.48 bits · deltas × 1.5 · 12 tokens read in 12 ms",
    ]  # fmt: skip
    assert re.findall(r"width:([\d.]+)%;background:(\S+?)\"", page) == [
        ("50.0", "var(--s1)"), ("20.0", "var(--s2)"), ("30.0", "var(--muted)")
    ]  # fmt: skip
    alone = {"mode": "base", "shares": {}, "generalist": 1.0, "scale": 1.0, "entropy": 0.0}
    assert "100 %" in mixture_bars(alone, "The generalist", NAMES)


@pytest.mark.parametrize("wild", ["<img src=x onerror=alert(1)>", "${alert(1)}", "{{value}}", "a&b\"'"])
def test_names_mean_themselves(wild):
    page = mixture_bars({**TOLD, "shares": {wild: 0.7}, "losses": {}}, wild, NAMES)
    read = Read(page)
    assert "img" not in read.tags
    assert wild in read.words
    assert "${" not in page
    assert "{{" not in page
    assert plain(wild) in page
    assert wild in "".join(Read(error_box({"wrong": wild, "met": "x", "mend": "y"})).words)


def test_blocks_have_the_specialists_colours(built):
    found = explain(built.library, built, "The court heard the surgeon.")
    page = layers_picture(found)
    Read(page)
    assert page.count("<svg") == 1
    for place, name in enumerate(built.domains):
        assert (f"var(--s{place + 1}" in page) == (name in found["specialists"])


def test_a_text_stands_where_its_coefficients_are(built, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "asterism.serve.playground.pictures.coefficient_scatter", lambda *given, **named: drawn.update(given=given, **named) or "<svg/>"
    )
    text = "The court heard the surgeon."
    coefficients = dict(zip(built.domains, built.coefficients(text).tolist(), strict=True))
    assert "<svg/>" in Map(built.library).picture(coefficients)
    groups, marks, shares, _ = drawn["given"]
    assert {name: len(own) for name, own in groups.items()} == {"medical": 7, "legal": 6, "code": 6, "science": 7, "general": 6}
    rows = np.concatenate([built.basis.coefficients(built.fingerprints(name)).double().numpy() for name in (*built.domains, "general")])
    means = np.stack([built.basis.coefficients(built.fingerprints(name)).double().numpy().mean(0) for name in (*built.domains, "general")])
    _, sizes, directions = np.linalg.svd(means - means.mean(0))
    want = np.array(list(coefficients.values())) @ directions[:2].T
    np.testing.assert_allclose(np.abs(drawn["star"]), np.abs(want), atol=1e-5)
    np.testing.assert_allclose(np.abs(np.array(groups["code"][2])), np.abs(rows[15] @ directions[:2].T), atol=1e-5)
    assert shares[0] == pytest.approx(sizes[0] ** 2 / (sizes**2).sum())
    assert marks.keys() == groups.keys()


def test_the_map_follows_the_index_on_disk(tmp_path):
    import shutil

    from asterism.constellation.index import Constellation
    from tests import tiny

    library = tiny.tiny_library(tmp_path / "tiny", "qwen2", kind="mlp")
    Constellation.build(library, tiny.tiny_probes()).save()
    places, four = Map(library), dict.fromkeys(tiny.DOMAINS, 0.1)
    assert "code (6)" in places.picture(four)
    Constellation.load(library.root / "constellation", library).without_domain("code").save()
    three = {name: 0.1 for name in tiny.DOMAINS if name != "code"}
    assert "code" not in places.picture(three)
    shutil.rmtree(tmp_path / "tiny")


def test_one_domain_has_no_map(built, monkeypatch):
    places = Map(built.library)
    monkeypatch.setattr(Map, "_probes", lambda self: (("legal",), []))
    assert places.picture({"legal": 1.0}) == ""
