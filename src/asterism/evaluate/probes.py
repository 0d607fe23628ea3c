"""Which probes are scored: a seeded draw from each domain and pair, tokenised, with what each protocol reads and scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from asterism.constellation.calibration import Calibration
from asterism.core.corpus import GENERAL, Corpus, Probe, check_domains
from asterism.core.errors import DataError
from asterism.core.storage import digest_of
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.models.batching import tokenise
from asterism.models.library import Library

SHORTEST = 4
"""Tokens a probe needs: two to read and two to score in each half."""


@dataclass(frozen=True)
class Span:
    """Token indices [start, stop) of one text."""

    start: int
    stop: int


def read_span(protocol: Protocol, length: int) -> Span:
    """The tokens that weights are taken from: all of them, or the first half."""
    return Span(0, length if protocol == "whole" else length // 2)


def scored_span(protocol: Protocol, length: int) -> Span:
    """The tokens whose loss counts: all but the first, or the second half."""
    return Span(1 if protocol == "whole" else length // 2, length)


def draw(corpus: Corpus, domains: Sequence[str], settings: EvaluationSettings) -> list[Probe]:
    """Held-out probes of each domain and cross-domain probes of each pair, at most as many as the settings ask.

    The draw depends on the seed and the probes' order alone. Raises DataError when there is nothing to draw and
    UnknownName when a probe names a domain without a specialist.
    """
    check_domains([*(probe for probes in corpus.heldout.values() for probe in probes), *corpus.cross], domains)
    groups: dict[str, list[Probe]] = {}
    for domain in domains:
        for probe in corpus.heldout.get(domain, []):
            groups.setdefault(domain, []).append(probe)
    for probe in corpus.cross:
        if GENERAL not in probe.domains:
            groups.setdefault("-".join(sorted(probe.domains, key=list(domains).index)), []).append(probe)
    chosen: list[Probe] = []
    for name, members in groups.items():
        wanted = settings.cross_per_pair if members[0].is_cross else settings.single_per_domain
        sample = random.Random(f"{settings.seed}:{name}").sample(members, min(wanted, len(members)))
        chosen.extend(Probe(probe.id, probe.text, tuple(name.split("-")) if probe.is_cross else probe.domains) for probe in sample)
    if not chosen:
        mend = "give <domain>.heldout or cross.<a>-<b> files of the library's domains"
        raise DataError("There is no probe to evaluate on.", met=f"domains {list(domains)}", mend=mend)
    return chosen


def validation_probes(corpus: Corpus, domains: Sequence[str], settings: EvaluationSettings, per_group: int = 6) -> list[Probe]:
    """Up to `per_group` probes of each domain and pair that `draw` with the same settings leaves over: none of them is ever a test probe.

    So are as many general texts as of all domains together, of those that `draw_general` leaves over. Raises DataError when nothing
    of the domains is left over.
    """
    tested = {digest_of(probe.text) for probe in [*draw(corpus, domains, settings), *draw_general(corpus, settings)]}
    everyone = draw(corpus, domains, settings.changed(single_per_domain=10**9, cross_per_pair=10**9))
    groups: dict[str, list[Probe]] = {}
    for probe in everyone:
        if digest_of(probe.text) not in tested:
            groups.setdefault(probe.group, []).append(probe)
    chosen = [probe for members in groups.values() for probe in members[:per_group]]
    if not chosen:
        mend = "give more held-out texts, or test on fewer (single_per_domain, cross_per_pair)"
        wrong = "No held-out text is left to calibrate on, or to tune merges on."
        raise DataError(wrong, met=f"{len(tested)} test probes, nothing beside them", mend=mend)
    general = [probe for probe in corpus.heldout.get(GENERAL, []) if digest_of(probe.text) not in tested]
    return [*chosen, *general[: per_group * len(domains)]]


def draw_general(corpus: Corpus, settings: EvaluationSettings) -> list[Probe]:
    """Held-out general texts, which need no specialist: as many as probes of a domain; none where the corpus holds none."""
    members = corpus.heldout.get(GENERAL, [])
    return random.Random(f"{settings.seed}:{GENERAL}").sample(members, min(settings.single_per_domain, len(members)))


def by_group(probes: Sequence[Probe]) -> dict[str, list[str]]:
    """Group -> the texts of its probes."""
    groups: dict[str, list[str]] = {}
    for probe in probes:
        groups.setdefault(probe.group, []).append(probe.text)
    return groups


def check_unseen(probes: Sequence[Probe], calibration: Calibration) -> None:
    """DataError naming the first probe that the numbers of the index were fitted on."""
    seen = set(calibration.probes)
    shared = [probe.id for probe in probes if digest_of(probe.text) in seen]
    if shared:
        mend = "evaluate on probes that calibration did not read (the same --seed and counts draw them apart), or calibrate on others"
        raise DataError("Test probes were calibrated on.", met=f"{len(shared)} of {len(probes)}, e.g. {shared[0]!r}", mend=mend)


def tokens_of(library: Library, probes: Sequence[Probe], max_length: int) -> list[list[int]]:
    """Token ids of every probe, cut at `max_length`, proven to be scorable by a library.

    Raises UnknownName for a probe of a domain without a specialist, DataError for one that is empty or too short to be scored.
    """
    check_domains(probes, library.names)
    tokens = tokenise(library.tokenizer, [probe.text for probe in probes], max_length)
    for probe, ids in zip(probes, tokens, strict=True):
        if len(ids) < SHORTEST:
            raise DataError(
                "A probe is too short to score.",
                met=f"{probe.id!r}: {len(ids)} tokens",
                mend=f"remove it, or give it {SHORTEST} tokens or more",
            )
    return tokens
