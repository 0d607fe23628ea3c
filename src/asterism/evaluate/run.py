"""The evaluation: every candidate on every probe, by both protocols, with raw rows kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.diagnosis import diagnose
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.specialist_space import cosine_coefficients, specialist_space
from asterism.core.corpus import Probe
from asterism.core.parts import Parts
from asterism.core.storage import digest_of
from asterism.evaluate.candidates import (
    DEFAULT,
    PAPER,
    ROUTED,
    SPECIALIST_SPACE,
    TASK_ARITHMETIC,
    Composed,
    composed_candidates,
    derived,
    descriptions,
    mixtures_of,
    static_candidates,
)
from asterism.evaluate.merges import Merged
from asterism.evaluate.packing import pack, unpack
from asterism.evaluate.passes import collinearity, correlation, mixture_facts, refine, retrieval, score_composed, score_static
from asterism.evaluate.probes import check_unseen, read_span, tokens_of
from asterism.evaluate.reading import Reading, ensemble_tokens, read_all
from asterism.evaluate.results import FORMAT, write_results
from asterism.evaluate.routers import Routed
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.evaluate.tables import best_of, tables
from asterism.models.batching import Batch, batches, pad_id
from asterism.models.library import Library


def evaluate(
    library: Library,
    constellation: Constellation,
    probes: Sequence[Probe],
    settings: EvaluationSettings | None = None,
    *,
    out: str | Path,
    index_probes: Mapping[str, Sequence[str]] | None = None,
    merges: Sequence[Merged] = (),
    routers: Sequence[Routed] = (),
) -> dict[str, Any]:
    """Score every candidate on every probe; leave `rows.parquet` and `results.json` in `out` and return the results.

    `index_probes` (domain -> texts) are needed by the specialist-space contrast, which is left out without them. `merges`: further
    merges to score, with the settings that `evaluate.tuning.tuned` chose on other probes. `routers`: routed models to score, see
    `evaluate.routers.open_routers`. A killed run goes on where it stopped when called again with the same library, constellation, probes
    and settings. Raises DataError for a probe too short to score, or one that the constellation was calibrated on or a router has learnt
    from, UnknownName for a probe of a domain without a specialist.
    """
    settings, out = settings or EvaluationSettings(), Path(out)
    tokens = tokens_of(library, probes, settings.max_length)
    check_unseen(probes, constellation.calibration)
    for router in routers:
        router.check([probe.text for probe in probes])
    n, voices = len(probes), len(library.names) if settings.ensembles else 0
    pad = pad_id(library.tokenizer)
    reading_batches = batches(tokens, max_tokens=ensemble_tokens(voices, library.anatomy.vocabulary, settings.max_tokens), pad=pad)
    score_batches = batches(tokens, max_tokens=settings.max_tokens, pad=pad)

    made_from: dict[str, Any] = {
        "library": library.digests(),
        "constellation": constellation.origin,
        "calibration": constellation.calibration.digest(),
        "index": constellation.settings.model_dump(mode="json"),
        "probes": digest_of([[probe.id, probe.text, list(probe.domains)] for probe in probes]),
        "index_probes": digest_of({name: list(texts) for name, texts in (index_probes or {}).items()}),
    }
    if merges:
        made_from["merges"] = [merged.told for merged in merges]
    if routers:
        made_from["routers"] = [router.told for router in routers]
    parts = Parts(out / ".parts", digest_of(made_from, settings.model_dump(mode="json")))
    read = {p: [library.tokenizer.decode(ids[: read_span(p, len(ids)).stop]) for ids in tokens] for p in settings.protocols}
    reading = _reading(library, constellation, reading_batches, n, parts, settings)
    space = _specialist_space(library, constellation, index_probes)

    losses: dict[tuple[str, Protocol], Tensor] = dict(_read_losses(reading, constellation, settings))
    for candidate in (*static_candidates(library, settings), *routers):
        found = parts.tensors(candidate.name, lambda c=candidate: {**score_static(library, c, score_batches, n).loss})
        losses |= {(candidate.name, protocol): found[protocol] for protocol in settings.protocols}
    picks: dict[Protocol, Tensor] = {p: derived(reading, constellation, p)[ROUTED][1] for p in settings.protocols}
    for candidate in merges:
        found = parts.tensors(candidate.name, lambda c=candidate: c.score(library, picks, score_batches, n))
        losses |= {(candidate.name, protocol): found[protocol] for protocol in settings.protocols}
    facts: list[dict] = []
    example: dict[str, Any] = {}
    composers: dict[str, Composer] = {}  # candidates of equal settings share one, and with it what it has loaded

    def composer(candidate: Composed) -> Composer:
        key = candidate.composition.digest()
        return composers[key] if key in composers else composers.setdefault(key, Composer(library, candidate.composition))

    composed = [c for c in composed_candidates(library, constellation, settings) if c.name != SPECIALIST_SPACE or space is not None]
    for candidate in composed:
        for protocol in settings.protocols:
            mixtures = mixtures_of(candidate, reading, protocol, settings.seed, space, read[protocol])

            def score(candidate=candidate, mixtures=mixtures, protocol: Protocol = protocol) -> dict[str, Tensor]:
                final = refine(composer(candidate), candidate, mixtures, tokens, protocol) if candidate.refine else mixtures
                return {"loss": score_composed(composer(candidate), candidate, final, score_batches, protocol, settings)}

            losses[candidate.name, protocol] = parts.tensors(f"{candidate.name}-{protocol}", score)["loss"]
            if protocol == settings.protocols[0] and candidate.index is not None and not candidate.refine:
                coefficients = candidate.index.basis.coefficients(reading.generalist.fingerprint[protocol])
                facts += mixture_facts(candidate.name, mixtures, coefficients, probes)
            if protocol == settings.protocols[0] and candidate.name == DEFAULT:
                example = _example(constellation, probes, mixtures, settings)

    about = descriptions(library, settings, composed) | {each.name: each.about for each in (*merges, *routers)}
    rows = list(_rows(probes, tokens, losses, settings))
    rows += best_of(rows, f"{TASK_ARITHMETIC}@", TASK_ARITHMETIC)
    wins, means = tables(rows, settings.scale)
    results = {
        "format_version": FORMAT,
        "scale": settings.scale,
        "seeds": [settings.seed],
        "settings": settings.model_dump(mode="json"),
        "origin": made_from,
        "domains": list(library.names),
        "candidates": {name: line for name, line in about.items() if any(row["candidate"] == name for row in rows)},
        "table": wins,
        "losses": means,
        "retrieval": _retrieval(library, reading, probes, space, settings, composed),
        "correlation": [{"seed": settings.seed, **correlation(reading, _coefficients(constellation, reading))}],
        "collinearity": collinearity(constellation),
        "diagnosis": diagnose(constellation).to_dict(),
        "mixtures": facts,
        "probes": _places(probes, _coefficients(constellation, reading)),
        "example": example,
    }
    write_results(out, results, rows)
    parts.remove()
    return results


def _reading(
    library: Library, constellation: Constellation, batched: Sequence[Batch], n: int, parts: Parts, settings: EvaluationSettings
) -> Reading:
    composer = Composer(library, CompositionSettings(layers="all", node_map="mean"))
    layer, ensembles = constellation.settings.layer, settings.ensembles
    return unpack(
        parts.tensors("reading", lambda: pack(read_all(library, composer, batched, n, layer=layer, ensembles=ensembles))), library.names
    )


def _specialist_space(library: Library, constellation: Constellation, index_probes: Mapping[str, Sequence[str]] | None) -> Tensor | None:
    if index_probes is None:
        return None
    return specialist_space(library, index_probes, constellation.settings)


def _coefficients(constellation: Constellation, reading: Reading) -> Tensor:
    return constellation.basis.coefficients(reading.generalist.fingerprint["whole"])


def _read_losses(
    reading: Reading, constellation: Constellation, settings: EvaluationSettings
) -> Iterator[tuple[tuple[str, Protocol], Tensor]]:
    for protocol in settings.protocols:
        yield ("generalist", protocol), reading.generalist.loss[protocol]
        for name, scores in reading.specialists.items():
            yield (f"specialist:{name}", protocol), scores.loss[protocol]
        for name, losses in reading.ensembles.items():
            yield (name, protocol), losses[protocol]
        for name, (losses, _) in derived(reading, constellation, protocol).items():
            yield (name, protocol), losses


def _rows(
    probes: Sequence[Probe], tokens: Sequence[Sequence[int]], losses: Mapping[tuple[str, Protocol], Tensor], settings: EvaluationSettings
) -> Iterator[dict]:
    for (candidate, protocol), values in losses.items():
        for probe, ids, loss in zip(probes, tokens, values.tolist(), strict=True):
            yield {
                "scale": settings.scale, "seed": settings.seed, "protocol": protocol, "task": "cross" if probe.is_cross else "single",
                "group": probe.group, "probe": probe.id, "candidate": candidate, "loss": loss, "tokens": len(ids),
            }  # fmt: skip


def _retrieval(
    library: Library,
    reading: Reading,
    probes: Sequence[Probe],
    space: Tensor | None,
    settings: EvaluationSettings,
    composed: Sequence[Composed],
) -> list[dict]:
    """Pass 2 in generalist space with the default's and the paper's basis, and in specialist space."""
    if all(probe.is_cross for probe in probes):
        return []
    fingerprints, found = reading.generalist.fingerprint["whole"], []
    for candidate in composed:
        if candidate.name in (DEFAULT, PAPER) and (index := candidate.index):
            coefficients, signed = index.basis.coefficients(fingerprints), index.settings.ranking == "signed"
            found.append(retrieval(f"generalist, {candidate.name}'s basis", coefficients, probes, index.domains, signed=signed))
    if space is not None:
        found.append(retrieval("specialist", cosine_coefficients(fingerprints, space), probes, library.names, signed=False))
    return [{"seed": settings.seed, **entry} for entry in found]


def _places(probes: Sequence[Probe], coefficients: Tensor) -> list[dict]:
    return [
        {"id": probe.id, "group": probe.group, "task": "cross" if probe.is_cross else "single", "coefficients": row}
        for probe, row in zip(probes, coefficients.tolist(), strict=True)
    ]


def _example(
    constellation: Constellation, probes: Sequence[Probe], mixtures: Sequence[Mixture], settings: EvaluationSettings
) -> dict[str, Any]:
    if settings.example:
        text, group = settings.example, ""
        mixture = constellation.mixture(text, top_k=min(settings.top_k, len(constellation.domains)))
    else:
        chosen = next((row for row, probe in enumerate(probes) if probe.is_cross), 0)
        text, group, mixture = probes[chosen].text, probes[chosen].group, mixtures[chosen]
    return {
        "text": text,
        "group": group,
        "specialists": list(mixture.specialists),
        "coefficients": mixture.coefficients.tolist(),
        "weights": mixture.weights.tolist(),
        "losses": mixture.evidence,
        "generalist": mixture.generalist,
        "scale": mixture.scale,
        "entropy": mixture.entropy,
    }
