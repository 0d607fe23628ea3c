"""The report: one self-contained page, escaped, complete, the same for the same results."""

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from asterism.core.errors import DataError, StorageError
from asterism.report.html import report_html, write_report
from tests.report.sample import sample_results

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks nesting, collects tags, attributes and text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "text"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def results():
    return sample_results(seeds=(42, 43), single=8, pair=5)


@pytest.fixture(scope="module")
def few(results):
    """The same with one protocol and four candidates: a page that is drawn fast."""
    names = ("default", "generalist", "uniform", "best_single")

    def kept(rows):
        return [
            row for row in rows if row["protocol"] == "continuation" and row["candidate"] in names and row.get("rival", "uniform") in names
        ]

    return {**results, "table": kept(results["table"]), "losses": kept(results["losses"])}


@pytest.fixture(scope="module")
def page(results):
    return report_html(results)


def test_well_formed_and_complete(page):
    read = Page(page)
    heads = re.findall(r"<h2>(.*?)</h2>", page)
    assert heads == [
        "What was compared", "Who wins", "Every candidate against every rival", "Where the default composition wins", "By how much",
        "Can the domains be told apart?", "One query's mixture", "The words", "All numbers, settings and origin",
    ]  # fmt: skip
    assert read.tags.count("svg") == 4 + 4 + 4 + 4 + 1 + 2 + 1
    assert read.tags[:2] == ["html", "head"]


def test_self_contained_and_small(page):
    read = Page(page)
    assert "script" not in read.tags
    assert "link" not in read.tags
    assert "img" not in read.tags
    asked = [value for name, value in read.attributes if name in ("src", "href", "xlink:href") and not value.startswith("#")]
    assert not asked
    assert not re.findall(r"url\((?!#)", page)
    assert len(page.encode()) < 1_500_000


def test_light_dark_and_phone(page):
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport" content="width=device-width' in page
    assert not re.findall(r"<svg[^>]* width=", page)


def test_the_query_is_escaped(page):
    assert "&lt;b&gt;after&lt;/b&gt; an operation &amp; a discharge" in page
    assert "<b>after</b>" not in page


def test_names_from_outside_are_escaped(few):
    wild = json.loads(json.dumps(few).replace("medical", "<i>medical</i>"))
    page = report_html(wild, title="<script>alert(1)</script>")
    assert "<i>medical" not in page
    assert "<script" not in page
    Page(page)


def test_same_results_same_page(few):
    assert report_html(copy.deepcopy(few)) == report_html(few)


def test_numbers_are_the_results(results, page):
    row = next(
        row for row in results["table"]
        if (row["seed"], row["protocol"], row["task"], row["group"], row["candidate"], row["rival"])
        == ("all", "continuation", "cross", "all", "default", "generalist")
    )  # fmt: skip
    text = Page(page).text.replace("\u00a0", " ")
    low, high = f"{100 * row['low']:.0f}", f"{100 * row['high']:.0f}"
    assert f"the generalist (on {100 * row['rate']:.0f} % of the probes, 95 % interval {low}–{high})" in text
    assert "94 % (89–98)" in text
    assert "mean cosine 0.940; most alike: medical and legal, 0.981; least: medical and code, 0.902" in text
    assert "r = −0.31 (95 % interval −0.37 to −0.25) with seed 42" in text
    assert f"Mean entropy a node: {results['example']['entropy']:.2f} bits, of at most 1.58" in text
    assert "(best) · " not in text


def test_empty_parts_are_left_out(few):
    less = {**few, "retrieval": [], "correlation": [], "mixtures": [], "probes": [], "example": {}, "collinearity": {}}
    page = report_html(less)
    Page(page)
    assert "One query's mixture" not in page
    assert "Can the domains be told apart?" not in page
    assert "Who wins" in page


def test_the_advice_is_told(few):
    page = report_html({**few, "diagnosis": {"advice": "add noise", "reason": "The residuals are thin (0.98 < 1)."}})
    assert "<b>add noise</b>. The residuals are thin (0.98 &lt; 1)." in page


def test_one_protocol_one_task_no_default(results):
    def only(rows):
        return [
            row for row in rows if row["protocol"] == "whole" and row["task"] == "single" and row["candidate"] in ("best_single", "uniform")
        ]

    page = report_html({**results, "table": only(results["table"]), "losses": only(results["losses"])})
    Page(page)
    assert "Who wins" not in page
    assert "On 32 texts of one domain (single-domain probes), best single (oracle) beats the generalist" in page


def test_nothing_compared(results):
    page = report_html({**results, "table": [], "losses": []})
    assert "Nothing was compared." in page


def test_a_missing_part_is_an_error(results):
    with pytest.raises(DataError, match="no example"):
        report_html({key: value for key, value in results.items() if key != "example"})


def test_written_whole_or_not_at_all(few, tmp_path, monkeypatch):
    page = report_html(few)
    out = write_report(few, tmp_path / "deep" / "report.html")
    assert out.read_text("utf-8") == page
    with pytest.raises(DataError):
        write_report({}, out)
    assert out.read_text("utf-8") == page
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr("asterism.report.html.report_html", lambda *given: page)
    with pytest.raises(StorageError):
        write_report(few, tmp_path / "file" / "report.html")


def test_a_mixture_by_evidence_shows_losses_and_the_generalist(results):
    example = {**results["example"], "specialists": ["legal", "code"], "coefficients": [0.5, 0.1], "weights": [[0.6] * 4, [0.1] * 4]}
    example |= {"losses": {"legal": 4.321, "code": 5.0, "generalist": 4.5}, "generalist": 0.3, "scale": 1.3, "entropy": 1.2}
    text = report_html({**results, "example": example})
    assert "Who weighs how much at which node" not in text  # the same everywhere: nothing to draw
    part = text[text.index("One query's mixture") :]
    assert re.search(r"<td>generalist</td><td></td><td>4\.500</td><td>30", part)
    assert re.search(r"<td>legal</td><td>0\.500</td><td>4\.321</td><td>60", part)
    assert "times 1.30" in part
