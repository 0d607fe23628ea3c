"""Merges that keep part of each delta and add: what parameters mean, as a `SparseSum` that `core.sifting` carries out.

For K models: `count` = K; weight and density (gamma, epsilon) one number or K; keys, where entries are drawn, a `stream_key` a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from asterism.core.errors import SettingsError
from asterism.core.sifting import Consensus, Sift, SparseSum
from asterism.merge.methods.method import PerModel, Told, spread

Weight = Annotated[PerModel, Told("factor of the model's delta; any number, also negative")]
Density = Annotated[PerModel, Told("share of the delta that is kept", 0, 1)]
Gamma = Annotated[PerModel, Told("share of the very largest entries that goes too", 0, 1)]
Epsilon = Annotated[PerModel, Told("the chance to stay runs from density - epsilon to density + epsilon, both between 0 and 1", 0, 1)]
Normalize = Annotated[bool, Told("divide by the sum of the weights, of the models that take part in an entry")]
Rescale = Annotated[bool, Told("scale what is kept of a delta to the whole delta's sum of magnitudes")]
Lambda = Annotated[float, Told("factor of the merged delta")]


def ties(
    count: int,
    *,
    weight: Weight,
    density: Density = 1.0,
    normalize: Normalize = True,
    rescale: Rescale = False,
    lambda_: Lambda = 1.0,
) -> SparseSum:
    """Keep each delta's largest entries, elect a sign for every entry, average those of that sign.

    Of n entries the `max(1, int(density n))` largest, k_i, are kept, of equal magnitudes the first in memory. The sign is that of
    `sum_i w_i k_i`, of 0 it is +. An entry is `lambda sum_i w_i k_i / sum_i w_i`, both over the models whose w_i k_i has the sign; without
    normalize it is not divided.

    Differs from mergekit: of equal magnitudes at the threshold it keeps what an unstable sort puts first.

    Source: Yadav et al. 2023, arXiv:2306.01708.
    """
    each = {"weight": weight, "density": density}
    return _sum("magnitude", "sum", count, each, normalize=normalize, rescale=rescale, scale=lambda_)


def dare_linear(
    count: int,
    *,
    keys: Sequence[int],
    weight: Weight,
    density: Density = 1.0,
    normalize: Normalize = False,
    rescale: Rescale = True,
    lambda_: Lambda = 1.0,
) -> SparseSum:
    """Keep entries of each delta by chance, rescale, add.

    An entry stays with chance density; the delta is `lambda sum_i w_i r_i k_i`, k_i what stays of d_i, `r_i = sum |d_i| / sum |k_i|`; with
    normalize divided by the sum of the weights. Draws depend on the key (of seed, tensor and model) and the place alone.

    Differs from the paper: rescaled as in mergekit, by r_i, which tends to the paper's 1 / density.

    Differs from mergekit: its draws depend on one generator's state, so on every tensor before.

    Source: Yu et al. 2024, arXiv:2311.03099.
    """
    each = {"weight": weight, "density": density}
    return _sum("random", "none", count, each, normalize=normalize, rescale=rescale, scale=lambda_, keys=tuple(keys))


def dare_ties(
    count: int,
    *,
    keys: Sequence[int],
    weight: Weight,
    density: Density = 1.0,
    normalize: Normalize = False,
    rescale: Rescale = True,
    lambda_: Lambda = 1.0,
) -> SparseSum:
    """Keep entries of each delta by chance, rescale, elect a sign for every entry, add those of that sign.

    What stays, and its factor, as in `dare_linear`; the election, and normalize, as in `ties`.

    Differs from mergekit: the draws, as in `dare_linear`.

    Source: Yu et al. 2024, arXiv:2311.03099, section 4.
    """
    each = {"weight": weight, "density": density}
    return _sum("random", "sum", count, each, normalize=normalize, rescale=rescale, scale=lambda_, keys=tuple(keys))


def breadcrumbs(
    count: int,
    *,
    weight: Weight,
    density: Density = 1.0,
    gamma: Gamma = 0.01,
    normalize: Normalize = False,
    rescale: Rescale = False,
    lambda_: Lambda = 1.0,
) -> SparseSum:
    """Keep each delta's large entries, but not the very largest, and add.

    Of n entries the `int(gamma n)` largest are dropped and the next `int(density n)`, k_i, kept; where that many are not left, fewer large
    ones are dropped; of equal magnitudes the first in memory count as larger. The delta is `lambda sum_i w_i k_i`, with normalize divided
    by the sum of the weights.

    Differs from mergekit: equal magnitudes at the thresholds, as in `ties`.

    Source: Davari & Belilovsky 2024, arXiv:2312.06795.
    """
    each = {"weight": weight, "density": density, "gamma": gamma}
    return _sum("outliers", "none", count, each, normalize=normalize, rescale=rescale, scale=lambda_)


def breadcrumbs_ties(
    count: int,
    *,
    weight: Weight,
    density: Density = 1.0,
    gamma: Gamma = 0.01,
    normalize: Normalize = False,
    rescale: Rescale = False,
    lambda_: Lambda = 1.0,
) -> SparseSum:
    """Keep each delta's large entries, but not the very largest, elect a sign for every entry, add those of that sign.

    What stays as in `breadcrumbs`; the election, and normalize, as in `ties`.

    Differs from mergekit: equal magnitudes at the thresholds, as in `ties`.

    Source: arXiv:2312.06795, mergekit.
    """
    each = {"weight": weight, "density": density, "gamma": gamma}
    return _sum("outliers", "sum", count, each, normalize=normalize, rescale=rescale, scale=lambda_)


def della(
    count: int,
    *,
    keys: Sequence[int],
    weight: Weight,
    density: Density = 1.0,
    epsilon: Epsilon = 0.15,
    normalize: Normalize = True,
    rescale: Rescale = True,
    lambda_: Lambda = 1.0,
) -> SparseSum:
    """Keep entries of each delta by chance, large ones sooner, rescale, elect a sign for every entry, average those of that sign.

    An entry of rank r = 0 .. m-1 by magnitude in its row of m stays with chance `density - epsilon + 2 epsilon r / (m - 1)`, in rows of one
    entry with density. Draws and factor as in `dare_linear`; the election, and normalize, as in `ties`. Raises SettingsError unless
    0 < density -+ epsilon < 1, where 0 < density < 1.

    Differs from mergekit: rows of one entry give NaN there; the draws, as in `dare_linear`.

    Source: arXiv:2406.11617.
    """
    each = {"weight": weight, "density": density, "epsilon": epsilon}
    return _between(_sum("ranked", "sum", count, each, normalize=normalize, rescale=rescale, scale=lambda_, keys=tuple(keys)))


def della_linear(
    count: int,
    *,
    keys: Sequence[int],
    weight: Weight,
    density: Density = 1.0,
    epsilon: Epsilon = 0.15,
    normalize: Normalize = False,
    rescale: Rescale = True,
    lambda_: Lambda = 1.0,
) -> SparseSum:
    """Keep entries of each delta by chance, large ones sooner, rescale, add.

    What stays, its factor and what is refused as in `della`; the sum, and normalize, as in `dare_linear`.

    Differs from mergekit: as `della` does.

    Source: arXiv:2406.11617.
    """
    each = {"weight": weight, "density": density, "epsilon": epsilon}
    return _between(_sum("ranked", "none", count, each, normalize=normalize, rescale=rescale, scale=lambda_, keys=tuple(keys)))


def _sum(sift: Sift, consensus: Consensus, count: int, each: Mapping[str, PerModel], **shared: Any) -> SparseSum:
    """each: what a model has its own value of; one number stands for all."""
    own: dict[str, Any] = {name: spread(values, count) for name, values in each.items()}
    return SparseSum(sift, consensus, **own, **shared)


def _between(how: SparseSum) -> SparseSum:
    for d, e in zip(how.density, how.epsilon, strict=True):
        if 0 < d < 1 and not (d - e > 0 and d + e < 1):
            raise SettingsError(
                "DELLA's chances, density - epsilon and density + epsilon, lie between 0 and 1.",
                met=f"density {d:g}, epsilon {e:g}",
                mend=f"epsilon below {min(d, 1 - d):g} with this density",
            )
    return how
