"""Libraries of random weights and texts of random tokens: speed does not depend on what a model knows."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from asterism.models.library import Library
from asterism.models.scratch import new_model
from asterism.models.tokenizers import train_tokenizer

NAMES = ("medical", "legal", "code", "science")


def random_library(
    root: Path, *, hidden: int, blocks: int, vocabulary: int, names: tuple[str, ...] = NAMES, shape: str = "gpt2"
) -> Library:
    """A generalist of random weights and specialists a little away from it, saved under `root` and opened."""
    tokenizer = random_tokenizer(vocabulary)
    model = new_model(shape, tokenizer, hidden=hidden, blocks=blocks)  # pyright: ignore[reportArgumentType]
    for seed, name in enumerate(("generalist", *names)):
        if name != "generalist":
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return Library.create(root, "generalist", {name: name for name in names})


def random_texts(library: Library, count: int, *, shortest: int, longest: int, seed: int) -> list[str]:
    """Texts of random words, each about `shortest` to `longest` tokens."""
    drawn = random.Random(seed)
    return [" ".join(_word(drawn) for _ in range(drawn.randint(shortest, longest))) for _ in range(count)]


def _word(drawn: random.Random) -> str:
    return "".join(drawn.choice("abcdefghijklmnop") for _ in range(2))


def random_tokenizer(vocabulary: int):
    """A tokenizer of about so many tokens, trained on random words."""
    drawn = random.Random(0)
    words = (" ".join("".join(drawn.choice("abcdefghijklmnop") for _ in range(drawn.randint(2, 9))) for _ in range(60)) for _ in range(300))
    return train_tokenizer(words, vocabulary)
