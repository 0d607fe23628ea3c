"""From centroids to axes: centring, noise, orthogonalisation; and a fingerprint's coefficients on them (Eq. 3, 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError, SettingsError
from asterism.core.geometry import lowdin, orthogonalise


@dataclass(frozen=True, eq=False)
class Basis:
    """One unit axis a domain, and what is subtracted from a fingerprint before it is projected."""

    vectors: Tensor
    """[N, d] unit rows."""
    offset: Tensor
    """[d]; zeros without centring."""

    def coefficients(self, fingerprints: Tensor) -> Tensor:
        """alpha = (g - offset) . e_k (Eq. 5): fingerprints [..., d] -> [..., N], float32 or wider."""
        if fingerprints.shape[-1] != self.vectors.shape[1]:
            mend = f"take it from the index's own generalist (d = {self.vectors.shape[1]})"
            raise DataError("A fingerprint has another size than the basis.", met=tuple(fingerprints.shape), mend=mend)
        dtype = torch.promote_types(fingerprints.dtype, self.vectors.dtype)
        return (fingerprints.to(dtype) - self.offset.to(dtype)) @ self.vectors.to(dtype).mT


def make_basis(centroids: Tensor, general_mean: Tensor | None, settings: IndexSettings) -> Basis:
    """Centre, add noise, orthogonalise: centroids [N, d], general_mean [d] or None -> Basis in the centroids' dtype.

    Centroids centred on their own mean span only N - 1 directions: `gram_schmidt` is refused then, and `lowdin` gives the
    nearest N unit vectors that share those directions evenly (a simplex, pairwise cosines near -1 / (N - 1)).
    Raises SettingsError when the settings ask for what is not there, DataError when a centroid depends on the others.
    """
    offset = offset_of(centroids.double(), general_mean, settings)
    centred = noisy(centroids.double() - offset, settings).to(centroids.dtype)  # the dtype tells what counts as dependent
    if settings.centring != "mean" or settings.orthogonalisation == "none" or len(centred) == 1:
        vectors = orthogonalise(centred, settings.orthogonalisation)
    elif settings.orthogonalisation == "lowdin":
        vectors = normalize(lowdin(centred, nullity=1), dim=1)
    else:
        mend = "orthogonalisation lowdin or none, or centring general"
        raise SettingsError("Gram-Schmidt cannot follow centring on the mean.", met=f"{len(centred)} centroids that sum to zero", mend=mend)
    return Basis(vectors.contiguous(), offset.to(centroids.dtype))


def offset_of(centroids: Tensor, general_mean: Tensor | None, settings: IndexSettings) -> Tensor:
    """[d] what centring subtracts: zeros, the general probes' mean fingerprint, or the mean of the centroids."""
    if settings.centring == "none" or (settings.centring == "mean" and len(centroids) == 1):
        return torch.zeros_like(centroids[0])
    if settings.centring == "mean":
        return centroids.mean(dim=0)
    if general_mean is None:
        mend = 'give probes of the domain "general", or choose centring none'
        raise SettingsError("Centring on the general probes needs some.", met="no general probes", mend=mend)
    return general_mean.to(centroids.dtype)


def noisy(centred: Tensor, settings: IndexSettings) -> Tensor:
    """Rows plus N(0, s^2 I), s = noise x mean row norm (section 7.4), when the noise's site is the centroids.

    Under centring the norm is that of the centred rows: the noise is a share of what is orthogonalised. At the site `direction`, a
    control, each row's noise keeps its norm but all rows get theirs along one seeded random direction.
    """
    if settings.noise_site not in ("centroids", "direction") or not settings.noise:
        return centred
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.randn(centred.shape, generator=generator, dtype=torch.float64)
    if settings.noise_site == "direction":
        shared = normalize(torch.randn(centred.shape[1], generator=generator, dtype=torch.float64), dim=0)  # [d]
        drawn = drawn.norm(dim=1, keepdim=True) * shared
    return centred + (settings.noise * centred.norm(dim=1).mean() * drawn.to(centred.device)).to(centred.dtype)
