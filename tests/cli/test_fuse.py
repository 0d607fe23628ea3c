"""`asterism fuse`: alignment and fusion for people and machines, and refusals in three lines."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.fuse import small


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    here = small.made(tmp_path_factory.mktemp("fuse"))
    recipe = {
        "target": {"model": "llama", "adapter": "target"},
        "sources": [{"name": name, "config": f"{name}.json", "adapter": name} for name in ("gpt2", "qwen2")],
        "data": ["rows.jsonl"],
        "settings": small.SETTINGS,
        "training": {**small.TRAINING, "steps": 2},
        "held_out": 0.25,
    }
    (here.root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return here.root


def test_the_alignment_is_shown_and_nothing_is_fused(start, asterism):
    before = sorted(start.iterdir())
    shown = asterism("fuse", start / "recipe.yaml", "--show-alignment")
    assert shown.code == 0, shown.err
    assert "gpt2" in shown.out
    assert "q k v o" in shown.out
    told = asterism("fuse", start / "recipe.yaml", "--show-alignment", "--json").answer
    assert told["stages"]["fusion"]["pairs"]
    assert sorted(start.iterdir()) == before


def test_a_fusion_is_told(start, asterism):
    shown = asterism("fuse", start / "recipe.yaml", start / "out")
    assert shown.code == 0, shown.err
    for part in (
        "what the target takes from whom",
        "fusion: sources",
        "gates open",
        "change of B",
        "10 examples, 3 held out",
        str(start / "out"),
    ):
        assert part in shown.out.replace("\n", "") or part in shown.out
    again = asterism("fuse", start / "recipe.yaml", start / "out", "--json")
    assert again.answer["stages"]["fusion"] == json.loads((start / "out" / "fusion.json").read_text())


def test_refusals(start, asterism):
    both = asterism("fuse", start / "recipe.yaml", start / "other", "--show-alignment")
    assert both.code == 2
    assert "error: A fusion is written to a folder, or its alignment is shown.\n  met:  OUT and --show-alignment" in both.err
    assert asterism("fuse", start / "recipe.yaml").code == 2
    seeded = asterism("fuse", start / "recipe.yaml", start / "out", "--seed", "7")
    assert seeded.code == 2
    assert "seed was 42, is 7" in seeded.err
    (start / "odd.yaml").write_text("tarqet: {}\n")
    odd = asterism("fuse", start / "odd.yaml", start / "other")
    assert "mend: did you mean 'target'?" in odd.err
