"""Settings of the merges that look at data; importing them loads no model library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asterism.core.settings import Settings


class FisherSettings(Settings):
    """Fisher-weighted merging (Matena & Raffel 2022, arXiv:2111.09832)."""

    max_length: int = Field(default=256, ge=2)
    """Tokens a text is cut to."""
    floor: float = Field(default=1e-6, ge=0)
    """Least information an entry counts with, as a share of the mean over the tensor's entries and the models."""


class RegMeanSettings(Settings):
    """RegMean (Jin et al. 2023, arXiv:2212.09849)."""

    max_length: int = Field(default=256, ge=1)
    """Tokens a text is cut to."""
    alpha: float = Field(default=0.9, ge=0, lt=1)
    """Factor on what is off the diagonal of the inputs' inner products; near 1 the equations may have no single solution."""


class AdaMergingSettings(Settings):
    """AdaMerging (Yang et al. 2024, arXiv:2310.02575); steps, learning rate, batch and start are the authors'."""

    max_length: int = Field(default=256, ge=1)
    """Tokens a text is cut to."""
    each: Literal["model", "layer", "parameter"] = "layer"
    """What has a weight of its own: a specialist's whole delta, its part in each block (embeddings, last norm and head each being one
    more), or in each parameter."""
    start: float = Field(default=0.3, ge=0, le=1)
    """Every weight before the first step."""
    steps: int = Field(default=500, ge=1)
    """Steps of Adam."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam's."""
    batch_size: int = Field(default=16, ge=1)
    """Texts of each specialist a step."""
    seed: int = Field(default=42, ge=0)
    """Seed of the order of the texts."""
