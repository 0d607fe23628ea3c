"""Folders of models to merge: a base of any family and what a test module puts beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import tiny


@pytest.fixture(scope="module")
def places(request, tmp_path_factory):
    """(family, dtype, changes of the config) -> a folder with `base` and what the module's `fill(base, folder)` saves there; made once."""
    made: dict[str, Path] = {}

    def of(family: str, dtype: torch.dtype = torch.float32, **changes) -> Path:
        key = f"{family}-{dtype}-{sorted(changes.items())}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(family)
            base = tiny.tiny_model(family, dtype=dtype, **changes)
            tiny.save(base, made[key] / "base")
            request.module.fill(base, made[key])
        return made[key]

    return of
