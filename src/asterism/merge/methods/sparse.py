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
    """TIES: keep each delta's max(1, int(density n)) largest entries, elect the sign of their weighted sum, average those of that sign.

    Source: Yadav et al. 2023, arXiv:2306.01708. A sum of 0 elects +; of equal magnitudes at the threshold the first in memory
    are kept (mergekit: what an unstable sort puts first).
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
    """DARE: keep each entry with chance density, rescale, add. Source: Yu et al. 2024, arXiv:2311.03099.

    Rescaled by sum |delta| / sum |kept|, as mergekit does, which tends to the paper's 1 / density. Draws depend on the key and the place
    alone (mergekit: on one generator's state, so on every tensor before).
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
    """DARE's kept entries under TIES' election of signs. Source: arXiv:2311.03099, section 4. Draws as in `dare_linear`."""
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
    """Model Breadcrumbs: drop the int(gamma n) largest entries, keep the next int(density n), add; where that many are not left, fewer
    large ones are dropped. Source: Davari & Belilovsky 2024, arXiv:2312.06795. Ties at the thresholds as in `ties`.
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
    """Breadcrumbs' kept entries under TIES' election of signs. Source: arXiv:2312.06795, mergekit."""
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
    """DELLA: keep an entry with a chance that grows with its rank in its row, rescale, elect signs, average (arXiv:2406.11617).

    The chance of rank r = 0 .. m-1 by magnitude is density - epsilon + 2 epsilon r / (m - 1); in rows of one entry it is
    density (mergekit: NaN). Draws as in `dare_linear`. Raises SettingsError unless 0 < density -+ epsilon < 1, where 0 < density < 1.
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
    """DELLA's kept entries, added without an election. Source, chances and errors as in `della`."""
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
