"""`merge --as adapter` and `extract-lora`: adapters from the command line."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from asterism.models.adapters import read_adapter
from tests import tiny


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """`base`, `full` and two adapters; with `recipe.yaml`, task arithmetic of these."""
    folder = tmp_path_factory.mktemp("places")
    base = tiny.tiny_model("gpt2")
    tiny.save(base, folder / "base")
    tiny.save(tiny.perturbed(base, 1, 0.2), folder / "full")
    for number, name in enumerate(("one", "two")):
        tiny.save_lora(base, folder / name, number, rank=2 + number, base=str(folder / "base"))
    models = [{"model": f"{folder / 'base'}+{folder / name}", "parameters": {"weight": 0.5}} for name in ("one", "two")]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models}
    for method in ("task_arithmetic", "ties"):
        (folder / f"{method}.yaml").write_text(yaml.safe_dump({**recipe, "merge_method": method}))
    return folder


def test_merge_as_adapter(asterism, places, tmp_path):
    ran = asterism("merge", places / "task_arithmetic.yaml", tmp_path / "out", "--as", "adapter", "--json")
    assert ran.code == 0, ran.err
    assert (ran.answer["as"], ran.answer["kind"], ran.answer["adapter"]["error"]) == ("adapter", "adapter", 0.0)
    one, two, merged = (read_adapter(place).changes for place in (places / "one", places / "two", tmp_path / "out"))
    for name, change in merged.items():
        torch.testing.assert_close(change.delta(1), 0.5 * one[name].delta(1) + 0.5 * two[name].delta(1))
    told = asterism("merge", places / "ties.yaml", tmp_path / "ties", "--as", "adapter", "--rank", 4)
    assert told.code == 0, told.err
    assert "mlp.c_fc" in told.out
    assert "TIES" in told.out


def test_a_rank_is_for_adapters_and_some_merges_need_one(asterism, places, tmp_path):
    ran = asterism("merge", places / "ties.yaml", tmp_path / "out", "--rank", 4)
    assert ran.code == 2
    assert "Only an adapter has a rank." in ran.err
    ran = asterism("merge", places / "ties.yaml", tmp_path / "out", "--as", "adapter")
    assert ran.code == 2
    assert "--rank 16" in ran.err
    ran = asterism("merge", places / "ties.yaml", tmp_path / "out", "--as", "adapter", "--rank", 4, "--shard-size", 1)
    assert ran.code == 2
    assert "leave --shard-size out" in ran.err
    assert not (tmp_path / "out").exists()


def test_extract_lora(asterism, places, tmp_path):
    ran = asterism("extract-lora", places / "full", tmp_path / "out", "--base", places / "base", "--rank", 3, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.answer["adapter"]["ranks"].values()) == {3}
    assert ran.answer == {"out": str(tmp_path / "out"), **json.loads((tmp_path / "out" / "extraction.json").read_text())}
    told = asterism("extract-lora", places / "full", tmp_path / "out", "--base", places / "base", "--energy", 0.5)
    assert told.code == 0, told.err
    assert "Left out" in told.out
    assert "wte" in told.out
    strict = asterism("extract-lora", places / "full", tmp_path / "strict", "--base", places / "base", "--rank", 3, "--strict")
    assert strict.code == 2
    assert "no LoRA can hold" in strict.err
    neither = asterism("extract-lora", places / "full", tmp_path / "none", "--base", places / "base")
    assert neither.code == 2
    assert "a rank, or a share of the energy" in neither.err
