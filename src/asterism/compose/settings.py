"""Settings of the compose layer; importing them loads no model library."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asterism.constellation.settings import MixtureSettings
from asterism.core.settings import Settings

RENEW = 64
"""New tokens between two mixtures of an answer. Made again from what was written, a mixture predicts the rest better; keys and values that
older mixtures left serve as well as new ones (experiments/constellation/updating.json)."""


class CompositionSettings(Settings):
    """Which parameters are composed and how a mixture's weights reach them. `paper()` gives the paper's choice."""

    layers: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"] = "all"
    """The last L blocks, a list of blocks counted from 0, or everything (blocks by node; embeddings, final norm and head by mean
    weight)."""
    node_map: Literal["hidden", "tiled", "mean", "per_module"] = "tiled"
    """How [K, d] weights reach an output axis that is not d. `hidden`: d takes its nodes, anything else the mean; `tiled`: m*d
    repeats them too; `mean`: the mean weight everywhere; `per_module`: weights from a signature at that module's own output."""
    mix: Literal["specialists", "deltas"] = "deltas"
    """Add the mixed deltas to the generalist, or mix specialists' parameters (Eq. 9); the same where weights sum to 1 and nothing is
    scaled."""
    scale: float = Field(default=1.0, ge=0)
    """Factor on the mixed deltas, beside the mixture's own; 1 with `mix: specialists`."""

    @model_validator(mode="after")
    def _scale_needs_deltas(self) -> CompositionSettings:
        if self.mix == "specialists" and self.scale != 1:
            raise ValueError("a scale other than 1 needs mix: deltas")
        return self

    @classmethod
    def paper(cls, **values) -> CompositionSettings:
        """The paper's settings: last 4 blocks, specialists mixed node by node."""
        return cls(**{"layers": 4, "node_map": "tiled", "mix": "specialists", **values})


def mixture_settings(domains: int, composition: CompositionSettings, *, paper: bool = False) -> MixtureSettings:
    """A query's mixture where nothing is asked for: at most `domains` specialists.

    Weights are per node with the node map `per_module`, which needs them, and with the paper's settings.
    """
    k, per_module = min(MixtureSettings().top_k, domains), composition.node_map == "per_module"
    return MixtureSettings.paper(top_k=k, per_module=per_module) if paper or per_module else MixtureSettings(top_k=k)
