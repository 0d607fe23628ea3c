"""Fit the numbers of the modes `evidence` and `fast` on validation probes, which no evaluation may score again.

Greedy over one number after another: each of its values is tried with the others as they stand, by mean loss over both protocols and
three tasks (one domain, two domains, and general text, which needs no specialist), and taken if it is better by MARGIN. Few numbers,
coarse values, paired losses: little to overfit with some eighty probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.calibration import Calibration
from asterism.constellation.index import Constellation
from asterism.constellation.settings import MixtureSettings
from asterism.core.corpus import GENERAL, Probe
from asterism.core.errors import DataError
from asterism.core.parts import Parts
from asterism.core.progress import counting, quiet
from asterism.core.storage import digest_of
from asterism.evaluate.candidates import DEFAULT, FAST, Composed, derived, mixtures_of, static_candidates
from asterism.evaluate.packing import pack, unpack
from asterism.evaluate.passes import score_composed, score_static
from asterism.evaluate.probes import tokens_of
from asterism.evaluate.reading import Reading, read_all
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.batching import Batch, batches, pad_id
from asterism.models.library import Library

GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "evidence": {
        "scale": (1.0, 1.15, 1.3, 1.5),
        "temperature": (0.1, 0.15, 0.2, 0.3),
        "generalist": (-1.0, 0.0, 0.5, 1.0),
        "prior": (0.0, 0.5, 1.0),
    },
    "fast": {"fast_prior": (1.0, 2.0, 3.0), "fast_scale": (1.0, 1.3, 1.5), "fast_generalist": (-1.0, 0.0, 1.0)},
}
"""Mode -> number -> values tried, in this order."""
MARGIN = 5e-4
"""Nats a token by which a value must be better to be taken."""
NAMES = {"evidence": DEFAULT, "fast": FAST}


def calibrate(
    library: Library,
    constellation: Constellation,
    probes: Sequence[Probe],
    settings: EvaluationSettings | None = None,
    *,
    state: str | Path | None = None,
) -> Constellation:
    """The constellation with numbers fitted on `probes`, which it remembers; nothing is saved.

    Cost: the generalist and every specialist read the probes once, then each value tried is one composed pass over them (24 values,
    by two protocols). `state` is a folder where finished passes are kept, so that an interrupted fit goes on there; it is removed at the
    end. Raises DataError for no probes or one too short to score, UnknownName for one of a domain without a specialist.
    """
    settings = settings or EvaluationSettings()
    if not probes:
        raise DataError("A fit needs validation probes.", met="none", mend="give held-out texts that no test scores")
    tokens = tokens_of(library, probes, settings.max_length)
    batched = batches(tokens, max_tokens=settings.max_tokens, pad=pad_id(library.tokenizer))
    parts = Parts(Path(state), _origin(library, constellation, probes, settings)) if state else None

    def read() -> dict[str, Tensor]:
        everything = Composer(library, CompositionSettings(layers="all", node_map="mean"))
        return pack(read_all(library, everything, batched, len(probes), layer=constellation.settings.layer, ensembles=False))

    reading = unpack(_kept(parts, "reading", read), library.names)
    objective = _objective(library, reading, probes, batched, settings, parts)
    found, losses = Calibration(), rivals(library, constellation, reading, probes, batched, settings, parts)
    k = min(settings.top_k, len(library.names))
    with counting("values", sum(len(values) for grid in GRIDS.values() for values in grid.values())) as advance:
        for mode, grid in GRIDS.items():
            asked = MixtureSettings(top_k=k, mode=mode)  # pyright: ignore[reportArgumentType]
            loss = lambda tried, m=mode, a=asked: objective(  # noqa: E731
                Composed(NAMES[m], CompositionSettings(), a, constellation.with_calibration(tried))
            )
            found, losses[NAMES[mode]] = fitted(found, grid, loss, advance)
    if parts:
        parts.remove()
    kept = {name: library.digest(name) for name in library.names}
    seen = tuple(digest_of(probe.text) for probe in probes)
    return constellation.with_calibration(found.changed(losses=losses, probes=seen, specialists=kept))


def fitted(
    start: Calibration, grid: Mapping[str, Sequence[float]], loss: Callable[[Calibration], float], advance: Callable[[int], None]
) -> tuple[Calibration, float]:
    """(best numbers, their loss): one number after another, each over its values with the others as they stand."""
    best, least = start, loss(start)
    for name, values in grid.items():
        stands = getattr(best, name)
        tried = [(loss(best.changed(**{name: value})), value) for value in values if value != stands]
        advance(len(values))
        now, value = min([*tried, (least, stands)])
        if now < least - MARGIN:
            best, least = best.changed(**{name: value}), now
    return best, least


def mean_loss(losses: Mapping[str, Tensor], probes: Sequence[Probe]) -> float:
    """Mean over protocols and tasks of the mean loss: {protocol: [n]}; each task that has probes counts alike."""
    tasks = [task_of(probe) for probe in probes]
    masks = [torch.tensor([task == name for task in tasks]) for name in sorted(set(tasks))]
    parts = [float(losses[protocol][mask].mean()) for protocol, mask in product(losses, masks)]
    return sum(parts) / len(parts)


def task_of(probe: Probe) -> str:
    """`general`, `single` or `cross`: what a probe asks for."""
    return "general" if probe.domains == (GENERAL,) else "cross" if probe.is_cross else "single"


def rivals(
    library: Library,
    constellation: Constellation,
    reading: Reading,
    probes: Sequence[Probe],
    batched: Sequence[Batch],
    settings: EvaluationSettings,
    parts: Parts | None,
) -> dict[str, float]:
    """Mean loss of the other ways to answer, by the same measure: generalist, routers, static merges, and the oracle."""
    told = {"generalist": mean_loss({p: reading.generalist.loss[p] for p in settings.protocols}, probes)}
    picked = {p: derived(reading, constellation, p) for p in settings.protocols}
    told |= {name: mean_loss({p: picked[p][name][0] for p in picked}, probes) for name in picked[settings.protocols[0]]}
    for candidate in static_candidates(library, settings):
        scores = _kept(parts, candidate.name, lambda c=candidate: {**score_static(library, c, batched, len(probes)).loss})
        told[candidate.name] = mean_loss({p: scores[p] for p in settings.protocols}, probes)
    return told


def _objective(
    library: Library,
    reading: Reading,
    probes: Sequence[Probe],
    batched: Sequence[Batch],
    settings: EvaluationSettings,
    parts: Parts | None,
) -> Callable[[Composed], float]:
    """A candidate's mean loss; it keeps one composer, and with it what it has loaded."""
    composer = Composer(library, CompositionSettings())

    def scored(candidate: Composed) -> dict[str, Tensor]:
        with quiet():
            return {
                p: score_composed(composer, candidate, mixtures_of(candidate, reading, p, settings.seed), batched, p, settings)
                for p in settings.protocols
            }

    def loss(candidate: Composed) -> float:
        assert candidate.index is not None, "what is calibrated has an index"
        return mean_loss(_kept(parts, f"{candidate.name}-{candidate.index.calibration.digest()}", lambda: scored(candidate)), probes)

    return loss


def _kept(parts: Parts | None, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The part called `name`, made now unless an interrupted fit has finished it; always made where nothing is kept."""
    return parts.tensors(name, make) if parts else dict(make())


def _origin(library: Library, constellation: Constellation, probes: Sequence[Probe], settings: EvaluationSettings) -> str:
    """What a fit is made from: a kept pass of anything else is thrown away."""
    index = [dict(constellation.origin), constellation.settings.digest()]
    return digest_of(library.digests(), index, [[probe.text, list(probe.domains)] for probe in probes], settings.digest())
