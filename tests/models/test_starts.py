"""Where training starts: texts from files and folders, models from nothing."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from asterism.core.errors import DataError, SettingsError, StorageError, UnknownName
from asterism.models.scratch import SHAPES
from asterism.models.starts import from_nothing, pretrained, training_texts

TEXTS = ["The court heard the case of 1984: don't you agree?", "A café's patient, naïvely, waited 12 hours."] * 4


@pytest.fixture
def folder(tmp_path):
    for name, size in (("general", 6), ("legal", 20), ("code", 3)):
        rows = [json.dumps({"text": f"{name} text {n}"}) for n in range(size)]
        (tmp_path / f"{name}.train.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_a_specialist_reads_its_own_file_and_the_generalist_a_share_of_all(folder):
    assert training_texts(str(folder), "code") == [f"code text {n}" for n in range(3)]
    texts = training_texts(str(folder), "generalist", share=0.25)
    assert sorted(texts) == sorted([f"general text {n}" for n in range(6)] + [f"legal text {n}" for n in range(5)] + ["code text 0"])
    assert texts != sorted(texts)
    assert texts == training_texts(str(folder), "generalist", share=0.25)
    assert training_texts(str(folder / "legal.train.jsonl"), "anything") == [f"legal text {n}" for n in range(20)]


def test_an_unknown_domain_is_named(folder):
    with pytest.raises(UnknownName, match="did you mean 'legal'"):
        training_texts(str(folder), "legl")


def test_neither_file_nor_dataset():
    with pytest.raises(DataError, match="The dataset cannot be had"):
        training_texts("no-such/dataset", "legal")
    for path in ("./missing", "/no/such/folder", "texts.jsonl", "a/b/c"):
        with pytest.raises(DataError, match=f"No text there.\n  met:  {path.removeprefix('./')}\n"):
            training_texts(path, "legal")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tokenizer_reads_alike_before_and_after_it_is_saved(shape, tmp_path):
    model, tokenizer = from_nothing(TEXTS, shape, hidden=32, blocks=1, vocabulary=300)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS[:2], "résumé 3.14\n\n  def f(x):\n\treturn x"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model.config.vocab_size >= len(tokenizer)


def test_the_same_seed_gives_the_same_start():
    first, second, other = (from_nothing(TEXTS, hidden=32, blocks=1, vocabulary=300, seed=seed)[0] for seed in (1, 1, 2))
    names = dict(first.named_parameters())
    assert all(names[name].equal(p) for name, p in second.named_parameters())
    assert not all(names[name].equal(p) for name, p in other.named_parameters())


def test_a_width_that_no_head_divides():
    with pytest.raises(SettingsError, match="multiple of 32"):
        from_nothing(TEXTS, hidden=33, blocks=1, vocabulary=300)


def test_a_model_that_cannot_be_had(tmp_path):
    with pytest.raises(StorageError, match="cannot be loaded"):
        pretrained(str(tmp_path / "nowhere"))
