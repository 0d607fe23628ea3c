"""Centred kernel alignment of many pairs from a few sums over their Gram matrices, biased or debiased, with its null distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from asterism.core.errors import DataError, UnknownName

Estimator = Literal["debiased", "biased"]

NEGLIGIBLE = 1e-12
"""Share of <K, K> below which a debiased <K, K> is rounding, and the features count as constant."""


@dataclass(frozen=True, eq=False)
class Null:
    """Similarity when rows of the two sides are paired at random, all n! pairings alike: exact moments, [L, M] float64."""

    mean: Tensor
    sd: Tensor
    """0 where the similarity is 0 by definition."""

    def z(self, similarity: Tensor) -> Tensor:
        """Standard deviations above the mean, [L, M]; 0 where the similarity is 0 by definition."""
        return torch.where(self.sd > 0, (similarity - self.mean) / self.sd, 0.0)

    def p(self, similarity: Tensor) -> Tensor:
        """Chance of as large a similarity under random pairing, [L, M]; 1 where the similarity is 0 by definition.

        For large n the debiased numerator is a weighted sum of (chi^2_1 - 1). Of all such laws of one variance the single one has the
        heaviest tail, and is used here: below 0.05 the figure is rather too large than too small.
        """
        beyond = (1 + 2**0.5 * self.z(similarity)).clamp_min(0)  # of chi^2_1
        return torch.where(self.sd > 0, torch.erfc((beyond / 2).sqrt()), 1.0)


@dataclass(frozen=True, eq=False)
class Grams:
    """Sums over S Gram matrices [n, n], centred on both axes: all that CKA and its null need. Float64, on the CPU.

    The first `lefts` matrices are those of the left side. The others are of the right side; where there are none, left meets itself.
    Only entries of a matrix with itself and of a left one with a right one are read.
    """

    n: int
    inner: Tensor
    """[S, S] <K_s, K_t>."""
    diagonal: Tensor
    """[S, S] sum_i K_s,ii K_t,ii."""
    traces: Tensor
    """[S] tr K_s."""
    lefts: int

    def __post_init__(self) -> None:
        enough(self.n)
        if not all(bool(self._pairs(sums).isfinite().all()) for sums in (self.inner, self.diagonal)):
            mend = "look for NaN, infinity or values beyond 1e15"
            raise DataError("Features are not finite, or too large for their inner products.", met="NaN or infinity", mend=mend)

    def similarity(self, estimator: Estimator = "debiased") -> Tensor:
        """CKA of every left with every right matrix: [L, M] float64.

        <K, L> / sqrt(<K, K> <L, L>), of centred matrices (`biased`: Kornblith et al. 2019, arXiv:1905.00414), or of U-centred ones, whose
        inner product is the unbiased HSIC (`debiased`: Song et al. 2012; in [-1, 1], about 0 for unrelated features however many).
        0 by definition where a side is constant, so that there is nothing to compare. Raises UnknownName for another estimator.
        """
        products, norms = self._products(estimator), self._norms(estimator)
        scale = norms[:, None] * norms
        return self._pairs(torch.where(scale > 0, products / scale, 0.0).clamp(-1, 1))

    def null(self, estimator: Estimator = "debiased") -> Null:
        """Mean and standard deviation of `similarity` over all n! pairings of left rows with right rows: [L, M] float64.

        A U-centred matrix has zero rows and a zero diagonal, so of the pairs of its entries only those of one row are correlated, and the
        debiased similarity has mean 0 and variance 2 / (n (n - 3)) whatever the features. The biased numerator is the debiased one plus
        n / (n - 2) times the inner product of the diagonals, uncorrelated with it (the mean is that of Kazi-Aoual et al. 1995).
        Neighbouring tokens of a text are no independent samples: of them, such a null is too narrow.
        """
        n, norms = self.n, self._norms(estimator)
        scale = norms[:, None] * norms
        if estimator == "debiased":
            mean, variance = torch.zeros_like(scale), torch.full_like(scale, 2 / (n * (n - 3)))
        else:
            debiased = self._products("debiased").diagonal().clamp_min(0)
            spread = (self.diagonal.diagonal() - self.traces.square() / n).clamp_min(0)  # n times the variance of the diagonal
            mean = self.traces[:, None] * self.traces / (n - 1) / scale
            among, along = 2 * debiased[:, None] * debiased / (n * (n - 3)), spread[:, None] * spread / (n - 1)
            variance = (among + (n / (n - 2)) ** 2 * along) / scale.square()
        return Null(*(self._pairs(torch.where(scale > 0, figure, 0.0)) for figure in (mean, variance.sqrt())))

    def _products(self, estimator: Estimator) -> Tensor:
        """[S, S] <K, L> of the matrices as the estimator centres them."""
        if estimator not in get_args(Estimator):
            raise UnknownName("estimator", estimator, get_args(Estimator))
        if estimator == "biased":
            return self.inner
        n = self.n
        return self.inner - n / (n - 2) * self.diagonal + self.traces[:, None] * self.traces / ((n - 1) * (n - 2))

    def _norms(self, estimator: Estimator) -> Tensor:
        """[S] sqrt <K, K>, exactly 0 of constant features."""
        own = self._products(estimator).diagonal()
        return torch.where(own > NEGLIGIBLE * self.inner.diagonal(), own, 0.0).sqrt()

    def _pairs(self, sums: Tensor) -> Tensor:
        """[S, S] -> [L, M]."""
        return sums[: self.lefts, self.lefts :] if self.lefts < len(sums) else sums


def enough(n: int) -> None:
    """Raise DataError for fewer samples than the debiased estimator can be taken from."""
    if n < 4:
        raise DataError("Similarity needs at least 4 samples.", met=n, mend="give more texts, or take every token as a sample")
