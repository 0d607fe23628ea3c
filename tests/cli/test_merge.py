"""`asterism merge`: what it prints and loads, and that bad models and a full disk leave what was there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from asterism.core.storage import read_json
from asterism.merge import beside, card, files, streams
from tests import tiny
from tests.cli.test_errors import refused

ONE, TWO = "one", "two"
LIMITED = """
import resource, sys
from asterism.cli.app import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
main(sys.argv[1:])
"""
LOADED = """
import atexit, sys
atexit.register(lambda: print(sorted({"transformers", "torch"} & set(sys.modules))))
from asterism.cli.app import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two models in shards under one long path, never to be changed."""
    folder = tmp_path_factory.mktemp("models") / ("a-place-whose-path-is-longer-than-a-terminal-is-wide-" + "x" * 50)
    base = tiny.tiny_model("qwen2")
    for number, name in enumerate((ONE, TWO)):
        tiny.tiny_tokenizer().save_pretrained(folder / name)
        tiny.perturbed(base, number, 0.2).save_pretrained(folder / name, max_shard_size="20KB")
    assert len(list((folder / TWO).glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def models(made, tmp_path) -> Path:
    """A copy, free to be changed, with `recipe.yaml`."""
    folder = Path(shutil.copytree(made, tmp_path / "models" / made.name))
    models = [{"model": str(folder / name), "parameters": {"weight": 1.0}} for name in (ONE, TWO)]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return folder


@pytest.fixture
def out(tmp_path) -> Path:
    """A place to write to, in a folder of its own."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_long_paths_are_told_whole_in_a_narrow_terminal(asterism, models, out, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = asterism("merge", models / "recipe.yaml", out)
    assert ran.code == 0, ran.err
    rows = [line for line in ran.out.splitlines() if line.startswith("│")]
    assert all(len(line) <= 80 for line in rows)
    told = "".join(line.split("│")[1].strip() for line in rows)
    assert told == f"{models / ONE}{models / TWO}"


def test_a_merge_loads_no_transformers(models, out):
    ran = subprocess.run([sys.executable, "-c", LOADED, "merge", models / "recipe.yaml", out, "--quiet"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "['torch']"
    assert (out / "merge.json").is_file()


class Hub:
    """What stands in for the Hub's client; `failing` as it does without a network."""

    failing = False
    uploaded: ClassVar[dict[str, list[str]]] = {}

    def create_repo(self, name: str, exist_ok: bool) -> str:
        if self.failing:
            raise OSError("no route to host\nand more")
        return f"https://hub/{name}"

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        self.uploaded[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())


def test_a_merge_is_uploaded_where_it_is_asked_for(asterism, models, out, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    ran = asterism("merge", models / "recipe.yaml", out, "--push", "you/merged", "--json", "--quiet")
    assert ran.answer["uploaded"] == "https://hub/you/merged"
    assert Hub.uploaded["you/merged"] == sorted(path.name for path in out.iterdir())
    assert {"README.md", "config.json", "merge.json", "model.safetensors", "tokenizer.json"} <= set(Hub.uploaded["you/merged"])
    monkeypatch.setattr(Hub, "failing", True)
    shutil.rmtree(out)
    refused(asterism("merge", models / "recipe.yaml", out, "--push", "you/merged"), "you/merged: no route to host", f"lies in {out}")
    assert (out / "merge.json").is_file()
    refused(asterism("merge", models / "recipe.yaml", out.with_name("other"), "--push", "merged"), "--push owner/name")
    assert not out.with_name("other").exists()


def test_the_card_holds_recipe_sources_digests_and_distances(asterism, models, out):
    told = asterism("merge", models / "recipe.yaml", out, "--seed", 7, "--json", "--quiet").answer
    text = (out / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["merge", "asterism"]}
    assert "A merge by Linear (arXiv:2203.05482)" in body
    assert "seed 7" in body
    assert yaml.safe_load(body.split("```yaml\n")[1].split("```")[0]) == yaml.safe_load((models / "recipe.yaml").read_text())
    for source in told["sources"]:
        assert f"| {source['model']} | {source['tensors']} | `{source['digest'][:16]}` | {source['distance']:.2%} |" in body
    (one, other), merged = ([state_of(models / name) for name in (ONE, TWO)], state_of(out))
    for source, state in zip(told["sources"], (one, other), strict=True):
        away = sum(float((merged[name] - state[name]).square().sum()) for name in state)
        assert source["distance"] == pytest.approx((away / sum(float(x.square().sum()) for x in state.values())) ** 0.5, rel=1e-5)
    hub = card.card("merged", {**told, "hub": ["org/one", "org/two"]})
    assert yaml.safe_load(hub.split("---\n")[1])["base_model"] == ["org/one", "org/two"]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def truncated(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-8])
    return shard.name


def headless(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:20])
    return shard.name


def absent(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    return shard.name


def not_a_number(folder: Path) -> str:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    name, tensor = max(tensors.items())
    tensor.view(-1)[-1] = torch.nan
    save_file(tensors, shard, {"format": "pt"})
    return f"{name} of {folder}"


@pytest.mark.parametrize("spoilt", [truncated, headless, absent, not_a_number])
@pytest.mark.parametrize("before", [False, True])
def test_a_bad_model_is_named_and_nothing_is_written(asterism, models, out, spoilt, before):
    if before:
        assert asterism("merge", models / "recipe.yaml", out, "--quiet").code == 0
    was = contents(out.parent)
    word = spoilt(models / TWO)
    refused(asterism("merge", models / "recipe.yaml", out), word)
    assert contents(out.parent) == was
    assert before or list(out.parent.iterdir()) == []


def full(*given, **more):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "call"),
    [(os, "posix_fallocate"), (os, "pwrite"), (os, "fsync"), (beside, "copy_tokenizer"), (card, "write_json"), (files, "put_in_place")],
)
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_leaves_what_was_there(asterism, models, out, monkeypatch, where, call, before):
    """Wherever it shows: when room is taken, when tensors are written, when they are to last, beside them, at the very end."""
    if before:
        assert asterism("merge", models / "recipe.yaml", out, "--quiet").code == 0
    was = contents(out.parent)
    with monkeypatch.context() as patch:
        patch.setattr(streams, "_direct", lambda path: os.open(path, os.O_WRONLY))  # O_DIRECT or not, tensors go through os.pwrite
        patch.setattr(where, call, full)
        refused(asterism("merge", models / "recipe.yaml", out), "No space left on device", "free some space")
    assert contents(out.parent) == was
    assert before or list(out.parent.iterdir()) == []
    assert asterism("merge", models / "recipe.yaml", out, "--quiet").code == 0


def test_files_that_may_not_grow_leave_what_was_there(models, out):
    """The system's own limit on the size of a file, met by a whole process."""
    ran = subprocess.run([sys.executable, "-c", LIMITED, "merge", models / "recipe.yaml", out, "--quiet"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert [line.split(":")[0].strip() for line in ran.stderr.splitlines()] == ["error", "met", "mend"]
    assert list(out.parent.iterdir()) == []


def test_merges_are_tuned_and_evaluated_beside_everything_else(asterism, library, data, tmp_path):
    few = ("--single-per-domain", 2, "--cross-per-pair", 1, "--protocol", "whole", "--quiet")
    ran = asterism("evaluate", library, "--data", data, "--merges", "ram, emr,greedy_soup", "--out", tmp_path / "out", *few, "--json")
    assert {"ram", "emr", "greedy_soup"} <= {row["candidate"] for row in ran.answer["table"]}
    assert "chosen on validation probes" in read_json(tmp_path / "out" / "results.json")["candidates"]["ram"]
    refused(asterism("evaluate", library, "--data", data, "--merges", "tise", *few[:2]), "merge method with a grid", "did you mean 'ties'?")
    refused(asterism("evaluate", library, "--data", data, "--merges", "slerp"), "slerp merges 2 models")  # before texts are asked for
    refused(asterism("evaluate", library, "--data", data, "--merges", "ram"), "to tune merges on")


def test_a_library_is_merged_by_a_method(asterism, library, data, tmp_path):
    out = tmp_path / "merged"
    ran = asterism(
        "merge", library, out, "--method", "ties", "--parameter", "density=0.4", "--parameter", "lambda=0.5", "--json", "--quiet"
    )
    assert ran.code == 0, ran.err
    assert ran.answer["recipe"]["parameters"] == {"weight": 1.0, "density": 0.4, "lambda": 0.5}
    weight = "weight={medical: 1, legal: 0.5, code: 0, science: 0}"
    told = asterism("merge", library, out, "--method", "linear", "--parameter", weight, "--json", "--quiet").answer
    assert [entry["parameters"]["weight"] for entry in told["recipe"]["models"]] == [1, 0.5, 0, 0]
    refused(asterism("merge", library, out, "--method", "fisher"), "There are no Fisher values yet", "by giving texts")
    for asked in (("--data", data), ("--parameter", "floor=1e-3")):  # the second time from what was measured
        ran = asterism("merge", library, out, "--method", "fisher", *asked, "--json", "--quiet")
        assert ran.code == 0, ran.err
        assert ran.answer["method"]["title"] == "Fisher-weighted average"
    assert read_json(out / "merge.json")["parameters"] == {"floor": 0.001}
    ran = asterism("merge", library, out, "--method", "greedy_soup", "--data", data, "--quiet")
    assert ran.code == 0, ran.err
    assert "in the soup: " in ran.out
    assert "score it on others" in ran.out  # an evaluation would test on all of these few
    ran = asterism("merge", library, tmp_path / "emr", "--method", "emr", "--quiet")
    assert "parts for medical, legal, code, science" in ran.out
    assert "Emr.load(library" in ran.out


def test_what_is_of_a_library_alone_is_told(asterism, models, library, out, data):
    recipe = models / "recipe.yaml"
    for given, told in (
        ((recipe, out, "--method", "ties"), "A recipe names its own method."),
        ((recipe, out, "--parameter", "density=0.2"), "--parameter is of --method."),
        ((recipe, out, "--data", data), "--data is of --method."),
        ((library, out), "A library is merged by a method."),
        ((library, out, "--method", "tise"), "did you mean 'ties'?"),
        ((library, out, "--method", "ties", "--data", data), "ties reads no texts"),
        ((library, out, "--method", "ties", "--parameter", "density"), "NAME=VALUE"),
        ((library, out, "--method", "ties", "--parameter", "density=[1"), "NAME=VALUE"),
        ((library, out, "--method", "adamerging", "--parameter", "seed=1"), "--seed 1"),
        ((library, out, "--method", "fisher", "--as", "adapter"), "asterism extract-lora"),
        ((library, out, "--method", "emr", "--push", "you/emr"), "leave --push out"),
        ((models / "nothing", out, "--method", "ties"), "no library here"),
    ):
        refused(asterism("merge", *given), told)
    assert list(out.parent.iterdir()) == []
