"""What a constellation is made of: checked probes, their fingerprints, centroids (Eq. 2) and domain signatures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from asterism.constellation.fingerprints import fingerprints, module_signatures
from asterism.constellation.settings import IndexSettings
from asterism.core.corpus import GENERAL
from asterism.core.errors import DataError, UnknownName
from asterism.core.progress import counting, quiet
from asterism.core.storage import digest_of, read_tensors, write_tensors
from asterism.models.library import Library

FINAL = "final"
"""Name under which a signature of the final hidden state is kept, beside module paths."""

CHUNK = 256
"""Texts fingerprinted together: enough for full batches of like length, few enough to lose little when interrupted."""


def checked(library: Library, probes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Probes by domain as lists. UnknownName for a domain without a specialist, DataError for a domain without probes."""
    for domain, texts in probes.items():
        if domain != GENERAL and domain not in library.names:
            raise UnknownName("specialist for the probes' domain", domain, library.names)
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                "A domain's probes are a list of texts.", met=f"{domain}: {texts!r:.60}", mend='e.g. {"medical": ["one text", "another"]}'
            )
        if not len(texts):
            raise DataError(
                "A domain has no probes.", met=domain, mend="give it at least one text (twenty and more make a steady centroid)"
            )
    return {domain: list(texts) for domain, texts in probes.items()}


def fingerprinted(
    library: Library, probes: Mapping[str, Sequence[str]], settings: IndexSettings, state: str | Path | None = None
) -> dict[str, Tensor]:
    """Domain -> [n, d] fingerprints in the generalist.

    With a folder `state`, finished domains are kept there by the digest of all that they depend on, and taken from there.
    """
    found: dict[str, Tensor] = {}
    with counting("fingerprints", sum(map(len, probes.values()))) as advance:
        for domains in _chunks(probes):
            fresh = []
            for domain in domains:
                kept = _place(library, probes[domain], settings, state)
                if kept is not None and kept.exists():
                    found[domain] = read_tensors(kept)["fingerprints"]
                else:
                    fresh.append(domain)
            found |= _forwarded(library, {domain: probes[domain] for domain in fresh}, settings) if fresh else {}
            for domain in fresh:
                if (place := _place(library, probes[domain], settings, state)) is not None:
                    write_tensors(place, {"fingerprints": found[domain]})
            advance(sum(len(probes[domain]) for domain in domains))
    return {domain: found[domain] for domain in probes}


def centroid(rows: Tensor) -> Tensor:
    """Mean of a domain's fingerprints [n, d] -> [d], summed in float64 (Eq. 2)."""
    if rows.ndim != 2 or not len(rows):
        raise DataError("A domain's fingerprints come as rows, at least one.", met=tuple(rows.shape), mend="[n, d]")
    return rows.double().mean(dim=0).to(rows.dtype)


def domain_signatures(library: Library, probes: Mapping[str, Sequence[str]], settings: IndexSettings) -> dict[str, Tensor]:
    """`module@domain` -> [out]: each specialist's mean signature (Eq. 6) on its own probes, at every module and the final state."""
    kept: dict[str, Tensor] = {}
    own = {domain: texts for domain, texts in probes.items() if domain != GENERAL}
    with counting("signatures", len(own)) as advance:
        for domain, texts in own.items():
            with quiet():
                found = module_signatures(library.model(domain), library.anatomy, library.tokenizer, texts, max_length=settings.max_length)
            found[FINAL] = found.pop(library.anatomy.layout.final_norm)
            kept |= {f"{path}@{domain}": values.double().mean(dim=0).float() for path, values in found.items()}
            advance(1)
    return kept


def _chunks(probes: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for domain, texts in probes.items():
        chunk.append(domain)
        size += len(texts)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _forwarded(library: Library, probes: Mapping[str, Sequence[str]], settings: IndexSettings) -> dict[str, Tensor]:
    texts = [text for part in probes.values() for text in part]
    with quiet():
        rows = fingerprints(library.model(None), library.tokenizer, texts, layer=settings.layer, max_length=settings.max_length)
    parts = torch.split(rows, [len(part) for part in probes.values()])
    return {domain: part.clone() for domain, part in zip(probes, parts, strict=True)}


def _place(library: Library, texts: Sequence[str], settings: IndexSettings, state: str | Path | None) -> Path | None:
    if state is None:
        return None
    return Path(state) / f"{digest_of(library.digest(), settings.layer, settings.max_length, list(texts))}.safetensors"
