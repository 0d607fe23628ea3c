"""What a query asks of the library: the chosen specialists, a weight per specialist and node, and the generalist's own part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from asterism.core.errors import SettingsError, UnknownName
from asterism.core.weights import entropy_bits

GENERALIST = "generalist"
"""Its name among shares and losses; no specialist can have it."""
ROUNDING = 1e-6
"""What the sum of shares may miss 1 by."""


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
    def given(cls, shares: Mapping[str, float], known: Sequence[str], nodes: int) -> Mixture:
        """Shares as a person writes them, among the `known` specialists; `generalist` may be named, else what is left of 1 is its own.

        Raises UnknownName, and SettingsError for shares that are negative, not finite, or do not sum to 1: none is ever rescaled.
        """
        for name in shares:
            if name not in (*known, GENERALIST):
                raise UnknownName("specialist", name, known)
        told, whole = ", ".join(f"{name} {share:g}" for name, share in shares.items()), sum(shares.values())
        if not all(isfinite(share) and share >= 0 for share in shares.values()):
            raise SettingsError("A share is a number from 0 to 1.", met=told, mend="e.g. 0.5")
        if whole > 1 + ROUNDING or (GENERALIST in shares and whole < 1 - ROUNDING):
            mend = "shares sum to 1, the generalist's among them; leave it out, and it gets the rest"
            raise SettingsError("Shares do not sum to 1.", met=f"{told}: {whole:g} together", mend=mend)
        own = {name: share for name, share in shares.items() if name != GENERALIST}
        return cls.fixed(own, nodes, generalist=max(0.0, 1.0 - sum(own.values())))

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
        return {name or GENERALIST: loss for name, loss in self.losses.items() if isfinite(loss)}

    @property
    def nodes(self) -> int:
        """Hidden nodes that the weights speak of."""
        return self.weights.shape[1]
