"""Texts of a task, parted before a router learns, and a record that keeps them apart."""

from __future__ import annotations

import json

import pytest

from asterism.core.errors import DataError, SettingsError, StorageError, UnknownName
from asterism.route.texts import TaskTexts, check_readable, check_unseen, heldout_texts, keep_texts, kept_texts, task_texts
from tests import tiny


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "math.train.jsonl", *({"text": f"m{n}"} for n in range(6)))
    write(tmp_path / "math.heldout.jsonl", {"text": "h0"}, {"text": "h1"})
    write(tmp_path / "code.train.jsonl", *({"text": f"c{n}"} for n in range(10)))
    write(tmp_path / "cross.math-code.jsonl", *({"text": f"x{n}"} for n in range(5)))
    return tmp_path


def test_a_file_is_parted_by_a_seed(tmp_path):
    file = write(tmp_path / "gsmhard.jsonl", *({"prompt": f"q{n}", "response": f"a{n}"} for n in range(20)))
    texts = task_texts(file, held_out=0.25, seed=7)
    assert (len(texts.train), len(texts.held_out)) == (15, 5)
    assert sorted(texts.train + texts.held_out) == sorted(f"q{n}\na{n}" for n in range(20))
    assert texts == task_texts(file, held_out=0.25, seed=7) != task_texts(file, held_out=0.25, seed=8)
    assert task_texts(file, held_out=0).held_out == []
    assert heldout_texts(file) == [f"q{n}\na{n}" for n in range(20)]


def test_a_folder_gives_a_domain_its_own_heldout_file(folder):
    assert task_texts(folder, "math") == TaskTexts([f"m{n}" for n in range(6)], ["h0", "h1"])
    assert heldout_texts(folder, "math") == ["h0", "h1"]


def test_a_domain_without_a_heldout_file_and_a_pair_are_parted(folder):
    code = task_texts(folder, "code", held_out=0.2)
    assert (len(code.train), len(code.held_out)) == (8, 2)
    pair = task_texts(folder, "code-math", held_out=0.4)
    assert sorted(pair.train + pair.held_out) == [f"x{n}" for n in range(5)]
    assert heldout_texts(folder, "math-code") == [f"x{n}" for n in range(5)]


def test_what_cannot_be_taken_from_a_folder_is_told(folder):
    with pytest.raises(SettingsError, match=r"several domains[^\0]*--domain, one of code, math, math-code"):
        task_texts(folder)
    with pytest.raises(UnknownName, match="did you mean 'math'"):
        task_texts(folder, "maths")
    with pytest.raises(DataError, match=r"no held-out texts[^\0]*code\.heldout\.jsonl"):
        heldout_texts(folder, "code")
    (folder / "law.heldout.jsonl").write_text('{"text": "l"}\n')
    with pytest.raises(DataError, match=r"no training texts[^\0]*law\.train\.jsonl"):
        task_texts(folder, "law")


def test_copies_of_a_text_stay_on_one_side(tmp_path):
    file = write(tmp_path / "twice.jsonl", *({"text": f"t{n % 10}"} for n in range(30)))
    texts = task_texts(file, held_out=0.3)
    assert (len(texts.train), len(texts.held_out)) == (21, 3)
    assert not set(texts.train) & set(texts.held_out)


def test_a_heldout_file_that_repeats_training_texts_is_refused(folder):
    write(folder / "math.heldout.jsonl", {"text": "h0"}, {"text": "m3"})
    with pytest.raises(DataError, match=r"among the training texts[^\0]*'m3'"):
        task_texts(folder, "math")


def test_a_file_has_no_domains(tmp_path):
    file = write(tmp_path / "task.jsonl", {"text": "a"}, {"text": "b"})
    for read in (task_texts, heldout_texts):
        with pytest.raises(SettingsError, match=r"A domain is chosen of a folder.\n  met:  math of .*task.jsonl"):
            read(file, "math")


def test_a_set_too_small_to_part_is_refused(tmp_path):
    with pytest.raises(DataError, match="Too few texts to hold some out"):
        task_texts(write(tmp_path / "few.jsonl", {"text": "a"}, {"text": "b"}), held_out=0.1)


def test_what_a_router_has_seen_is_known_again(tmp_path):
    keep_texts(tmp_path, TaskTexts(["one", "two"], ["three"]))
    assert kept_texts(tmp_path) == ["three"]
    check_unseen(tmp_path, ["three", "four"])
    with pytest.raises(DataError, match=rf"learnt from these texts[^\0]*{tmp_path}: 1 of them, e.g. 'two'"):
        check_unseen(tmp_path, ["four", "two"])
    assert "one" not in (tmp_path / "texts.json").read_text()


def test_held_out_texts_that_cannot_be_told_by_are_found_before_training():
    tokenizer = tiny.tiny_tokenizer()
    check_readable(tokenizer, ["three tokens at least"])
    for text in ("a", "ab"):
        with pytest.raises(DataError, match=rf"fewer than 3 tokens.\n  met:  '{text}'"):
            check_readable(tokenizer, ["three tokens at least", text])


def test_a_router_without_a_record_has_seen_nothing_and_a_damaged_one_is_told(tmp_path):
    assert kept_texts(tmp_path) == []
    check_unseen(tmp_path, ["one"])
    for record in ("[]", '{"seen": []}', '{"format_version": 9, "seen": [], "held_out": []}'):
        (tmp_path / "texts.json").write_text(record)
        with pytest.raises(StorageError, match="cannot be read"):
            kept_texts(tmp_path)
