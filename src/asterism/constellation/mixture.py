"""What a query asks of the library: the chosen specialists, a weight per specialist and node, and the generalist's own part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from asterism.core.errors import SettingsError
from asterism.core.weights import entropy_bits


@dataclass(frozen=True, eq=False)
class Mixture:
    """K specialists and their weights over the nodes of the hidden dimension.

    Columns and the generalist's weight together sum to 1 (except under `joint`). The composed parameters are
    theta_G + scale * sum_i W_i (theta_i - theta_G).
    """

    specialists: tuple[str, ...]
    weights: Tensor
    """[K, d] float32: weight of each specialist at each hidden node."""
    coefficients: Tensor
    """[K] projections that chose the specialists (Eq. 5)."""
    modules: Mapping[str, Tensor] = field(default_factory=dict)
    """Module path -> [K, out] weights at that module's own output nodes; filled for the node map `per_module`."""
    generalist: float = 0.0
    """The generalist's own weight."""
    scale: float = 1.0
    """Factor on the mixed deltas."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Evidence: mean loss of the query in nats a token under each specialist that read it, and under `""`, the generalist."""

    def __post_init__(self) -> None:
        if len(set(self.specialists)) != len(self.specialists) or not self.specialists:
            raise SettingsError("A mixture names different specialists, at least one.", met=list(self.specialists), mend="remove doubles")
        if self.weights.ndim != 2 or len(self.weights) != len(self.specialists):
            raise SettingsError(
                "A mixture has one row of weights a specialist.", met=tuple(self.weights.shape), mend=f"[{len(self.specialists)}, d]"
            )

    @classmethod
    def fixed(cls, shares: Mapping[str, float], nodes: int, *, generalist: float = 0.0, scale: float = 1.0) -> Mixture:
        """The same weight at every node: `Mixture.fixed({"medical": 0.7, "legal": 0.3}, nodes=d)`."""
        row = torch.tensor(list(shares.values()), dtype=torch.float32)
        return cls(tuple(shares), row[:, None].expand(-1, nodes).clone(), row, generalist=generalist, scale=scale)

    @classmethod
    def uniform(cls, names: Sequence[str], nodes: int) -> Mixture:
        """Equal weights over the named specialists."""
        return cls.fixed({name: 1 / len(names) for name in names}, nodes)

    @property
    def shares(self) -> dict[str, float]:
        """Each specialist's mean weight over the nodes; with `generalist` they sum to 1."""
        return dict(zip(self.specialists, self.weights.mean(dim=1).tolist(), strict=True))

    @property
    def entropy(self) -> float:
        """Mean over the nodes of the weights' entropy in bits (Eq. 11), the generalist's weight among them."""
        own = self.weights.new_full((1, self.nodes), max(self.generalist, 0.0))
        return float(entropy_bits(torch.cat([self.weights, own])).mean())

    @property
    def evidence(self) -> dict[str, float]:
        """The losses that are known, by name, the generalist's under `generalist`."""
        return {name or "generalist": loss for name, loss in self.losses.items() if isfinite(loss)}

    @property
    def nodes(self) -> int:
        """Hidden nodes that the weights speak of."""
        return self.weights.shape[1]
