"""docs/results.md from made-up results: every part is there, and parts without JSON are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.constellation import summaries
from experiments.constellation.view import View
from tests import registers
from tests.ladder_sample import ladder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results():
    return ladder()


@pytest.fixture(scope="module")
def view(results):
    return View(results)


@pytest.fixture(scope="module")
def script():
    return registers.script("make_results")


def row(table, label):
    return next(dict(zip(table.columns, cells, strict=True)) for cells in table.rows if cells[0] == label)


def test_everyone_is_listed_by_mean_loss(view):
    table = summaries.everyone(view, "cross", "whole")
    means = [float(cells[1].partition(";")[0]) for cells in table.rows]
    assert means == sorted(means)
    assert row(table, "`paper`")["gpt2-2m"] == "5.780; 55 / 30 / 5"
    assert row(table, "`generalist`")["gpt2-2m"] == "5.800; – / – / –"


def test_advisers_stand_beside_what_was_best(view):
    table = summaries.advice(view)
    assert table.columns[2:5] == ("advice (measured)", "geometry's", "best way")
    assert table.rows[0][2:5] == ("compose", "merge (wrong)", "compose")
    assert row(summaries.advisers(view), "measured")["libraries"] == 18


def test_layers_follow_the_rung_with_the_most_blocks_and_mark_what_validation_chose(view):
    table = summaries.layers(view)
    assert [cells[0] for cells in table.rows][-4:] == ["last 8", "first", "middle", "all"]
    assert row(table, "last 8")["gpt2-0.5m"] is None
    assert row(table, "all")["gpt2-0.5m"].startswith("**")


def test_general_text_is_held_by_the_upper_end(results):
    where = {"seed": "all", "candidate": "default", "protocol": "whole", "n": 40, "allowed": 0.01, "loss": 5.0, "generalist_loss": 5.0}
    rows = [
        {**where, "scale": name, "excess": 0.005, "low": 0.001, "high": high, "met": high <= 0.01}
        for name, high in (("gpt2-2m", 0.009), ("gpt2-8m", 0.012))
    ]
    told = row(summaries.general(View(results | {"general": rows})), "`default`, whole")
    assert (told["gpt2-0.5m"], told["gpt2-2m"], told["gpt2-8m"]) == (None, "0.005 (0.001 to 0.009) met", "0.005 (0.001 to 0.012) missed")


def test_ideas_are_ranked_over_the_rungs_that_have_them():
    rows = [{"scale": s, "idea": i, "cost": c, "mean": m} for s, i, c, m in (("a", "x", 4, 5.0), ("b", "x", 4, 4.0), ("a", "y", None, 4.4))]
    rows[0]["whole/cross > best single"] = 0.9
    assert summaries.ideas(rows).rows == (("y", None, "4.4000", None), ("x", "4", "5.0000 (90%)", "4.0000"))


def test_the_page_has_every_part_and_leaves_out_what_was_not_measured(script, results, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "EXPERIMENT", tmp_path)
    for name in ("BENCHMARKS", "MERGES", "ROUTING", "FUSION"):
        monkeypatch.setattr(script, name, tmp_path / "none.json")
    assert script.page() == script.HEAD
    (tmp_path / "results.json").write_text(json.dumps(results))
    for name in ("ideas", "updating"):
        (tmp_path / f"{name}.json").write_bytes((ROOT / "experiments" / "constellation" / f"{name}.json").read_bytes())
    page = script.page()
    heads = ["The ladder", "The default against its targets", "Everyone", "Geometry", "What calibration fitted, on validation probes"]
    heads += ["Is the advice right?", "Library size (gpt2-0.5m)", "How the default was chosen"]
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == heads
    assert "None" not in page
    drawn = script.files()[script.PICTURE]
    assert drawn.startswith("<svg") or drawn.startswith("<?xml")
    assert "best single (oracle)" in drawn
    assert "Rung by rung: met " in page
    assert "| `ensemble` | every specialist | 4 | 4 |" in page
    assert "left out, training diverged: not finite" in page
    bare = {key: value for key, value in results.items() if not isinstance(value, list) or key in ("rungs", "domains", "seeds")}
    (tmp_path / "results.json").write_text(json.dumps(bare))
    (tmp_path / "ideas.json").unlink()
    assert [line for line in script.page().splitlines() if line.startswith("## ")] == ["## The ladder"]


def test_check_notices_a_page_out_of_step(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PAGE", tmp_path / "results.md")
    monkeypatch.setattr(script, "PICTURE", tmp_path / "who-wins.svg")
    monkeypatch.setattr("sys.argv", ["make_results.py"])
    script.main()
    monkeypatch.setattr("sys.argv", ["make_results.py", "--check"])
    script.main()
    (tmp_path / "results.md").write_text("other")
    with pytest.raises(SystemExit, match="not in step"):
        script.main()
