"""Text through `datasets`, from local files: no network."""

from __future__ import annotations

import json

import pytest

from asterism.core.errors import DataError, UnknownName
from asterism.models.datasets import dataset_texts

ROWS = [{"text": f"text {n}", "body": f"body {n}", "number": n} for n in range(5)]


def written(folder, rows, name="train.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(folder)


def test_texts_come_in_order(tmp_path):
    source = written(tmp_path / "set", ROWS)
    assert dataset_texts(source) == [f"text {n}" for n in range(5)]
    assert dataset_texts(source, limit=2) == ["text 0", "text 1"]
    assert dataset_texts(source, column="body", limit=3) == ["body 0", "body 1", "body 2"]


def test_blank_texts_are_passed_over_and_do_not_count(tmp_path):
    rows = [{"text": "one"}, {"text": "  \n"}, {"text": None}, {"text": ""}, {"text": "two"}, {"text": "three"}]
    assert dataset_texts(written(tmp_path / "set", rows), limit=2) == ["one", "two"]


def test_splits(tmp_path):
    written(tmp_path / "set", ROWS)
    source = written(tmp_path / "set", [{"text": "held"}], "test.jsonl")
    assert dataset_texts(source, split="test") == ["held"]
    with pytest.raises(DataError, match="The dataset cannot be had"):
        dataset_texts(source, split="tset")


def test_a_column_that_is_not_there_or_not_text(tmp_path):
    source = written(tmp_path / "set", ROWS)
    with pytest.raises(UnknownName, match=r"No such column in .*set.\n  met:  'txt'\n  mend: did you mean 'text'\?"):
        dataset_texts(source, column="txt")
    with pytest.raises(DataError, match=r"column is not text.\n  met:  number of .*: int"):
        dataset_texts(source, column="number")


def test_no_text_at_all(tmp_path):
    with pytest.raises(DataError, match="The dataset has no text"):
        dataset_texts(written(tmp_path / "set", [{"text": " "}]))


@pytest.mark.parametrize("source", ["no-such-owner/no-such-dataset", "no-such-owner/no-such-dataset:part", "not a name"])
def test_a_dataset_that_cannot_be_had(source):
    with pytest.raises(DataError) as caught:
        dataset_texts(source)
    assert str(caught.value).startswith(f"The dataset cannot be had.\n  met:  {source}: ")
    assert "<domain>.train.jsonl" in caught.value.mend


def test_nothing_is_printed(tmp_path, capfd):
    dataset_texts(written(tmp_path / "set", ROWS))
    assert capfd.readouterr() == ("", "")
