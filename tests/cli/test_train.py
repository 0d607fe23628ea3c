"""`asterism train --on-responses`: rows of prompts and responses, of which the responses are learnt."""

from __future__ import annotations

import json

import pytest

from asterism.models.library import Library
from tests import tiny

SHORT = ("--steps", 2, "--batch-size", 2, "--max-length", 64, "--quiet", "--device", "cpu", "--json")


@pytest.fixture
def rows(tmp_path):
    """A folder with one domain's rows."""
    (tmp_path / "data").mkdir()
    lines = [json.dumps({"prompt": text[:20], "response": text[20:40]}) + "\n" for text in tiny.PROBES["legal"]]
    (tmp_path / "data" / "legal.train.jsonl").write_text("".join(lines))
    return tmp_path / "data"


def test_generalist_and_specialist_learn_responses(asterism, rows, tmp_path):
    size = ("--hidden", 32, "--blocks", 2, "--vocabulary", 300)
    ran = asterism("train", tmp_path / "new", "generalist", "--data", rows / "legal.train.jsonl", "--on-responses", *size, *SHORT)
    assert ran.code == 0, ran.err
    assert ran.answer["examples"] == 6
    given = (
        "legal",
        "--data",
        rows,
        "--on-responses",
        "--held-out",
        0.3,
        "--method",
        "lora",
        "--lora-rank",
        2,
        "--accumulation",
        2,
        "--no-chat",
    )
    ran = asterism("train", tmp_path / "new", *given, *SHORT)
    assert ran.code == 0, ran.err
    assert Library.open(tmp_path / "new").names == ("legal",)
    record = json.loads((tmp_path / "new" / "legal" / "training.json").read_text())
    assert record["settings"]["accumulation"] == 2
    assert record["held_out_loss"] > 0


def test_refusals(asterism, rows, tmp_path):
    given = ("train", tmp_path / "new", "generalist", "--data", rows / "legal.train.jsonl")
    ran = asterism(*given, "--held-out", 0.1, *SHORT)
    assert ran.code == 2
    assert "error: Rows are held out of examples.\n  met:  --held-out 0.1\n  mend: add --on-responses" in ran.err
    ran = asterism(*given, "--on-responses", "--patience", 2, *SHORT)
    assert ran.code == 2
    assert "Early stopping needs held-out examples" in ran.err
