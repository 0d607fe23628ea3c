"""Static merges on a ladder's library, at a tiny setting: tuned, scored beside the ladder's rows, kept, and put into the results page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings
from asterism.core.corpus import read_corpus
from asterism.core.errors import DataError
from asterism.core.progress import quiet
from asterism.demo.corpus import write_corpus
from asterism.evaluate import tuning
from asterism.evaluate.probes import draw
from asterism.evaluate.run import evaluate
from experiments import commands
from experiments.constellation.ladder import drawing, settings_of
from experiments.constellation.rung import DOMAINS, rungs
from experiments.merge import __main__ as entry
from tests.registers import script
from tests.tiny import tiny_library, tiny_probes

METHODS = ("ties", "karcher", "greedy_soup", "emr")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The arguments of a finished run on one library, and its results."""
    root = tmp_path_factory.mktemp("merge")
    write_corpus(root / "data", train=12, heldout=6, cross=6)
    first = rungs("pocket")[0]
    seed = root / "runs" / "pocket" / first.name / "seed-42"
    asked = ["--data", str(root / "data"), "--scale", "pocket", "--runs", str(root / "runs"), "--out", str(root / "out")]
    asked += ["--seeds", "42", "--methods", ",".join(METHODS), "--threads", "1"]
    with quiet(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(tuning.GRIDS, "ties", {"density": (0.5, 1.0), "lambda": (0.5,)})
        with pytest.raises(DataError, match="No library"):
            entry.main(asked)
        library = tiny_library(seed, "gpt2")
        settings = settings_of(first, 42).changed(refine=0)
        index = Constellation.build(library, tiny_probes(), IndexSettings(max_length=first.length))
        evaluate(library, index, draw(read_corpus(root / "data"), DOMAINS, drawing("pocket")), settings, out=seed / "evaluation")
        entry.main(asked)
    return asked, json.loads((root / "out" / "pocket" / "results.json").read_text("utf-8"))


def test_every_method_is_tuned_and_scored_beside_the_ladders_own(ran):
    _, results = ran
    tuned = {row["method"]: row for row in results["tuned"]}
    assert set(tuned) == set(METHODS)
    assert tuned["ties"]["tried"] == 2
    assert tuned["ties"]["parameters"]["density"] in (0.5, 1.0)
    losses = {row["candidate"] for row in results["losses"]}
    assert {*METHODS, "default", "generalist", "task_arithmetic", "best_single"} <= losses


def test_task_arithmetic_is_the_best_of_smaller_scales_too(ran):
    _, results = ran
    cell = {row["candidate"]: row["loss"] for row in results["losses"] if (row["task"], row["protocol"]) == ("cross", "whole")}
    scaled = {name: loss for name, loss in cell.items() if name.startswith("task_arithmetic@")}
    assert set(scaled) == {"task_arithmetic@0.05", "task_arithmetic@0.1", "task_arithmetic@0.2"}
    assert cell["task_arithmetic"] == min(cell["task_arithmetic_paper"], *scaled.values())


def test_wins_are_told_against_the_rivals(ran):
    _, results = ran
    assert {(row["candidate"], row["rival"]) for row in results["table"]} >= {("ties", "default"), ("default", "task_arithmetic")}
    assert all(row["n"] == 6 for row in results["losses"] if row["task"] == "cross")


def test_a_finished_library_is_not_merged_again(ran, monkeypatch, capsys):
    asked, results = ran
    for name in ("one", "arithmetic"):
        monkeypatch.setattr(entry, name, None)  # would fail if it were called
    entry.main(asked)
    assert "two domains, whole" in capsys.readouterr().out
    assert json.loads((Path(asked[asked.index("--out") + 1]) / "pocket" / "results.json").read_text("utf-8")) == results


def test_the_results_page_has_a_row_a_candidate(ran):
    page = "\n".join(script("make_results").merges(ran[1]))
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len({row["candidate"] for row in ran[1]["losses"]})
    assert any(line.startswith("| `ties` | density ") for line in rows)
    assert "None" not in page


def test_an_error_ends_an_experiments_command_with_its_mend_and_code_2(ran, capsys):
    with pytest.raises(SystemExit) as ended:
        commands.ended(lambda: entry.main([*ran[0], "--data", "nowhere"]))
    assert ended.value.code == 2
    assert "nowhere\n  mend: " in capsys.readouterr().err
