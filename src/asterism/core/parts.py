"""What interrupted work has finished: tensors kept in a folder beside the result, used again when what they come from is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asterism.core.storage import read_json, read_tensors, write_json, write_tensors


class Parts:
    """A folder of finished tensors for one origin; another origin's parts are thrown away."""

    def __init__(self, folder: Path, origin: str) -> None:
        self.folder = folder
        mark = folder / "origin.json"
        if folder.exists() and (not mark.exists() or read_json(mark) != origin):
            shutil.rmtree(folder)
        write_json(mark, origin)

    def tensors(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The part called `name`, made now unless an earlier run has finished it."""
        path = self.folder / f"{name.replace(':', '_').replace('@', '_')}.safetensors"
        if not path.exists():
            write_tensors(path, make())
        return read_tensors(path)

    def remove(self) -> None:
        """Forget everything: the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def passing_parts(folder: Path, origin: str) -> Iterator[Parts]:
    """Parts that only a kill or Ctrl-C leaves behind: removed when the block ends, and on an error."""
    parts = Parts(folder, origin)
    try:
        yield parts
    except Exception:
        parts.remove()
        raise
    parts.remove()
