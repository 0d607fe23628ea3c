"""How well, and how steadily, an index finds the domain a probe came from: leave-one-out accuracy and sensitivity to the order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from asterism.constellation.basis import make_basis, noisy, offset_of
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import AsterismError, DataError
from asterism.core.geometry import gram_schmidt
from asterism.core.progress import track
from asterism.core.statistics import wilson
from asterism.core.weights import top_k

ALONE_UP_TO = 2e9
"""Every probe is left out alone while probes x domains^2 x d stays below this (seconds); above, groups are left out together."""
GROUPS = 10
"""Groups at most: group i holds the probes i, i + GROUPS, ... of every domain."""
EXHAUSTIVE_UP_TO = 6
"""Domains up to which all N! orders are tried."""
SAMPLED_PROBES = 2000
"""Probes looked at for every order, spread evenly over the domains' probes."""


@dataclass(frozen=True)
class Retrieval:
    """Share of left-out probes whose own domain has the largest |coefficient| (top 1), or one of the three largest (top 3)."""

    n: int
    top1: tuple[float, float, float] | None
    """Rate and its 95 % Wilson interval; None where nothing could be left out."""
    top3: tuple[float, float, float] | None
    by_domain: Mapping[str, tuple[float, float, float]]
    """Top 1 of each domain's own probes."""
    left_out: tuple[str, ...]
    """Domains with a single probe: without it they have no centroid, so they are not in the figure."""
    grouping: str
    """What was left out together."""
    reason: str | None = None
    """Why there is no figure."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rates = {**_named("top1", self.top1), **_named("top3", self.top3)}
        domains = {name: _named("top1", rate) for name, rate in self.by_domain.items()}
        how = {"left_out": list(self.left_out), "grouping": self.grouping, "reason": self.reason}
        return {"n": self.n, **rates, "by_domain": domains, **how}


@dataclass(frozen=True)
class OrderSensitivity:
    """What another order of the domains does to Gram-Schmidt's coefficients of the index's own probes."""

    orders: int
    exhaustive: bool
    """Whether these are all the orders there are."""
    probes: int
    changed: float
    """Share of probes whose largest |coefficient| falls on another domain, mean over the other orders."""
    changed_most: float
    """The same under the worst order."""
    unsteady: float
    """Share of probes that change under some order."""
    first_wins: float
    """Share of probes whose largest |coefficient| is that of whichever domain comes first, mean over orders; 1/N without the artefact."""
    spread: float
    """Standard deviation of a coefficient over the orders, mean over probes and domains, as a share of the mean fingerprint norm."""
    accuracy: tuple[float, float]
    """Lowest and highest share of probes whose own domain comes out largest, over the orders (probes not left out)."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "accuracy": list(self.accuracy)}


def leave_one_out(fingerprints: Mapping[str, Tensor], general_mean: Tensor | None, settings: IndexSettings) -> Retrieval:
    """Rebuild the index without each probe (or group of probes) and look the probe up: {domain: [n, d]} -> Retrieval.

    Each probe alone while that is cheap (ALONE_UP_TO), else probe i of every domain together in at most GROUPS groups,
    so that 1,000 domains cost GROUPS bases. General probes are never left out: they name no domain.
    Where the centroids without some probes depend on one another there is no figure, and `reason` tells it.
    """
    names, size = tuple(fingerprints), len(next(iter(fingerprints.values()))[0])
    counts = torch.tensor([len(rows) for rows in fingerprints.values()])
    sums = torch.stack([rows.double().sum(dim=0) for rows in fingerprints.values()])  # [N, d]
    single = tuple(name for name, count in zip(names, counts.tolist(), strict=True) if count < 2)
    if len(single) == len(names):
        return Retrieval(0, None, None, {}, single, "nothing", "every domain has a single probe: give each at least two")
    alone = int(counts[counts > 1].sum()) * len(names) ** 2 * size <= ALONE_UP_TO
    groups = list(_each_alone(counts) if alone else _together(counts))
    grouping = "each probe alone" if alone else f"probes of all domains together, in {len(groups)} groups"
    first, three = torch.zeros(len(names), dtype=torch.long), torch.zeros(len(names), dtype=torch.long)
    try:
        for group in track(groups, "leave one out"):
            owners = torch.tensor([domain for domain, _ in group])
            left = torch.stack([fingerprints[names[domain]][probe] for domain, probe in group])  # [G, d]
            rest = sums.index_add(0, owners, -left.double())
            kept = counts - torch.bincount(owners, minlength=len(names))
            basis = make_basis((rest / kept[:, None]).to(left.dtype), general_mean, settings)
            best = top_k(basis.coefficients(left), min(3, len(names)), signed=settings.ranking == "signed")  # [G, 3]
            hits = best == owners[:, None]
            first.index_add_(0, owners, hits[:, 0].long())
            three.index_add_(0, owners, hits.any(dim=1).long())
    except DataError as error:
        return Retrieval(0, None, None, {}, single, grouping, f"with some probes left out there is no index: {told(error, names)}")
    tried = counts.where(counts > 1, 0)
    n = int(tried.sum())
    by_domain = {name: wilson(int(first[k]), int(tried[k])) for k, name in enumerate(names) if tried[k]}
    return Retrieval(n, wilson(int(first.sum()), n), wilson(int(three.sum()), n), by_domain, single, grouping)


def for_gram_schmidt(settings: IndexSettings) -> IndexSettings:
    """The settings under which Gram-Schmidt is measured: centring on the mean, which it cannot follow, counts as none."""
    return settings.changed(centring="none") if settings.centring == "mean" else settings


def order_sensitivity(fingerprints: Mapping[str, Tensor], general_mean: Tensor | None, settings: IndexSettings) -> OrderSensitivity:
    """Gram-Schmidt under other orders of the domains: all N! up to EXHAUSTIVE_UP_TO domains, above that a seeded sample.

    Centring and noise as in `settings` (centring on the mean, which Gram-Schmidt cannot follow, counts as none), whose
    orthogonalisation plays no part. After one QR everything happens in the centroids'
    span, so an order costs O(N^3), not O(N^2 d). Raises DataError where the centroids depend on one another.
    """
    settings = for_gram_schmidt(settings)
    rows = list(fingerprints.values())
    centroids = torch.stack([each.double().mean(dim=0) for each in rows])  # [N, d]
    offset = offset_of(centroids, general_mean, settings)
    centroids = noisy(centroids - offset, settings)
    gram_schmidt(centroids.to(rows[0].dtype))  # refused here, at the fingerprints' precision, if at all
    probes, owners = _sample(rows)
    probes = probes.double() - offset
    q, r = torch.linalg.qr(centroids.T)  # [d, N], [N, N]
    within = probes @ q  # [M, N]
    orders = list(_orders(len(rows), settings.seed))
    total, squares, given = torch.zeros_like(within), torch.zeros_like(within), None
    changed, first_wins, accuracy, unsteady = [], [], [], torch.zeros(len(probes), dtype=torch.bool)
    for order in orders:
        place = torch.tensor(order)
        coefficients = torch.empty_like(within)
        coefficients[:, place] = within @ gram_schmidt(r.T[place]).T
        winner = top_k(coefficients, 1)[:, 0]
        given = winner if given is None else given
        moved = winner != given
        total, squares, unsteady = total + coefficients, squares + coefficients.square(), unsteady | moved
        changed.append(_share(moved))
        first_wins.append(_share(winner == order[0]))
        accuracy.append(_share(winner == owners))
    deviation = (squares / len(orders) - (total / len(orders)).square()).clamp_min(0).sqrt()
    return OrderSensitivity(
        orders=len(orders),
        exhaustive=len(rows) <= EXHAUSTIVE_UP_TO,
        probes=len(probes),
        changed=sum(changed[1:]) / (len(orders) - 1),
        changed_most=max(changed),
        unsteady=_share(unsteady),
        first_wins=sum(first_wins) / len(orders),
        spread=float(deviation.mean() / probes.norm(dim=1).mean().clamp_min(torch.finfo(torch.float64).tiny)),
        accuracy=(min(accuracy), max(accuracy)),
    )


def told(error: AsterismError, names: Sequence[str]) -> str:
    """What is wrong and what was met, on one line, with the domain's name in place of a centroid's row number."""
    kind, _, number = str(error.met).partition(" ")
    met = f"domain {names[int(number)]!r}" if kind == "row" and number.isdigit() else error.met
    return f"{error.wrong.rstrip('.')} ({met})"


def _each_alone(counts: Tensor) -> Iterator[list[tuple[int, int]]]:
    for domain, count in enumerate(counts.tolist()):
        yield from ([(domain, probe)] for probe in range(count) if count > 1)


def _together(counts: Tensor) -> Iterator[list[tuple[int, int]]]:
    groups = min(GROUPS, int(counts.max()))  # at least 2, so that no domain is ever left without a probe
    for group in range(groups):
        yield [(domain, probe) for domain, count in enumerate(counts.tolist()) if count > 1 for probe in range(group, count, groups)]


def _orders(n: int, seed: int) -> Iterator[Sequence[int]]:
    """The order given first, then the others."""
    if n <= EXHAUSTIVE_UP_TO:
        yield from permutations(range(n))
        return
    generator = torch.Generator().manual_seed(seed)
    yield tuple(range(n))
    for _ in range(200 if n <= 100 else 20):
        yield torch.randperm(n, generator=generator).tolist()


def _sample(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """At most SAMPLED_PROBES fingerprints [M, d], evenly spread, and whose domain each is [M]."""
    owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(each) for each in rows]))
    starts = torch.tensor([0, *(len(each) for each in rows)]).cumsum(0)
    chosen = torch.linspace(0, len(owners) - 1, min(SAMPLED_PROBES, len(owners)), dtype=torch.float64).round().long()
    return torch.stack([rows[int(owners[k])][int(k - starts[owners[k]])] for k in chosen]), owners[chosen]


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _named(name: str, rate: tuple[float, float, float] | None) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), rate or (None, None, None), strict=True))
