"""Checkpoints written tensor by tensor: what safetensors reads back, what a failure leaves, what a kill costs."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from asterism.core.errors import StorageError
from asterism.merge import files, streams
from asterism.merge.files import Layout, laid_out, writing
from asterism.models.checkpoints import Checkpoint

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b": torch.randn(5, dtype=torch.float64),
    "c": torch.randn(7, 3).bfloat16(),
    "d": torch.randn(2, 2, 2).half(),
    "empty": torch.zeros(0, 4),
}


def layout(shard_bytes: int = files.SHARD_BYTES) -> Layout:
    return laid_out({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}, shard_bytes)


def write(out, plan: Layout, names=tuple(TENSORS), *, origin="origin", end: type[BaseException] | None = None):
    """Write these tensors and, where asked, end in that way; what was done before."""
    with writing(out, plan, origin) as output:
        before = dict(output.done)
        for name in names:
            if name not in before:
                output.write(name, TENSORS[name], {"letter": name})
        if end:
            raise end
    return before


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A place where a run was killed after two or three tensors, each of which was synced."""
    monkeypatch.setattr(files, "_SYNC_BYTES", 1)
    monkeypatch.setattr(streams, "ALIGNED", 1)
    monkeypatch.setattr(streams, "HELD", 8)
    monkeypatch.setattr(streams, "_direct", lambda path: None)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", layout(), ["a", "b", "c"], end=KeyboardInterrupt)
    return tmp_path / "model"


@pytest.mark.parametrize("shard_bytes", [files.SHARD_BYTES, 60, 1])
def test_what_is_written_is_read(tmp_path, shard_bytes):
    out, plan = tmp_path / "model", layout(shard_bytes)
    write(out, plan)
    assert len(plan.headers) == {files.SHARD_BYTES: 1, 60: 3, 1: 5}[shard_bytes]
    checkpoint = Checkpoint.open(out)
    assert set(checkpoint.names) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(checkpoint.tensor(name), tensor)
    with safe_open(next(iter(checkpoint.files)), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert {path.name for path in out.iterdir()} == {*plan.headers, *(["model.safetensors.index.json"] if plan.index else [])}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("direct", [True, False])
def test_a_stream_writes_what_is_appended_wherever_it_begins(tmp_path, monkeypatch, direct):
    if not direct:
        monkeypatch.setattr(streams, "_direct", lambda path: None)
    monkeypatch.setattr(streams, "HELD", 2 * streams.ALIGNED)
    generator = torch.Generator().manual_seed(1)
    whole = torch.randint(0, 256, (50_001,), dtype=torch.uint8, generator=generator)
    path = tmp_path / "file"
    path.write_bytes(bytes(50_001))
    at = 0
    for lengths in ((1, 5000, 4096, 0, 8192), (3, 20_000), (12_709,)):  # three runs, each going on where the last ended
        stream = streams.Stream(path, at)
        for length in lengths:
            stream.write(whole[at : at + length])
            at += length
            assert stream.place == at
            assert stream.handed <= at
        stream.close()
        assert path.read_bytes()[:at] == bytes(whole[:at].tolist())
    assert at == len(whole) == path.stat().st_size


def test_a_journal_names_only_what_was_handed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SYNC_BYTES", 1)  # a journal after each tensor, but blocks are never full
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "model", layout(), end=KeyboardInterrupt)
    assert write(tmp_path / "model", layout()) == {}


def test_what_else_is_put_there_belongs_to_it(tmp_path):
    with writing(tmp_path / "model", layout(), "origin") as output:
        (output.folder / "config.json").write_text("{}")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "model", layout(), "a", end=ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_goes_on(killed):
    assert not killed.exists()
    before = write(killed, layout())
    assert before["a"] == {"letter": "a"}
    assert "d" not in before
    checkpoint = Checkpoint.open(killed)
    assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in TENSORS.items())


def test_another_work_begins_anew(killed):
    assert write(killed, layout(), origin="another") == {}


def test_a_cut_journal_loses_its_last_line_alone(killed):
    journal = killed.with_name(".model.merging") / ".journal"
    origin, *lines = journal.read_text().splitlines()
    assert len(lines) >= 2
    journal.write_text("\n".join([origin, lines[0], lines[1][:3]]))
    assert set(write(killed, layout())) == {"a"}


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(StorageError, match="too little room"):
        write(tmp_path / "model", layout())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_is_told_with_the_place(tmp_path, monkeypatch):
    def full(self, name, tensor, note):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Output, "_write", full)
    with pytest.raises(StorageError, match="No space left") as error:
        write(tmp_path / "model", layout())
    assert str(tmp_path / "model") in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_two_at_one_place_are_refused(tmp_path):
    with writing(tmp_path / "model", layout(), "origin") as output:
        with pytest.raises(StorageError, match="Another process"):
            write(tmp_path / "model", layout())
        assert output.folder.is_dir()
