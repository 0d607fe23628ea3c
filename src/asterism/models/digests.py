"""Content identity of a model's folder, remembered by path, size and time so that weights are hashed once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from asterism.core.errors import StorageError
from asterism.core.storage import digest_of, file_digest, read_json, write_json

CACHE = ".digests.json"
FILES = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.*",
    "merges.txt",
)
"""What decides a model's answers: weights, config and tokenizer."""


def folder_digest(folder: Path, root: Path) -> str:
    """SHA-256 over the names and bytes of a model's weight, config and tokenizer files.

    Each file's digest is kept in `root`/.digests.json under its path, size and time of change in nanoseconds, so an
    unchanged file is not read again. A cache that is damaged or cannot be written only costs time.
    """
    try:
        known: Any = read_json(root / CACHE)
    except StorageError:
        known = None
    known = known if isinstance(known, dict) else {}
    fresh = dict(known)
    parts = []
    for file in sorted({file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}):
        state, place = file.stat(), _place(file, root)
        entry = known.get(place)
        if not (
            isinstance(entry, dict)
            and entry.get("size") == state.st_size
            and entry.get("mtime_ns") == state.st_mtime_ns
            and entry.get("sha256")
        ):
            entry = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": file_digest(file)}
        fresh[place] = entry
        parts.append([file.name, entry["sha256"]])
    if fresh != known and root.is_dir():
        with suppress(StorageError):
            write_json(root / CACHE, fresh)
    return digest_of(parts)


def _place(file: Path, root: Path) -> str:
    whole = file.absolute()
    return str(whole.relative_to(root.absolute())) if whole.is_relative_to(root.absolute()) else str(whole)
