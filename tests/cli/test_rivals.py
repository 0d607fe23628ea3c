"""`asterism fuse` with rivals: the table, the page, and what is refused."""

from __future__ import annotations

import pytest
import yaml

from tests.evaluate.contest import content, made

FEW = ("--max-new-tokens", "2", "--scale", "tiny")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    root = made(tmp_path_factory.mktemp("fuse"))
    (root / "recipe.yaml").write_text(yaml.safe_dump(content()))
    return root


def test_a_fusion_is_compared_and_its_page_written(start, asterism):
    test = ("--test", f"names={start / 'test.jsonl'}", "--rivals", "control,gac", "--report", start / "page.html")
    shown = asterism("fuse", start / "recipe.yaml", start / "out", *test, *FEW)
    assert shown.code == 0, shown.err
    for part in (
        "On 3 texts of names the fused adapter scores",
        "names (micro F1, %; n = 3)",
        "control",
        "GAC",
        "over target",
        "page.html",
    ):
        assert part in shown.out
    page = (start / "page.html").read_text("utf-8")
    assert "Beside its rivals" in page
    assert "What came from whom" in page
    again = asterism("fuse", start / "recipe.yaml", start / "out", *test, *FEW, "--json")
    assert set(again.answer["results"]["candidates"]) == {"target", "fused", "control", "gac"}
    assert again.answer["report"] == str(start / "page.html")
    assert again.answer["stages"]["fusion"]["slots"]


def test_a_page_of_the_fusion_alone(start, asterism):
    shown = asterism("fuse", start / "recipe.yaml", start / "out", "--report", start / "alone.html")
    assert shown.code == 0, shown.err
    assert "Beside its rivals" not in (start / "alone.html").read_text("utf-8")


def test_what_cannot_be_compared_is_told(start, asterism):
    recipe, out, test = start / "recipe.yaml", start / "out", ("--test", start / "test.jsonl")

    def refused(*given) -> str:
        shown = asterism("fuse", recipe, *given)
        assert shown.code == 2
        return shown.err

    assert "Rivals are compared on examples of their own.\n  met:  --rivals without --test" in refused(out, "--rivals", "control")
    assert "Rivals are compared on examples of their own.\n  met:  --max-new-tokens without --test" in refused(out, "--max-new-tokens", "2")
    assert "Only what is fused can be compared.\n  met:  --test, --report" in refused("--show-alignment", *test, "--report", "x.html")
    assert "did you mean 'control'?" in refused(out, *test, "--rivals", "controll")
    assert "two adapters or more" in refused(out, *test, "--rivals", "ties")
    assert "A family adapter is given as name=FOLDER" in refused(out, *test, "--rivals", "ties", "--family", "films")
    assert "No examples there" in refused(out, "--test", start / "none.jsonl")
    assert "A file cannot be written there" in refused(out, "--report", start)
    assert "Test examples are among the replay data" in refused(start / "new", "--test", start / "rows.jsonl")
    assert not (start / "new").exists()
