"""Which texts an index is made from: a seeded draw of each domain's training texts, so that held-out texts stay unseen."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from asterism.core.corpus import GENERAL, Corpus
from asterism.core.errors import UnknownName

PER_DOMAIN = 40
"""Probes a domain, as in the paper."""


def draw_index_probes(corpus: Corpus, domains: Sequence[str], per_domain: int = PER_DOMAIN, seed: int = 42) -> dict[str, list[str]]:
    """domain -> at most `per_domain` of its training texts, and of the `general` ones where there are any.

    Raises UnknownName when a domain has no training texts.
    """
    drawn = {}
    for domain in [*domains, *([GENERAL] if GENERAL in corpus.train else [])]:
        if not corpus.train.get(domain):
            raise UnknownName("domain with training texts", domain, corpus.train)
        texts = corpus.train[domain]
        drawn[domain] = Random(f"{seed}:{domain}").sample(texts, min(per_domain, len(texts)))
    return drawn
