"""What a query asks of the library: the chosen specialists and a weight per specialist and node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asterism.core.errors import SettingsError


@dataclass(frozen=True, eq=False)
class Mixture:
    """K specialists and their weights over the nodes of the hidden dimension; columns sum to 1 (except under `joint`)."""

    specialists: tuple[str, ...]
    weights: Tensor
    """[K, d] float32: weight of each specialist at each hidden node (Eq. 8)."""
    coefficients: Tensor
    """[K] projections that chose and scaled the specialists (Eq. 5)."""
    modules: Mapping[str, Tensor] = field(default_factory=dict)
    """Module path -> [K, out] weights at that module's own output nodes; filled for the node map `per_module`."""

    def __post_init__(self) -> None:
        if len(set(self.specialists)) != len(self.specialists) or not self.specialists:
            raise SettingsError("A mixture names different specialists, at least one.", met=list(self.specialists), mend="remove doubles")
        if self.weights.ndim != 2 or len(self.weights) != len(self.specialists):
            raise SettingsError(
                "A mixture has one row of weights a specialist.", met=tuple(self.weights.shape), mend=f"[{len(self.specialists)}, d]"
            )

    @classmethod
    def fixed(cls, shares: Mapping[str, float], nodes: int) -> Mixture:
        """The same weight at every node: `Mixture.fixed({"medical": 0.7, "legal": 0.3}, nodes=d)`."""
        row = torch.tensor(list(shares.values()), dtype=torch.float32)
        return cls(tuple(shares), row[:, None].expand(-1, nodes).clone(), row)

    @classmethod
    def uniform(cls, names: Sequence[str], nodes: int) -> Mixture:
        """Equal weights over the named specialists."""
        return cls.fixed({name: 1 / len(names) for name in names}, nodes)

    @property
    def shares(self) -> dict[str, float]:
        """Each specialist's mean weight over the nodes."""
        return dict(zip(self.specialists, self.weights.mean(dim=1).tolist(), strict=True))
