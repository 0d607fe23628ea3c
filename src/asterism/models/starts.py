"""What training starts from: texts by file, folder or `datasets` id, and a model by path or Hub id or from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from asterism.core.corpus import GENERAL, read_corpus, read_texts
from asterism.core.errors import StorageError, UnknownName
from asterism.models.datasets import dataset_texts, is_dataset
from asterism.models.examples import Example, read_examples
from asterism.models.scratch import new_model
from asterism.models.silence import silent
from asterism.models.tokenizers import train_tokenizer

GENERALIST = "generalist"
Shape = Literal["gpt2", "qwen2", "llama"]


def training_texts(
    data: str, name: str, *, share: float = 0.15, seed: int = 42, column: str = "text", limit: int | None = None
) -> list[str]:
    """Texts to train `name` on: a file's, a folder's, or the first `limit` of a dataset by its Hub id (its `train` split's `column`).

    A folder gives a specialist its own `<name>.train` file, and the generalist `general.train` with `share` of each other domain.
    """
    place = Path(data)
    if place.is_file():
        return read_texts(place)
    if not place.is_dir() and is_dataset(data):
        return dataset_texts(data, column=column, limit=limit)
    train = read_corpus(place).train
    if name != GENERALIST:
        if name not in train:
            raise UnknownName("domain with training texts", name, train)
        return train[name]
    texts = list(train.get(GENERAL, []))
    for domain, own in train.items():
        if domain != GENERAL:
            texts += own[: max(1, round(share * len(own)))]
    Random(seed).shuffle(texts)
    return texts


def training_examples(data: str, name: str) -> list[Example]:
    """Examples to train `name` on: a file's, a dataset's by its Hub id or folder, or of a folder's <name>.train file."""
    files = [Path(data) / f"{name}.train{suffix}" for suffix in (".jsonl", ".jsonl.gz")]
    return read_examples(next((file for file in files if file.is_file()), data))


def pretrained(source: str, *, dtype: torch.dtype | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model (in `dtype`, or else as it is stored) and its tokenizer by folder or Hub id; StorageError when they cannot be had."""
    try:
        with silent():
            return AutoModelForCausalLM.from_pretrained(source, dtype=dtype or "auto"), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        met = f"{source}: {str(error).splitlines()[0]}"
        raise StorageError("The model cannot be loaded.", met=met, mend="give a folder or the Hub id of a causal LM") from None


def from_nothing(
    texts: Sequence[str],
    shape: Shape = "gpt2",
    *,
    hidden: int = 192,
    blocks: int = 6,
    vocabulary: int = 8192,
    positions: int = 512,
    tokenizer: str | None = None,
    seed: int = 42,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A randomly initialised model of a named shape, and a tokenizer of at most `vocabulary` tokens learnt from `texts`.

    With the folder or Hub id of a `tokenizer` that one is taken, whole, and nothing is learnt.
    """
    if tokenizer is not None:
        taken = tokenizer_at(tokenizer)
        return new_model(shape, taken, hidden=hidden, blocks=blocks, positions=positions, seed=seed), taken
    learnt = train_tokenizer(texts, vocabulary)
    model = new_model(shape, learnt, hidden=hidden, blocks=blocks, positions=positions, seed=seed)
    return model, _as_loaded(learnt, model)


def tokenizer_at(source: str) -> PreTrainedTokenizerBase:
    """A tokenizer by folder or Hub id; StorageError when it cannot be had."""
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        met = f"{source}: {str(error).splitlines()[0]}"
        raise StorageError("The tokenizer cannot be loaded.", met=met, mend="give a folder or the Hub id of one") from None


def _as_loaded(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that `AutoTokenizer` will make of a saved one: for some families another class, which splits words its own way."""
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)
