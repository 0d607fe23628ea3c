"""Text through `datasets`, from local files: no network."""

from __future__ import annotations

import gzip
import json
import lzma

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


def test_several_columns_of_a_row_are_one_text(tmp_path):
    source = written(tmp_path / "set", [*ROWS[:2], {"text": "", "body": None, "number": 2}, {"text": "alone", "body": "", "number": 3}])
    assert dataset_texts(source, column=("body", "text")) == ["body 0\ntext 0", "body 1\ntext 1", "alone"]
    with pytest.raises(UnknownName, match="met:  'bdy'"):
        dataset_texts(source, column=("text", "bdy"))


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


NESTED = [
    {"id": n, "context": {"contexts": parts, "labels": ["AIM"]}}
    for n, parts in enumerate([["one", "two"], [], ["  "], ["three", "", "four"]])
]


def test_a_nested_column_of_strings_is_one_text_a_row(tmp_path):
    source = written(tmp_path / "set", NESTED)
    assert dataset_texts(source, column="context.contexts") == ["one\ntwo", "three\nfour"]
    assert dataset_texts(source, column="context.labels", limit=1) == ["AIM"]


def test_a_dot_in_a_columns_own_name_is_no_nesting(tmp_path):
    source = written(tmp_path / "set", [{"a.b": "whole", "a": {"b": "nested"}}])
    assert dataset_texts(source, column="a.b") == ["whole"]


def test_a_nested_column_that_is_not_there_or_not_text(tmp_path):
    source = written(tmp_path / "set", NESTED)
    with pytest.raises(UnknownName, match=r"met:  'context.context'\n  mend: did you mean 'context.contexts'\?"):
        dataset_texts(source, column="context.context")
    with pytest.raises(UnknownName, match=r"met:  'id.inner'"):
        dataset_texts(source, column="id.inner")
    with pytest.raises(DataError, match=r"column is not text.\n  met:  context of .*: dict"):
        dataset_texts(source, column="context")


@pytest.mark.parametrize(("suffix", "opened"), [(".gz", gzip.open), (".xz", lzma.open), ("", open)])
def test_files_by_their_own_address(tmp_path, suffix, opened):
    for part in (0, 1):
        with opened(tmp_path / f"train.part.{part}.jsonl{suffix}", "wt") as file:
            file.write(json.dumps({"text": f"part {part}"}) + "\n")
    (tmp_path / "other.py").write_text("raise RuntimeError", "utf-8")
    assert dataset_texts(f"{tmp_path}/train.part.1.jsonl{suffix}") == ["part 1"]
    assert dataset_texts(f"{tmp_path}/*.jsonl{suffix}") == ["part 0", "part 1"]


def test_no_text_at_all(tmp_path):
    with pytest.raises(DataError, match="The dataset has no text"):
        dataset_texts(written(tmp_path / "set", [{"text": " "}]))


@pytest.mark.parametrize(
    "source", ["no-such-owner/no-such-dataset", "no-such-owner/no-such-dataset:part", "not a name", "hf://datasets/a/b/c.jsonl.xz"]
)
def test_a_dataset_that_cannot_be_had(source):
    with pytest.raises(DataError) as caught:
        dataset_texts(source)
    assert str(caught.value).startswith(f"The dataset cannot be had.\n  met:  {source}: ")
    assert "<domain>.train.jsonl" in caught.value.mend


def test_nothing_is_printed(tmp_path, capfd):
    dataset_texts(written(tmp_path / "set", ROWS))
    assert capfd.readouterr() == ("", "")
