"""Training text from the Hugging Face Hub (or a folder that `datasets` can read), streamed: nothing is downloaded but what is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from asterism.core.errors import DataError, UnknownName
from asterism.core.progress import track

MEND = 'give a file of {"text": ...} lines, a folder of <domain>.train.jsonl files, or the Hub id of a dataset with a column of text'
BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}
"""How a source that names files is read, by their suffix; `.gz`, `.xz` and `.zst` may follow it."""


def dataset_texts(source: str, *, column: str | Sequence[str] = "text", split: str = "train", limit: int | None = None) -> list[str]:
    """The first `limit` texts of a dataset in its own order (None: all), from `column` of `split`; blank texts are passed over.

    `source` is a Hub id, `owner/name` or `owner/name:configuration`; a folder of JSON, Parquet, CSV or text files; or files
    themselves, e.g. `hf://datasets/owner/name/data/*.parquet` (for a dataset whose own loading script is no longer run; all of
    them are the split `train`). `column` may be nested, `outer.inner`; a list of strings there is one text, joined by newlines,
    and so are several columns of a row.
    Raises DataError when it cannot be had or holds no text, UnknownName for a column that it has not.
    """
    rows, columns, first = _opened(source, split)
    asked = [column] if isinstance(column, str) else column
    paths = [(own,) if own in (columns or first) else tuple(own.split(".")) for own in asked]
    for path in paths:
        _check(first, path, source)
    with _still(), _told(source):
        texts = ("\n".join(filter(None, (_text(row, path) for path in paths))) for row in rows)
        found = list(track(islice((text for text in texts if text.strip()), limit), "reading texts", limit))
    if not found:
        raise DataError("The dataset has no text.", met=f"{', '.join(asked)} of {source}", mend=MEND)
    return found


def dataset_rows(source: str, *, split: str = "train", limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` rows of a dataset in its own order (None: all); `source` as for `dataset_texts`; DataError without them."""
    rows, _, _ = _opened(source, split)
    with _still(), _told(source):
        return [dict(row) for row in track(islice(rows, limit), "reading rows", limit)]


def is_dataset(source: str) -> bool:
    """Whether a source is a folder or reads like an address or a Hub id, rather than a file that is missing."""
    is_path = source.startswith(("/", ".", "~")) or source.count("/") > 1 or ".json" in source
    return "://" in source or Path(source).expanduser().is_dir() or not is_path


def _opened(source: str, split: str) -> tuple[Any, list[str] | None, dict[str, Any]]:
    """Rows as they stream, the names of the columns where they are known, and the first row."""
    with _still(), _told(source):
        from datasets import load_dataset

        rows: Any = load_dataset(**_address(source), split=split, streaming=True)
        columns = rows.column_names
        first = next(iter(rows), None)
    if first is None:
        raise DataError("The dataset has no rows.", met=f"{source}, split {split}", mend=MEND)
    return rows, columns, first


def _address(source: str) -> dict[str, Any]:
    """What `load_dataset` is asked for: files by their builder, or a dataset and its configuration."""
    suffixes = [suffix for suffix in Path(source).suffixes if suffix not in (".gz", ".xz", ".zst")]
    builder = BUILDERS.get(suffixes[-1]) if suffixes else None
    if builder is not None and ("://" in source or "*" in source or Path(source).is_file()):  # a Hub id may end in `.csv`, too
        return {"path": builder, "data_files": source}
    name, _, configuration = source.partition(":")
    return {"path": name, "name": configuration or None}


def _check(row: Mapping[str, Any], path: tuple[str, ...], source: str) -> None:
    """UnknownName for a path that the first row has not, DataError for one that does not lead to text."""
    value: Any = row
    for depth, part in enumerate(path):
        if not isinstance(value, Mapping) or part not in value:
            inside = ".".join(path[:depth])
            known = value if isinstance(value, Mapping) else ()
            raise UnknownName(f"column in {source}", ".".join(path), [f"{inside}.{name}" if inside else name for name in known])
        value = value[part]
    strings = value if isinstance(value, list) else [value]
    if not all(isinstance(string, str) for string in strings):
        found = type(strings[0] if isinstance(value, list) else value).__name__
        raise DataError("The dataset's column is not text.", met=f"{'.'.join(path)} of {source}: {found}", mend=MEND)


def _text(row: Any, path: tuple[str, ...]) -> str:
    """The text at a path; an empty one where a row has none."""
    for part in path:
        row = row and row[part]
    return "\n".join(string for string in row if string) if isinstance(row, list) else row or ""


@contextmanager
def _told(source: str) -> Iterator[None]:
    """The Hub client and the builders raise many kinds of error; each means that there is no text."""
    try:
        yield
    except Exception as error:
        told = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError("The dataset cannot be had.", met=f"{source}: {told}", mend=MEND) from None


@contextmanager
def _still() -> Iterator[None]:
    """Without the progress bars of `datasets`."""
    from datasets.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
