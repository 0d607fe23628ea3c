"""What a constellation is good for, measured: collinearity, residuals, order, retrieval; and plain advice with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from asterism.constellation.basis import make_basis, noisy, offset_of
from asterism.constellation.separation import OrderSensitivity, Retrieval, for_gram_schmidt, leave_one_out, order_sensitivity, told
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError, SettingsError
from asterism.core.geometry import cosine_matrix, mean_collinearity, residual_norms, unique_norms

if TYPE_CHECKING:
    from asterism.constellation.index import Constellation

MERGE_BELOW = 0.93
"""Mean collinearity below which task arithmetic suffices (section 5.5)."""
NOISE_ABOVE = 0.97
"""Mean collinearity above which the residuals may carry too little signal (sections 5.5, 7.4)."""
RELIABLE = 0.8
"""Left-out probes that find their own domain: from this share on the residuals do carry signal, however collinear the domains."""

CLOSE = 0.005
"""Nats a token within which the cheaper way is advised."""
WAYS = {
    "generalist": ("generalist",),
    "merge": ("uniform", "task_arithmetic@"),
    "route": ("routed_coefficient", "routed_activation"),
    "compose": ("default",),
}
"""Advice -> the calibration's measured losses it rests on (a name that ends in @ stands for all its scales), cheapest way first."""
UNMEASURED = (
    "The advice rests on geometry. `asterism calibrate` measures every way to answer on held-out probes, and the advice follows that."
)

Advice = Literal["generalist", "merge", "route", "compose", "add noise", "domains not separable"]


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Every measurement of one constellation. Norms and collinearities have no unit; rates come with Wilson intervals."""

    domains: tuple[str, ...]
    counts: tuple[int, ...]
    """Probes of each domain."""
    settings: IndexSettings
    collinearity: Tensor
    """[N, N] cosines of the raw centroids (Table 5)."""
    mean: float
    """Mean over the pairs (Table 1)."""
    centred_mean: float
    """The same after centring and noise: what is orthogonalised."""
    post: float | None
    """The same for the basis; None where there is none."""
    residuals: Tensor
    """[N] share of each (centred) centroid's norm that Gram-Schmidt leaves, in the order given."""
    unique: Tensor
    """[N] share that no combination of the other domains explains, whatever the order."""
    order: OrderSensitivity | None
    """Of Gram-Schmidt, as information even where the index uses another orthogonalisation; None where it cannot be formed."""
    retrieval: Retrieval
    """Leave-one-out accuracy of this index."""
    order_free: Retrieval
    """The same with Loewdin's basis, no centring and no noise: what the domains allow, apart from this index's choices."""
    advice: Advice
    reason: str
    """The measured reason of the advice."""
    notes: tuple[str, ...]
    """What else the reader should know."""
    geometry: Advice
    """The advice of geometry alone, which a calibration's measurements overrule."""

    def pairs(self) -> list[tuple[str, str, float]]:
        """Every pair of domains with its cosine, most collinear first."""
        rows, columns = torch.triu_indices(len(self.domains), len(self.domains), offset=1)
        cosines = self.collinearity[rows, columns]
        ranks = cosines.sort(descending=True, stable=True).indices
        found = zip(rows[ranks].tolist(), columns[ranks].tolist(), cosines[ranks].tolist(), strict=True)
        return [(self.domains[a], self.domains[b], cosine) for a, b, cosine in found]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; tables as nested lists in the order of `domains`."""
        return {
            "domains": list(self.domains),
            "counts": list(self.counts),
            "settings": self.settings.model_dump(mode="json"),
            "collinearity": {"pairs": self.collinearity.tolist(), "mean": self.mean, "centred_mean": self.centred_mean, "post": self.post},
            "residuals": {"gram_schmidt": self.residuals.tolist(), "unique": self.unique.tolist()},
            "order": self.order and self.order.to_dict(),
            "retrieval": self.retrieval.to_dict(),
            "order_free": self.order_free.to_dict(),
            "advice": self.advice,
            "reason": self.reason,
            "notes": list(self.notes),
            "geometry": self.geometry,
        }


def diagnose(constellation: Constellation) -> Diagnosis:
    """Measure a constellation from its stored fingerprints, and take what its calibration measured; no model is run."""
    fingerprints = {name: constellation.fingerprints(name) for name in constellation.domains}
    found, calibration = diagnosis_of(fingerprints, constellation.general_mean, constellation.settings), constellation.calibration
    if not calibration.fitted:
        return replace(found, notes=(*found.notes, UNMEASURED))
    advice, reason = measured_advice(calibration.losses, len(calibration.probes))
    notes = () if advice == found.advice else (f"Geometry alone would say: {found.advice}. {found.reason}",)
    return replace(found, advice=advice, reason=reason, notes=(*found.notes, *notes))


def measured_advice(losses: Mapping[str, float], probes: int) -> tuple[Advice, str]:
    """The cheapest way to answer whose loss on the validation probes is within CLOSE of the best way's, and the losses that say so."""
    ways: dict[str, float] = {}
    for way, names in WAYS.items():
        found = [loss for name, loss in losses.items() if any(name == own or (own[-1] == "@" and name.startswith(own)) for own in names)]
        if found:
            ways[way] = min(found)
    least = min(ways.values())
    chosen = next(way for way, loss in ways.items() if loss <= least + CLOSE)
    told = ", ".join(f"{way} {loss:.3f}" for way, loss in sorted(ways.items(), key=lambda pair: pair[1]))
    cheap = "" if ways[chosen] == least else f"; {chosen} is the cheapest within {CLOSE} nats of the best"
    return cast(Advice, chosen), f"Measured on {probes} validation probes, mean loss in nats a token: {told}{cheap}."


def diagnosis_of(fingerprints: Mapping[str, Tensor], general_mean: Tensor | None, settings: IndexSettings) -> Diagnosis:
    """Measure an index from the fingerprints of each domain's probes, {domain: [n, d]}, and the general mean [d] or None.

    The advice rests on geometry alone.

    Domains too alike to form a basis are diagnosed as such, not refused. Raises DataError for fewer than two domains, a domain
    without probes, or fingerprints that are not finite or have no direction.
    """
    _check(fingerprints)
    names, rows = tuple(fingerprints), list(fingerprints.values())
    raw = torch.stack([each.double().mean(dim=0) for each in rows])  # [N, d]
    followed = for_gram_schmidt(settings)
    centred = noisy(raw - offset_of(raw, general_mean, followed), followed).to(rows[0].dtype)
    order, broken, notes = None, None, []
    try:
        order = order_sensitivity(fingerprints, general_mean, settings)
    except DataError as error:
        notes.append(f"Gram-Schmidt has no basis here, so no order could be tried: {told(error, names)}")
    try:
        post = mean_collinearity(make_basis(raw.to(rows[0].dtype), general_mean, settings).vectors)
    except (DataError, SettingsError) as error:
        post, broken = None, told(error, names)
    plain = settings.changed(orthogonalisation="lowdin", centring="none", noise_site="none")
    unindexed = Retrieval(0, None, None, {}, (), "nothing", broken)
    retrieval = leave_one_out(fingerprints, general_mean, settings) if broken is None else unindexed
    order_free = retrieval if plain == settings else leave_one_out(fingerprints, None, plain)
    mean = mean_collinearity(raw)
    advice, reason = advise(mean, len(rows), retrieval, order_free, broken)
    return Diagnosis(
        domains=names,
        counts=tuple(map(len, rows)),
        settings=settings,
        collinearity=cosine_matrix(raw),
        mean=mean,
        centred_mean=mean_collinearity(centred),
        post=post,
        residuals=residual_norms(centred),
        unique=unique_norms(centred),
        order=order,
        retrieval=retrieval,
        order_free=order_free,
        advice=advice,
        reason=reason,
        notes=(*notes, *_notes(settings, retrieval, order_free, order)),
        geometry=advice,
    )


def advise(mean: float, domains: int, retrieval: Retrieval, order_free: Retrieval, broken: str | None = None) -> tuple[Advice, str]:
    """Advice and its measured reason, from the mean collinearity (section 5.5) and the better of the two retrieval figures.

    `broken` tells why no basis exists, if none does. Retrieval no better than guessing overrules the collinearity, and reliable
    retrieval overrules the call for noise: the paper's noise helps only where the index fails (section 7.4).
    """
    best = max(((figure.top1, figure.n) for figure in (retrieval, order_free) if figure.top1), default=None)
    if best is None and broken is not None:
        return "domains not separable", f"No basis can be formed: {broken}. Merge the domains concerned, or give them other probes."
    rate = 0.0
    if best is None:
        found = f"How well the index retrieves is unknown ({retrieval.reason}), so this rests on collinearity alone."
    else:
        (rate, low, high), n = best
        found = f"Left out of the index, {rate:.1%} of {n} probes find their own domain first ({low:.1%} to {high:.1%})"
        if low <= 1 / domains:
            guess = f"{found}, no better than guessing ({1 / domains:.1%})."
            return "domains not separable", f"{guess} Give more or clearer probes, or merge the specialists whatever the query."
        found += "."
    height = f"The centroids' mean collinearity is {mean:.3f}"
    if mean < MERGE_BELOW and rate >= RELIABLE:
        return (
            "compose",
            f"{height}, below {MERGE_BELOW}, where the paper would merge; but the index is reliable, and then composing a query's own "
            f"model was measured to beat a static merge (docs/results.md). {found}",
        )
    if mean < MERGE_BELOW:
        return (
            "merge",
            f"{height}, below {MERGE_BELOW}: the task vectors hardly interfere, so a static merge (task arithmetic) should do. {found}",
        )
    if mean <= NOISE_ABOVE:
        return (
            "compose",
            f"{height}, between {MERGE_BELOW} and {NOISE_ABOVE}: merging interferes, and the residuals still tell domains apart. {found}",
        )
    if rate >= RELIABLE:
        return (
            "compose",
            f"{height}, above {NOISE_ABOVE}, yet the thin residuals carry enough signal, so noise has nothing to rescue. {found}",
        )
    return (
        "add noise",
        f"{height}, above {NOISE_ABOVE}: the residuals are thin. Try noise_site centroids with noise 0.02 before composing. {found}",
    )


def _notes(settings: IndexSettings, retrieval: Retrieval, order_free: Retrieval, order: OrderSensitivity | None) -> list[str]:
    notes = []
    if retrieval.top1 and order_free.top1 and order_free.top1[1] > retrieval.top1[2]:
        rates = f"{order_free.top1[0]:.1%} of left-out probes against {retrieval.top1[0]:.1%}"
        notes.append(f"This index's choices cost retrieval: orthogonalisation lowdin without centring or noise finds {rates}.")
    if settings.orthogonalisation == "gram_schmidt" and order and order.unsteady > 0:
        counted = f"{order.orders} orders" if order.exhaustive else f"{order.orders} sampled orders"
        first = f"the domain that comes first wins {order.first_wins:.1%} of the probes"
        notes.append(
            f"Gram-Schmidt depends on the order: over {counted}, {order.unsteady:.1%} of the probes change their domain, and {first}."
        )
    if retrieval.left_out and retrieval.top1:
        some = ", ".join(retrieval.left_out[:5]) + (f" and {len(retrieval.left_out) - 5} more" if len(retrieval.left_out) > 5 else "")
        notes.append(f"Not in the retrieval figure, for want of a second probe: {some}.")
    return notes


def _check(fingerprints: Mapping[str, Tensor]) -> None:
    if len(fingerprints) < 2:
        raise DataError("A diagnosis compares domains.", met=f"{len(fingerprints)} domain(s)", mend="index at least two")
    for name, rows in fingerprints.items():
        if not len(rows):
            raise DataError("A domain has no probes.", met=repr(name), mend="give it at least one, better 20 or more")
        if not rows.isfinite().all():
            raise DataError("A fingerprint holds NaN or infinity.", met=f"domain {name!r}", mend="check the generalist's weights")
