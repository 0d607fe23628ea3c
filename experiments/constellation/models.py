"""Train a rung's generalist once and its specialists once a seed; finished models are reused, interrupted ones go on."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from asterism.core.corpus import GENERAL, Corpus
from asterism.core.errors import DataError
from asterism.core.storage import replacing
from asterism.models.library import Library
from asterism.models.starts import from_nothing, pretrained
from asterism.models.training import train
from experiments.constellation.rung import DOMAINS, Rung

GENERALIST = "generalist"


def generalist(rung: Rung, corpus: Corpus, folder: Path) -> Path:
    """The rung's generalist, trained here unless it lies there."""
    out, texts = folder / GENERALIST, mixed_texts(corpus, rung.share)
    if isinstance(rung.start, str):
        model, tokenizer = pretrained(rung.start)
        model = model.float()  # checkpoints load in the type they are stored in
    else:
        model, tokenizer = from_nothing(texts, seed=0, **rung.start.model_dump())
    if rung.generalist is None:
        return keep(model, tokenizer, out)
    return train(model, tokenizer, texts, out, rung.generalist)


def keep(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> Path:
    """Save a model and its tokenizer as they are at `out`, whole or not at all."""
    with replacing(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return out


def specialists(rung: Rung, corpus: Corpus, first: Path, folder: Path, seed: int) -> Library:
    """A library of one seed's specialists: each trained from the generalist at `first` on its own domain's text."""
    if not (folder / GENERALIST).exists():
        with replacing(folder / GENERALIST) as temporary:
            shutil.copytree(first, temporary)
    for domain in DOMAINS:
        model = AutoModelForCausalLM.from_pretrained(first)
        train(model, AutoTokenizer.from_pretrained(first), corpus.train[domain], folder / domain, rung.specialist.changed(seed=seed))
    if not (folder / "library.json").exists():
        Library.create(folder, GENERALIST, {name: name for name in DOMAINS})
    return Library.open(folder, device=device())


def device() -> str:
    """An accelerator where there is one, which `train` uses too, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found.type if found else "cpu"


def mixed_texts(corpus: Corpus, share: float) -> list[str]:
    """General text and a share of each domain's, shuffled: what the generalist reads. DataError names what the data lack."""
    missing = [name for name in (GENERAL, *DOMAINS) if not corpus.train.get(name)]
    if missing:
        mend = "give every folder with --data; the code domain is built from installed packages (README.md here)"
        raise DataError("The data lack training text.", met=", ".join(missing), mend=mend)
    texts = list(corpus.train[GENERAL])
    for domain in DOMAINS:
        own = corpus.train[domain]
        texts += own[: max(1, round(share * len(own)))] if share else []
    Random(0).shuffle(texts)
    return texts
