"""The folder that a merge or an extraction writes: free, or an earlier one's that holds nothing but what that one wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from asterism.core.errors import StorageError
from asterism.core.storage import read_json, vacant

_FILES = "files"


def place_for(out: str | Path, record: str, kind: str) -> Path:
    """`out`, where an earlier `kind`, told by its file `record`, is replaced whole; StorageError where anything else would go with it."""
    out = vacant(out, record, kind)
    if not (out / record).is_file():
        return out
    told = read_json(out / record)
    written = {record, *(told.get(_FILES, ()) if isinstance(told, dict) else ())}
    if others := sorted(path.name for path in out.iterdir() if path.name not in written):
        met = f"{out}: {', '.join(others[:3])}" + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        wrong = f"The output place holds files that the {kind} there did not write."
        raise StorageError(wrong, met=met, mend="move them, or choose another folder")
    return out


def listed(told: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A record that names its folder's files too, for `place_for`."""
    return {**told, _FILES: sorted(names)}
