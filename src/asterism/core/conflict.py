"""How two deltas lie to each other: cosine, lengths, and how often their signs disagree; sums that add up tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from asterism.core.gram import gram
from asterism.core.sums import CHUNK, chunk_sums, total

_BLOCK = 16 * CHUNK  # elements at a time: bounds the float64 temporaries


@dataclass(frozen=True)
class Conflict:
    """What is summed over the entries of two deltas x and y. Tensors add up: `sum(conflicts, Conflict())` is that of all of them."""

    entries: int = 0
    """Entries compared."""
    shared: int = 0
    """Those that neither delta leaves at zero."""
    opposed: int = 0
    """Those of the shared whose signs differ."""
    opposed_mass: float = 0.0
    """Sum of |x y| over the opposed."""
    inner: float = 0.0
    """<x, y>."""
    squares: tuple[float, float] = (0.0, 0.0)
    """<x, x>, <y, y>."""

    def __add__(self, other: Conflict) -> Conflict:
        return Conflict(
            self.entries + other.entries,
            self.shared + other.shared,
            self.opposed + other.opposed,
            self.opposed_mass + other.opposed_mass,
            self.inner + other.inner,
            (self.squares[0] + other.squares[0], self.squares[1] + other.squares[1]),
        )

    @property
    def signs(self) -> float:
        """Share of the shared entries whose signs differ (TIES, arXiv:2306.01708): 1/2 for unrelated deltas; 0 where none is shared."""
        return self.opposed / self.shared if self.shared else 0.0

    @property
    def mass(self) -> float:
        """The same with every entry weighed by |x y|: what conflicts in large entries counts more; 0 where no product is left."""
        whole = self.inner + 2 * self.opposed_mass  # sum |x y|
        return self.opposed_mass / whole if whole else 0.0

    @property
    def norms(self) -> tuple[float, float]:
        """|x|, |y|."""
        return sqrt(self.squares[0]), sqrt(self.squares[1])

    @property
    def cosine(self) -> float:
        """<x, y> / (|x| |y|); 0 where a delta is zero."""
        length = self.norms[0] * self.norms[1]
        return max(-1.0, min(1.0, self.inner / length)) if length else 0.0

    def to_dict(self) -> dict[str, float | list[float]]:
        """JSON-able."""
        shared = self.shared / self.entries if self.entries else 0.0
        return {"cosine": self.cosine, "signs": self.signs, "mass": self.mass, "shared": shared, "norms": list(self.norms)}


@torch.no_grad()
def sign_conflict(x: Tensor, y: Tensor, name: str = "") -> Conflict:
    """The conflict of two deltas of one shape, any shape and floating dtype.

    Inner products and masses are float64 in the order of `core.sums`: no number of threads changes a bit. O(1) memory beside the inputs.
    Raises what `core.gram.gram` raises: MismatchError (shapes, devices), UnsupportedError (dtype), DataError (NaN or Inf, by `name`).
    """
    products = gram([x, y], name=name)
    shared, opposed, masses = 0, 0, [torch.zeros(1, dtype=torch.float64)]
    for one, other in zip(x.reshape(-1).split(_BLOCK), y.reshape(-1).split(_BLOCK), strict=True):
        both = (one != 0) & (other != 0)
        against = both & ((one > 0) != (other > 0))
        shared, opposed = shared + int(both.sum()), opposed + int(against.sum())
        if one.numel():
            masses.append(chunk_sums((one.double() * other.double()).abs() * against).cpu())
    return Conflict(
        entries=x.numel(),
        shared=shared,
        opposed=opposed,
        opposed_mass=float(total(torch.cat(masses))),
        inner=float(products[0, 1]),
        squares=(float(products[0, 0]), float(products[1, 1])),
    )
