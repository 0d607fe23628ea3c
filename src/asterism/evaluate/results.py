"""The evaluation's outcome on disk: raw rows as Parquet, everything else as results.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asterism.core.errors import StorageError
from asterism.core.storage import read_json, replacing, write_json

FORMAT = 1


def write_results(out: Path, results: dict[str, Any], rows: Sequence[dict]) -> None:
    """Write `rows.parquet`, then `results.json`, each whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    with replacing(out / "rows.parquet") as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
    write_json(out / "results.json", results)


def read_results(out: str | Path) -> tuple[dict[str, Any], list[dict]]:
    """(results, rows) written by `write_results`."""
    import pyarrow.parquet

    results = read_json(Path(out) / "results.json")
    if results.get("format_version") != FORMAT:
        raise StorageError("Results of another format.", met=results.get("format_version"), mend="evaluate again with this version")
    return results, pyarrow.parquet.read_table(Path(out) / "rows.parquet").to_pylist()
