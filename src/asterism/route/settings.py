"""Settings of the route layer; importing them loads no model library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from asterism.core.settings import Settings


class RouterSettings(Settings):
    """Which experts a routed model weighs and how; the defaults are full-layer routing, dense (arXiv:2411.02207, section 2.2)."""

    scope: Literal["layer", "single"] = "layer"
    """A gate for every layer, or a single one in block 0 whose probabilities every block takes."""
    experts: tuple[str, ...] | None = None
    """Specialists whose MLPs are weighed, in this order; all of the library by default."""
    with_generalist: bool = False
    """Whether the generalist's MLPs are experts too, after the specialists'."""
    depth: int = Field(default=1, ge=1)
    """Layers whose MLPs a block weighs: its own and those above; at the top of the stack, those below make up the number."""
    gate: Literal["linear", "mlp", "fixed"] = "linear"
    """What gives the weights: a linear map of the token's state, a two-layer one with GELU, or the same weights for every token."""
    mode: Literal["softmax", "absolute", "cosine"] = "softmax"
    """What a linear gate takes the softmax of: W x, |W x| (as Arrow does), or the cosines of x and the rows of W."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on that before the softmax of a linear gate: an inverse temperature."""
    top_k: int | None = Field(default=None, ge=1)
    """Experts that run for a token; all by default."""
    normalise: bool = False
    """Whether the weights of the top_k experts are made to sum to 1 again, as in Mixtral."""
    balance: float = Field(default=0.0, ge=0)
    """Factor of the load-balancing loss in training (Switch Transformers); 0 turns it off."""
    seed: int = Field(default=42, ge=0)
    """Seed of the gates' first weights."""

    @model_validator(mode="after")
    def _fits(self) -> RouterSettings:
        if self.gate != "linear" and (self.mode != "softmax" or self.scale != 1):
            raise ValueError("mode and scale need gate: linear")
        if self.experts is not None and len(set(self.experts)) != len(self.experts):
            raise ValueError("an expert is named twice")
        return self


class CompatSettings(Settings):
    """What is measured between two models of a library; `constellation.settings.SimilaritySettings` says how layers are compared."""

    points: int = Field(default=11, ge=3)
    """Points of the path between the models, ends included: the line between their weights, always measured."""
    slerp: bool = False
    """Also the arc between the weights; of models that are nearly parallel, as those of one generalist are, it is the line."""
    activation: bool = True
    """Also the MLPs' outputs mixed in one proportion: what a router can do before it is trained. Where the two differ in more than their
    MLPs, it is measured only with a choice of attention."""
    within: bool = False
    """Also compare the layers of each model among themselves: what a router over several layers has to work with."""
    attention: Literal["refuse", "generalist", "mean"] = "refuse"
    """What a routed model would take of all but the MLPs where those differ: nothing, the generalist's, or the specialists' mean."""
    max_length: int = Field(default=256, ge=3)
    """Tokens read of each text; longer texts are cut there."""
    seed: int = Field(default=42, ge=0)
    """Seed of bootstrap intervals and of the draw of texts."""
