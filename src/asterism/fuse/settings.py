"""Settings of the fuse layer; importing them loads no model library."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from asterism.core.settings import Settings


class FusionSettings(Settings):
    """How the sources' adapters are read and their knowledge carried over (HeteroFusion, arXiv:2604.01674).

    How long and on what it trains is of `TrainingSettings`. The defaults are the paper's at its size of model (see `block` and `width`).
    """

    layers: Literal["top", "proportional", "cka"] = "top"
    """Which source layer a target layer takes from: the one as far from the top, as deep in proportion, or most alike on shared texts."""
    transfer_ratio: float = Field(default=1.0, gt=0, le=1)
    """Share of the layer pairs that is kept, counted from the top."""
    pairing: Literal["function", "random"] = "function"
    """Modules pair by function; random deals the same source modules out over layers and functions (ablation)."""
    shuffled: bool = False
    """Ablation: the rows of every source's factors in random order, so that sizes stay and the knowledge goes."""
    block: int | None = Field(default=None, ge=1)
    """Rows of a factor that make one token; the target's hidden size by default (4096 in the paper)."""
    width: int | None = Field(default=None, ge=8)
    """Width of the transfer nets; a quarter of the target's hidden size by default, at least 64 (1024 in the paper)."""
    heads: int = Field(default=8, ge=1)
    """Heads of the cross-attention; they divide the width."""
    alpha: float = Field(default=0.3, gt=0)
    """Where the learned factor on the predicted change starts."""
    mu_gate: float = 0.1
    """How far the gates stand open before they learn; below 0 they start closed."""
    gate: bool = True
    """Whether the gate that reads singular values is there; without it nothing is denoised (ablation)."""
    regulariser: float = Field(default=0.005, ge=0)
    """Weight of the distribution regulariser; 0 removes it (ablation)."""
    mu_target: float = 0.0
    """Mean of the normal distribution that the regulariser draws embeddings to."""
    sigma: float = Field(default=1.0, gt=0)
    """Its standard deviation."""
    projections: int = Field(default=2048, ge=1)
    """Random directions that the regulariser compares along."""
    free_down: bool = False
    """Ablation: the target's A changes too, by the nets' prediction for it; else the target's basis is preserved."""
    bound: float | None = Field(default=3.0, gt=0)
    """Largest |B_new - B| / |B| of a slot, in Frobenius norm; null for none, as in the paper. A slot whose B is zero has no such bound."""
    seed: int = Field(default=42, ge=0)
    """Seed of the nets' first weights, of the regulariser's draws and of the ablations."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> FusionSettings:
        if self.width is not None and self.width % self.heads:
            raise ValueError("heads must divide width")
        return self

    def block_for(self, hidden_size: int) -> int:
        """Rows a block for a target of this hidden size."""
        return self.block or hidden_size

    def width_for(self, hidden_size: int) -> int:
        """Width of the nets for a target of this hidden size: a quarter of it, at least 64, rounded up to a multiple of the heads."""
        return self.width or -(-max(hidden_size // 4, 64) // self.heads) * self.heads
