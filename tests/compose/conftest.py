"""A library that holds one specialist of each kind, and random mixtures over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from asterism.constellation.mixture import Mixture
from asterism.models.anatomy import Anatomy
from asterism.models.library import Library
from tests import tiny

KINDS = ("full", "lora", "mlp", "other")
"""Names of the specialists of `kinds`, after what they are; `other` is wholly fine-tuned too."""


@pytest.fixture(scope="session")
def kinds(tmp_path_factory) -> Callable[[str], Library]:
    """family -> a float64 library with a full, a LoRA, an MLP-only and another full specialist; made once."""

    @cache
    def of(family: str) -> Library:
        return kinds_library(tmp_path_factory.mktemp(family), family)

    return of


def kinds_library(folder: Path, family: str, dtype: torch.dtype = torch.float64) -> Library:
    generalist = tiny.tiny_model(family, 0, dtype)
    base = tiny.save(generalist, folder / "generalist")
    tiny.save(tiny.perturbed(generalist, 1, 0.2), folder / "full")
    tiny.save_lora(generalist, folder / "lora", 2, rank=3, base=str(base))
    tiny.save(tiny.perturbed(generalist, 3, 0.2, "mlp"), folder / "mlp")
    tiny.save(tiny.perturbed(generalist, 4, 0.2), folder / "other")
    return Library.create(folder, str(base), {name: folder / name for name in KINDS})


def random_mixture(names: Sequence[str], anatomy: Anatomy, seed: int, *, joint: bool = False) -> Mixture:
    """Random weights at every node and at every module's nodes; columns sum to 1, or under `joint` everything does."""
    generator = torch.Generator().manual_seed(seed)

    def weights(out: int) -> torch.Tensor:
        raw = torch.rand(len(names), out, generator=generator) ** 2 + 1e-3
        return raw / (raw.sum() if joint else raw.sum(dim=0))

    hidden = weights(anatomy.hidden_size)
    sizes = {anatomy.module_of(name): anatomy.output_size(name) for name in anatomy.shapes if anatomy.block_of(name) is not None}
    return Mixture(tuple(names), hidden, hidden.mean(dim=1), {path: weights(out) for path, out in sizes.items()})


def left_padded(rows: int, length: int, seed: int) -> dict[str, torch.Tensor]:
    """Random tokens with 0, 1, 2, ... pads on the left, as `generate` wants them."""
    ids = torch.randint(3, 300, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, :row] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}
