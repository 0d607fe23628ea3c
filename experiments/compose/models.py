"""Train the experiment's generalist once and its specialists once a seed; finished models are reused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from asterism.core.corpus import GENERAL, Corpus
from asterism.models.settings import TrainingSettings
from asterism.models.tokenizers import train_tokenizer
from asterism.models.training import train

DOMAINS = ("medical", "legal", "code", "science")
"""The paper's order (FACTS.md section 1); Gram-Schmidt depends on it."""

SCALES = {
    "lab": dict(
        shape=dict(n_embd=192, n_layer=6, n_head=6, n_positions=256),
        vocabulary=8192,
        generalist=dict(steps=1500, batch_size=8, learning_rate=1e-3, schedule="cosine", warmup=0.05),
        specialist=dict(steps=200, batch_size=8, learning_rate=5e-4, schedule="linear", warmup=0.05),
    ),
    "pocket": dict(
        shape=dict(n_embd=32, n_layer=5, n_head=2, n_positions=64),
        vocabulary=512,
        generalist=dict(steps=4, batch_size=2, max_length=64, learning_rate=1e-3),
        specialist=dict(steps=2, batch_size=2, max_length=64, learning_rate=1e-3),
    ),
}
SHARE = 0.15
"""Share of each domain's training texts that the generalist sees."""


def build_libraries(corpus: Corpus, runs: Path, scale: str, seeds: tuple[int, ...]) -> dict[int, Path]:
    """One folder a seed holding `generalist` and a folder a specialist, all trained here from nothing."""
    recipe = SCALES[scale]
    first = _generalist(corpus, runs, recipe)
    return {seed: _specialists(corpus, first, runs / f"seed-{seed}", recipe, seed) for seed in seeds}


def _generalist(corpus: Corpus, runs: Path, recipe: dict) -> Path:
    texts = list(corpus.train[GENERAL])
    for domain in DOMAINS:
        own = corpus.train[domain]
        texts += own[: max(1, round(SHARE * len(own)))]
    random.Random(0).shuffle(texts)
    tokenizer_at = runs / "tokenizer"
    if not tokenizer_at.exists():
        everything = [text for part in corpus.train.values() for text in part]
        train_tokenizer(everything, recipe["vocabulary"]).save_pretrained(tokenizer_at)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_at)
    torch.manual_seed(0)
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = GPT2Config(vocab_size=len(tokenizer), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ends, **recipe["shape"])
    settings = TrainingSettings(seed=0, bf16=True, **recipe["generalist"])
    return train(GPT2LMHeadModel(config), tokenizer, texts, runs / "generalist", settings)


def _specialists(corpus: Corpus, generalist: Path, folder: Path, recipe: dict, seed: int) -> Path:
    if not (folder / "generalist").exists():
        shutil.copytree(generalist, folder / "generalist")
    for domain in DOMAINS:
        model = AutoModelForCausalLM.from_pretrained(generalist)
        settings = TrainingSettings(seed=seed, bf16=True, **recipe["specialist"])
        train(model, AutoTokenizer.from_pretrained(generalist), corpus.train[domain], folder / domain, settings)
    return folder
