"""Training text from the Hugging Face Hub (or a folder that `datasets` can read), streamed: nothing is downloaded but what is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from asterism.core.errors import DataError, UnknownName
from asterism.core.progress import track

MEND = 'give a file of {"text": ...} lines, a folder of <domain>.train.jsonl files, or the Hub id of a dataset with a column of text'


def dataset_texts(source: str, *, column: str = "text", split: str = "train", limit: int | None = None) -> list[str]:
    """The first `limit` texts of a dataset in its own order (None: all), from `column` of `split`; blank texts are passed over.

    `source` is a Hub id, `owner/name` or `owner/name:configuration`, or a folder of JSON, Parquet, CSV or text files.
    Raises DataError when it cannot be had or holds no text, UnknownName for a column that it has not.
    """
    name, _, configuration = source.partition(":")
    with _still(), _told(source):
        from datasets import load_dataset

        rows: Any = load_dataset(name, configuration or None, split=split, streaming=True)
        columns = rows.column_names
        first = next(iter(rows), None)
    if first is None:
        raise DataError("The dataset has no rows.", met=f"{source}, split {split}", mend=MEND)
    if column not in (columns or first):
        raise UnknownName(f"column in {source}", column, columns or first)
    if not isinstance(first[column], str):
        raise DataError("The dataset's column is not text.", met=f"{column} of {source}: {type(first[column]).__name__}", mend=MEND)
    with _still(), _told(source):
        texts = (row[column] for row in rows)
        found = list(track(islice((text for text in texts if text and text.strip()), limit), "reading texts", limit))
    if not found:
        raise DataError("The dataset has no text.", met=f"{column} of {source}", mend=MEND)
    return found


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
