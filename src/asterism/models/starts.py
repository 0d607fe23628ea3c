"""What training starts from: texts by file, folder or `datasets` id, and a model by path or Hub id or from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Literal

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from asterism.core.corpus import GENERAL, read_corpus, read_texts
from asterism.core.errors import DataError, StorageError, UnknownName
from asterism.models.scratch import new_model
from asterism.models.tokenizers import train_tokenizer

GENERALIST = "generalist"
Shape = Literal["gpt2", "qwen2", "llama"]


def training_texts(data: str, name: str, *, share: float = 0.15, seed: int = 42) -> list[str]:
    """Texts to train `name` on: a file's, a folder's, or those of a dataset by its Hub id (its `train` split's `text` column).

    A folder gives a specialist its own `<name>.train` file, and the generalist `general.train` with `share` of each other domain.
    """
    place = Path(data)
    if place.is_file():
        return read_texts(place)
    if not place.is_dir():
        return _dataset(data)
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


def pretrained(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer by folder or Hub id; StorageError when they cannot be had."""
    try:
        return AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
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
    seed: int = 42,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A randomly initialised model of a named shape, and a tokenizer of at most `vocabulary` tokens learnt from `texts`."""
    tokenizer = train_tokenizer(texts, vocabulary)
    model = new_model(shape, tokenizer, hidden=hidden, blocks=blocks, positions=positions, seed=seed)
    return model, _as_loaded(tokenizer, model)


def _as_loaded(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer that `AutoTokenizer` will make of a saved one: for some families another class, which splits words its own way."""
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


def _dataset(name: str) -> list[str]:
    from datasets import load_dataset

    mend = 'give a file of {"text": ...} lines, a folder of <domain>.train.jsonl files, or the Hub id of a dataset with a `text` column'
    try:
        rows: Any = load_dataset(name, split="train")
    except Exception as error:  # the Hub client and the builders raise many kinds; each means that there is no text
        raise DataError(
            "No training text could be had.", met=f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}", mend=mend
        ) from None
    if "text" not in rows.column_names:
        raise DataError("The dataset has no `text` column.", met=f"{name}: {', '.join(rows.column_names)}", mend=mend)
    return [text for text in rows["text"] if text.strip()]
