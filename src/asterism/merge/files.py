"""A checkpoint written tensor by tensor: shards laid out beforehand, filled by a thread beside the arithmetic; a killed run resumes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import StorageError
from asterism.core.storage import alone, put_in_place, told_as_storage_error, write_json
from asterism.merge.streams import Stream

SHARD_BYTES = 5_000_000_000
"""Most bytes of tensors a file, as transformers saves them."""
KINDS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_SYNC_BYTES = 1 << 28  # written between two entries of the journal: what a kill may cost
_JOURNAL = ".journal"


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies: its shard and the bytes in that file."""

    shard: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """All files of a checkpoint before a byte of weights is written."""

    slots: Mapping[str, Slot]
    headers: Mapping[str, bytes]
    """Shard -> what its file begins with."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {shard: max(slot.start + slot.nbytes for slot in self.slots.values() if slot.shard == shard) for shard in self.headers}

    @property
    def index(self) -> dict[str, Any] | None:
        """What `model.safetensors.index.json` holds; None for a single file."""
        if len(self.headers) == 1:
            return None
        total = sum(slot.nbytes for slot in self.slots.values())
        return {"metadata": {"total_size": total}, "weight_map": {name: slot.shard for name, slot in self.slots.items()}}


def laid_out(tensors: Mapping[str, tuple[Sequence[int], torch.dtype]], shard_bytes: int = SHARD_BYTES) -> Layout:
    """Shards of at most `shard_bytes` of tensors, in the order given; a tensor larger than that has a shard of its own."""
    groups: list[dict[str, int]] = [{}]
    for name, (shape, dtype) in tensors.items():
        size = prod(shape) * dtype.itemsize
        if groups[-1] and sum(groups[-1].values()) + size > shard_bytes:
            groups.append({})
        groups[-1][name] = size
    slots, headers = {}, {}
    for number, group in enumerate(groups, 1):
        shard = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, size in group.items():
            shape, dtype = tensors[name]
            entries[name] = {"dtype": KINDS[dtype], "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        headers[shard] = len(text).to_bytes(8, "little") + text
        for name in group:
            start = len(headers[shard]) + entries[name]["data_offsets"][0]
            slots[name] = Slot(shard, start, group[name])
    return Layout(slots, headers)


class Output:
    """The checkpoint while it is written, tensor after tensor as they lie in the files. Use `writing`."""

    def __init__(self, folder: Path, layout: Layout, done: dict[str, Any]) -> None:
        self.folder, self.layout, self.done = folder, layout, done
        """done: tensor -> what an earlier run of the same work noted of it."""
        self._stream: tuple[str, Stream] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._waiting: Future | None = None
        self._noted: dict[str, Any] = {}
        self._unsynced = 0

    def write(self, name: str, tensor: Tensor, note: Any = None) -> None:
        """Hand one tensor over: it is written while the caller goes on, and must not be changed before the next call returns."""
        self._wait()
        self._waiting = self._thread.submit(self._write, name, tensor, note)

    def close(self) -> None:
        """Everything handed over is on the disk, or the error that kept it from there is raised."""
        try:
            self._wait()
            self._finish()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Stop writing; what the journal names stays for the next run."""
        self._thread.shutdown(cancel_futures=True)
        if self._stream is not None:
            self._stream[1].abandon()
            self._stream = None

    def _wait(self) -> None:
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.result()

    def _write(self, name: str, tensor: Tensor, note: Any) -> None:
        slot = self.layout.slots[name]
        if self._stream is None or (self._stream[0], self._stream[1].place) != (slot.shard, slot.start):
            self._finish()
            self._stream = slot.shard, Stream(self.folder / slot.shard, slot.start)
        self._stream[1].write(tensor.contiguous().reshape(-1).view(torch.uint8))
        self._noted[name] = note
        self._unsynced += slot.nbytes
        if self._unsynced >= _SYNC_BYTES:
            self._stream[1].sync()
            self._note(self._stream[1].handed)

    def _finish(self) -> None:
        """End the stream: all that was noted is on the disk."""
        if self._stream is not None:
            (_, stream), self._stream = self._stream, None
            stream.close()
            self._note(None)

    def _note(self, upto: int | None) -> None:
        """Enter into the journal the tensors that lie before `upto` in their file, or all."""
        ends = {name: self.layout.slots[name].start + self.layout.slots[name].nbytes for name in self._noted}
        lasting = {name: note for name, note in self._noted.items() if upto is None or ends[name] <= upto}
        with open(self.folder / _JOURNAL, "a", encoding="utf-8") as journal:
            journal.writelines(json.dumps([name, note]) + "\n" for name, note in lasting.items())
            journal.flush()
            os.fsync(journal.fileno())
        self.done |= lasting
        self._noted = {name: note for name, note in self._noted.items() if name not in lasting}
        self._unsynced = 0


@contextmanager
def writing(out: Path, layout: Layout, origin: str) -> Iterator[Output]:
    """An Output beside `out` that takes `out`'s place when the block ends well.

    On an error nothing is left; after a kill (or Ctrl-C) the next run of the same `origin` goes on with what is there. Whatever else the
    block writes into `folder` is part of the result. Raises StorageError when the disk has too little room, before anything is written,
    or when another process writes the same output.
    """
    folder = out.with_name(f".{out.name}.merging")
    with told_as_storage_error(out), alone(out):
        folder.mkdir(exist_ok=True)
        output = None
        try:
            output = Output(folder, layout, _resumed(folder, layout, origin))
            yield output
            output.close()
            if layout.index is not None:
                write_json(folder / "model.safetensors.index.json", layout.index)
            (folder / _JOURNAL).unlink()
            put_in_place(folder, out)
        except BaseException as error:
            if output is not None:
                output.abandon()
            if isinstance(error, Exception):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _resumed(folder: Path, layout: Layout, origin: str) -> dict[str, Any]:
    """What an interrupted run of the same work left finished; else empty files of full size."""
    journal = folder / _JOURNAL
    lines = journal.read_text("utf-8").splitlines() if journal.is_file() else []
    if lines and lines[0] == origin and all((folder / shard).is_file() for shard in layout.headers):
        found = {}
        for line in lines[1:]:
            with suppress(ValueError):  # the last line may be cut
                name, note = json.loads(line)
                found[name] = note
        return found
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    sizes = layout.sizes
    room = shutil.disk_usage(folder).free
    if sum(sizes.values()) > room:
        met = f"{folder.parent} has {room / 1e9:.2f} GB free, the output takes {sum(sizes.values()) / 1e9:.2f} GB"
        raise StorageError("The disk has too little room.", met=met, mend="free some space or choose another place")
    for shard, header in layout.headers.items():
        with open(folder / shard, "wb") as file:
            file.write(header)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, sizes[shard])
            else:
                file.truncate(sizes[shard])
    journal.write_text(origin + "\n", "utf-8")
    return {}
