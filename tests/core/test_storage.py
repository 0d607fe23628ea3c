"""Files are whole or absent: after an error, a full disk, a killed process."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asterism.core import storage
from asterism.core.errors import StorageError
from asterism.core.storage import digest_of, file_digest, inside, read_json, read_tensors, replacing, write_json, write_tensors


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def folder_of(path, text):
    path.mkdir(parents=True)
    (path / "a.txt").write_text(text)
    (path / "inner").mkdir()
    (path / "inner" / "b.txt").write_text(text)


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "value.json"
    write_json(path, {"a": 1, "name": "Löwdin"})
    write_json(path, {"a": 2, "name": "Löwdin"})
    assert read_json(path) == {"a": 2, "name": "Löwdin"}
    assert "Löwdin" in path.read_text("utf-8")
    assert os.listdir(path.parent) == ["value.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    folder_of(tmp_path / "out", "old")
    (tmp_path / "out" / "only-old.txt").write_text("old")
    with replacing(tmp_path / "out") as temporary:
        folder_of(temporary, "new")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.txt", "inner"]
    assert (tmp_path / "out" / "inner" / "b.txt").read_text() == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_link_points_at_is_not_touched(tmp_path):
    folder_of(tmp_path / "real", "real")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "out") as temporary:
        folder_of(temporary, "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert (tmp_path / "real" / "a.txt").read_text() == "real"
    assert sorted(os.listdir(tmp_path)) == ["out", "real"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("as_folder", [True, False])
def test_an_error_midway_leaves_the_old(tmp_path, error, as_folder):
    write_json(tmp_path / "out", "old")

    def half() -> None:
        with replacing(tmp_path / "out") as temporary:
            folder_of(temporary, "new") if as_folder else temporary.write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert read_json(tmp_path / "out") == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("what", ["os.fsync", "os.replace", "pathlib.Path.write_text", "pathlib.Path.mkdir"])
def test_a_full_disk_leaves_the_old_and_is_told(tmp_path, monkeypatch, what):
    path = tmp_path / "value.json"
    write_json(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(what, full)
        with pytest.raises(StorageError) as caught:
            write_json(path, "new")
    mend = "free some space or choose another place; what was there is untouched"
    assert str(caught.value) == f"Could not write.\n  met:  {path}: No space left on device\n  mend: {mend}"
    assert read_json(path) == "old"
    assert os.listdir(tmp_path) == ["value.json"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_folder_whose_renaming_fails_is_put_back(tmp_path, monkeypatch, at):
    folder_of(tmp_path / "out", "old")
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(source)
        full() if len(calls) == at else rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StorageError, match="Could not write"), replacing(tmp_path / "out") as temporary:
        folder_of(temporary, "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from asterism.core.storage import replacing
with replacing(sys.argv[1]) as temporary:
    if sys.argv[2] == "folder":
        temporary.mkdir()
        temporary = temporary / "a.txt"
    with open(temporary, "w") as file:
        file.write("half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_killed_process_leaves_the_old(tmp_path, kind):
    for name in ("old", "none"):
        path = tmp_path / name
        if name == "old":
            folder_of(path, "old") if kind == "folder" else path.write_text("old")
        killed = subprocess.run([sys.executable, "-c", KILLED, path, kind], capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert ((tmp_path / "old" / "a.txt") if kind == "folder" else tmp_path / "old").read_text() == "old"
    assert not (tmp_path / "none").exists()
    (tmp_path / "old").is_dir() or storage.write_json(tmp_path / "old", "new")  # what the dead process left is not in the way
    assert all(name in ("old",) or name.startswith(".") for name in os.listdir(tmp_path))


def test_a_place_is_written_by_one_process_at_a_time(tmp_path):
    out, lock = tmp_path / "new" / "out", tmp_path / "new" / ".out.lock"
    with storage.alone(out):
        with (
            pytest.raises(StorageError, match=r"Another process is writing there.\n  met:  .*out\n  mend: wait for it"),
            storage.alone(out),
        ):
            raise AssertionError
        with storage.alone(out.with_name("other")):
            assert lock.exists()
    assert os.listdir(tmp_path / "new") == []
    lock.write_text("")  # a killed process left it
    with storage.alone(out):
        pass
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
    lock.unlink()  # who held it went away between our opening and our locking
    assert not storage._locked(descriptor, lock)
    os.close(descriptor)


def test_a_place_is_looked_at_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    storage.check_writable(tmp_path / "new" / "folder" / "page.html")
    storage.check_writable(tmp_path / "file")
    for path, told in ((tmp_path, "a folder lies there"), (tmp_path / "file" / "page.html", "file cannot be written to")):
        with pytest.raises(StorageError, match=told):
            storage.check_writable(path)
    assert os.listdir(tmp_path) == ["file"]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match=r"^Could not write.\n  met:  .*file/value.json: "):
        write_json(tmp_path / "file" / "value.json", 1)
    with pytest.raises(StorageError, match="Not a place to write to"):
        write_json("/", 1)
    with pytest.raises(StorageError, match="Not a place to write to"):
        storage.vacant(".", "merge.json", "merge")
    with pytest.raises(StorageError, match="Could not write"), replacing(tmp_path / "file") as temporary:
        folder_of(temporary, "a folder where a file is")
    assert (tmp_path / "file").read_text() == "mine"


def test_json_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(StorageError, match=r"^A file is missing.\n  met:  .*none.json\n  mend: make it again"):
        read_json(tmp_path / "none.json")
    for content in (b'{"a": ', b"\xff\xfe", b""):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(StorageError, match=r"^A file is damaged.\n  met:  .*bad.json: "):
            read_json(tmp_path / "bad.json")


def test_what_is_not_json_is_not_written(tmp_path):
    for value in (float("nan"), {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / "value.json", value)
    assert os.listdir(tmp_path) == []


def test_tensors_come_back_to_the_bit(tmp_path):
    whole = torch.randn(4, 6)
    given = {
        "whole": whole,
        "transposed": whole.T,
        "row": whole[1],
        "again": whole,
        "half": whole.bfloat16(),
        "count": torch.arange(3),
        "none": torch.empty(0, 5),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
    }
    write_tensors(tmp_path / "t.safetensors", given, {"format_version": "1"})
    got = read_tensors(tmp_path / "t.safetensors")
    assert got.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(got[name], tensor), name
        assert got[name].dtype == tensor.dtype
    assert got["transposed"].shape == (6, 4)


def test_a_full_disk_while_tensors_are_written(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    path = tmp_path / "t.safetensors"
    write_tensors(path, {"a": torch.ones(2)})

    def failing(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", failing)
    with pytest.raises(StorageError, match=r"^Could not write.\n  met:  .*t.safetensors: .*No space left on device"):
        write_tensors(path, {"a": torch.zeros(2)})
    assert torch.equal(read_tensors(path)["a"], torch.ones(2))


def test_torchs_own_write_errors_are_worded_and_others_pass(tmp_path):
    with pytest.raises(StorageError, match="Could not write"), storage.told_as_storage_error(tmp_path):
        raise RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/0")
    with pytest.raises(RuntimeError, match="something else"), storage.told_as_storage_error(tmp_path):
        raise RuntimeError("something else")


def test_tensor_files_that_are_missing_truncated_or_corrupt(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(StorageError, match=r"^A tensor file is missing.\n  met:  .*t.safetensors"):
        read_tensors(path)
    write_tensors(path, {"a": torch.arange(100.0)})
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:20], b"", b"\xff" * 100, whole[:8] + b"x" + whole[9:]):
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=r"^A tensor file is damaged.\n  met:  .*t.safetensors: "):
            read_tensors(path)


def test_digests(tmp_path):
    assert digest_of("a", {"x": 1, "y": [2]}) == digest_of("a", {"y": [2], "x": 1})
    assert len({digest_of("a", "b"), digest_of("b", "a"), digest_of("ab"), digest_of(["a", "b"]), digest_of("a")}) == 5
    assert digest_of("\ud800") != digest_of("\ud801")
    want = hashlib.sha256(json.dumps([["é", 1]], separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()
    assert digest_of(["é", 1]) == want
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_paths_stay_inside(tmp_path):
    (tmp_path / "in").mkdir()
    assert inside(tmp_path, "in/x") == (tmp_path / "in" / "x").resolve()
    assert inside(tmp_path, "in/../in/x") == (tmp_path / "in" / "x").resolve()
    (tmp_path / "in" / "way-out").symlink_to(tmp_path.parent)
    for leaving in ("..", "in/../../x", "/etc/passwd", "in/way-out/x", str(Path(tmp_path.name) / ".." / ".." / "x")):
        with pytest.raises(StorageError) as caught:
            inside(tmp_path, leaving)
        assert str(caught.value) == f"A path leaves its folder.\n  met:  {leaving}\n  mend: name something inside {tmp_path.resolve()}"
