"""Experts of tiny backbones: a config on disk, no weights, and a LoRA adapter beside it."""

from __future__ import annotations

import pytest

from asterism.fuse.experts import open_expert
from tests import tiny


@pytest.fixture
def expert(tmp_path):
    """make(name, family, ..., shape={changes of the config}, **of LoraConfig) -> Expert; its backbone has no weights on disk."""

    def make(name, family="llama", *, rank=2, seed=0, is_target=False, shape=None, **config):
        model = tiny.tiny_model(family, **(shape or {}))
        model.config.save_pretrained(tmp_path / f"{name}-base")
        folder = tiny.save_lora(model, tmp_path / name, seed, rank=rank, base=str(tmp_path / f"{name}-base"), **config)
        return open_expert(tmp_path / f"{name}-base", folder, name, is_target=is_target)

    return make
