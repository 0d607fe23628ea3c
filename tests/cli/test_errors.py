"""Bad input: three lines on stderr, exit code 2, nothing on stdout, nothing changed."""

from __future__ import annotations

import json

import pytest
import torch

from tests import tiny


def refused(ran, *words: str) -> None:
    lines = ran.err.strip().splitlines()
    assert ran.code == 2, ran.err
    assert ran.out == ""
    assert len(lines) == 3, ran.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  met:  ")
    assert lines[2].startswith("  mend: ")
    for word in words:
        assert word in ran.err


def test_a_missing_library(asterism, tmp_path):
    refused(asterism("diagnose", tmp_path / "nowhere", "--json"), "nowhere")


def test_a_library_without_an_index(asterism, library):
    import shutil

    shutil.rmtree(library / "constellation")
    refused(asterism("explain", library, "text"), "asterism index")


def test_more_specialists_than_there_are(asterism, original):
    refused(asterism("explain", original, "The court", "--top-k", 5), "5")


def test_an_unknown_domain_in_a_probe(asterism, original, tmp_path):
    (tmp_path / "probes.jsonl").write_text(json.dumps({"text": "The court heard the case", "domains": ["legal", "medcal"]}) + "\n")
    refused(asterism("evaluate", original, "--data", tmp_path / "probes.jsonl"), "medcal", "did you mean 'medical'?")


def test_an_unknown_domain_to_remove(asterism, original):
    refused(asterism("index", original, "--remove", "legl"), "legl")


def test_a_stale_index(asterism, library):
    tiny.save(tiny.tiny_model("gpt2", seed=9), library / "generalist")
    refused(asterism("explain", library, "The court"), "stale")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"text": "ok"}\nnot json\n', "not JSON"),
        (b'{"text": "caf\xe9"}\n', "UTF-8"),
        (b'{"txt": "x"}\n', "no text"),
        (b"\x1f\x8bnope", "read"),
    ],
)
def test_a_bad_file_of_text(asterism, library, tmp_path, content, word):
    before = (library / "constellation" / "index.json").read_bytes()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "legal.train.jsonl").write_bytes(content)
    refused(asterism("index", library, "--data", tmp_path / "texts"), word, "legal.train.jsonl")
    assert (library / "constellation" / "index.json").read_bytes() == before


def test_a_folder_without_texts_of_a_domain(asterism, library, data, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "medicine.train.jsonl").write_bytes((data / "medical.train.jsonl").read_bytes())
    refused(asterism("index", library, "--data", tmp_path / "texts"), "did you mean 'medicine'?")


def test_a_truncated_model(asterism, library):
    file = library / "legal" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(asterism("explain", library, "The court"), "model.safetensors")


def test_a_specialist_of_another_shape(asterism, original, data, tmp_path):
    tiny.save(tiny.tiny_model("gpt2", n_embd=32), tmp_path / "wide")
    given = ("--generalist", original / "generalist", "--specialist", f"legal={tmp_path / 'wide'}")
    refused(asterism("index", tmp_path / "new", "--data", data, *given), "another architecture", "n_embd is 32")
    assert not (tmp_path / "new" / "library.json").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("index", "--orthogonalisation", "gramschmidt"), "gram_schmidt"),
        (("index", "--noise", "-1"), "noise"),
        (("index", "--orthogonal", "none"), "--orthogonalisation"),
        (("index", "--specialist", "legal"), "name=FOLDER"),
        (("compose", "text"), "--out"),
        (("compose", "text", "--out", "x", "--rank", "3"), "--as adapter"),
        (("compose", "text", "--out", "x", "--mix", "specialists", "--scale", "2"), "deltas"),
        (("compose", "text", "--out", "x", "--layers", "99"), "99"),
        (("explain", "  "), "empty"),
        (("explain", "caf\udce9"), "UTF-8"),
        (("explain", "text", "--device", "warp"), "warp"),
        (("explain", "text", "--settings", "nowhere.yaml"), "nowhere.yaml"),
        (("explain", "text", "--dtype", "float8"), "bfloat16"),
        (("train", "generalst/x", "--data", "x"), "x"),
        (("evaluate", "--data", "nowhere"), "nowhere"),
    ],
)
def test_values_that_no_command_takes(asterism, original, data, arguments, word):
    given = [*arguments, "--data", data] if arguments[0] == "index" else arguments
    refused(asterism(given[0], original, *given[1:]), word)


def test_an_unknown_command(asterism):
    refused(asterism("indx"), "Did you mean 'index'?")


def test_a_full_disk_is_told_and_leaves_what_was_there(asterism, library, data, monkeypatch):
    import errno

    import asterism.constellation.store as store

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (library / "constellation" / "index.json").read_bytes()
    monkeypatch.setattr(store, "write_tensors", full)
    refused(asterism("index", library, "--data", data), "No space left", "free some space")
    assert (library / "constellation" / "index.json").read_bytes() == before


def test_an_interruption_says_how_to_go_on(asterism, original, monkeypatch):
    import asterism.constellation.diagnosis as diagnosis

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnosis, "diagnose", interrupted)
    ran = asterism("diagnose", original)
    assert (ran.code, ran.out) == (130, "")
    assert "same command goes on" in ran.err


def test_memory_that_runs_out_is_told(asterism, original, monkeypatch):
    import asterism.constellation.diagnosis as diagnosis

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(diagnosis, "diagnose", full)
    refused(asterism("diagnose", original), "CUDA out of memory")
