"""The server on a Ray cluster of two nodes: the load brings a second replica, both answer alike, changes reach both, one is killed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import psutil
import pytest
import torch

pytest.importorskip("ray.serve", reason="the extra `scale` is not installed")

from asterism.compose.answering import answer
from asterism.constellation.index import Constellation
from asterism.constellation.settings import MixtureSettings
from asterism.models.library import Library
from tests import tiny

PROGRAM = Path(__file__).parent / "cluster.py"
KEY = "a-key-for-the-test"
MARK = "ASTERISM_TEST_CLUSTER"
PROMPTS = ("The patient was given", "The court dismissed", "def add(a, b):", "Photons carry energy", "Counsel called a physicist")
STARS = ["The star is bright tonight.", "A comet crossed the sky."]


@pytest.fixture
def room() -> Iterator[tuple[Path, dict[str, str]]]:
    """A short folder for Ray's sockets, and an environment that marks all its processes: none of them outlives the test."""
    folder, mark = Path(mkdtemp(prefix="ray-")), secrets.token_hex(8)
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(folder), "RAY_enable_worker_prestart": "0", "OMP_NUM_THREADS": "1"}
    try:
        yield folder, {**os.environ, **quiet, MARK: mark, "ASTERISM_API_KEYS": KEY, "PYTHONPATH": ""}
    finally:
        ours = [process for process in psutil.process_iter() if _mark_of(process) == mark]
        for process in ours:
            process.kill()
        psutil.wait_procs(ours, 10)
        shutil.rmtree(folder, ignore_errors=True)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None


def solo(root: Path, prompts: tuple[str, ...]) -> list[dict]:
    """Questions with the answers of the library alone, one at a time."""
    library = Library.open(root)
    constellation = Constellation.load(root / "constellation", library)
    found = []
    for top_k in (2, 3):
        for prompt in prompts:
            (one,) = answer(library, constellation, [prompt], mixture=MixtureSettings(top_k=top_k), max_new_tokens=12)
            body = {"model": "tiny", "prompt": prompt, "max_tokens": 12, "temperature": 0, "extra_body": {"asterism": {"top_k": top_k}}}
            found.append({"body": body, "text": one.text})
    return found


def test_two_nodes_answer_alike_follow_each_other_and_one_is_replaced(tmp_path, room):
    folder, environment = room
    library = tiny.tiny_library(tmp_path / "tiny", "gpt2", dtype=torch.float64)
    root = library.root
    constellation = Constellation.build(library, tiny.tiny_probes())
    constellation.save()
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2", dtype=torch.float64), 5, 0.2), root / "stars")
    questions = solo(root, PROMPTS)
    grown = Path(shutil.copytree(root, tmp_path / "grown"))
    more = Library.open(grown)
    more.add("stars", "stars")
    Constellation.load(grown / "constellation", more).with_domain("stars", STARS).save()
    later = solo(grown, tuple(STARS))
    assert len({one["text"] for one in questions}) > 3
    plan = {
        "args": {"library": str(root), "device": "cpu", "allow_changes": True, "slots": 4},
        "questions": questions,
        "later": later,
        "long": {"model": "tiny", "prompt": "The", "max_tokens": 120, "temperature": 1, "seed": 1},
        "specialist": {"name": "stars", "source": "stars", "probes": STARS},
    }
    (folder / "plan.json").write_text(json.dumps(plan), "utf-8")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder / "plan.json")], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["wrong"] == []
    assert seen["answered"] >= 24
    nodes = {replica.partition("/")[0] for replica in seen["both"]}
    assert len(nodes) == len(seen["both"]) == 2
    assert set(seen["first"]) <= set(seen["both"])
    assert seen["gone"], "a client who went away was not noticed"
    assert (seen["added"], seen["removed"]) == (201, 200)
    assert all("tiny:stars" in models for models in seen["after"].values())
    assert all("tiny:stars" not in models and "tiny:legal" in models for models in seen["last"].values())
    assert len(seen["replaced"]) == 2
    assert seen["killed"] not in seen["replaced"]
