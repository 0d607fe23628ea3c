"""The constellation: the index over a library that tells, for a query, how much of each specialist it asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.constellation import store
from asterism.constellation.basis import Basis, make_basis
from asterism.constellation.calibration import Calibration
from asterism.constellation.evidence import Evidence, evidence_mixtures, fast_mixtures, prior_basis, standardised
from asterism.constellation.fingerprints import block_modules, fingerprints, module_signatures, signatures
from asterism.constellation.making import FINAL, centroid, checked, domain_signatures, fingerprinted
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.constellation.store import Shelf
from asterism.constellation.weighing import Signature, Source, mixtures_of, tabled
from asterism.core.corpus import GENERAL
from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.models.library import Library
from asterism.models.likelihood import read
from asterism.models.types import PreTrainedModel

FOLDER = "constellation"
"""Where a library keeps its constellation."""


@dataclass(frozen=True, eq=False)
class Constellation:
    """Centroids and basis of a library's domains, in generalist space, with the fingerprints they come from.

    Made by `build`, `load` or `from_fingerprints`. Nothing changes it: `with_*` and `without_*` return another one.
    """

    library: Library = field(repr=False)
    settings: IndexSettings
    domains: tuple[str, ...]
    """The specialists' names, in the library's order: the order of Gram-Schmidt."""
    counts: tuple[int, ...]
    """Probes of each domain."""
    centroids: Tensor = field(repr=False)
    """[N, d] float32 mean fingerprint of each domain (Eq. 2)."""
    general_mean: Tensor | None = field(repr=False)
    """[d] mean fingerprint of the general probes, if there are any."""
    basis: Basis = field(repr=False)
    origin: Mapping[str, Any] = field(repr=False)
    """Digests of what this was made from: `generalist`, `probes` by domain, and `specialists` where their signatures are kept."""
    rows: Shelf = field(repr=False)
    """Domain -> [n, d] fingerprints, `general` included; read when asked for."""
    signatures: Shelf = field(repr=False)
    """`module@domain` -> [out] mean activation signature, the module `final` included; empty without domain signatures."""
    calibration: Calibration = field(default_factory=Calibration, repr=False)
    """How prior and evidence are weighed; the defaults until `with_calibration`. Another index or library needs another one."""

    @classmethod
    def build(
        cls,
        library: Library,
        probes: Mapping[str, Sequence[str]],
        settings: IndexSettings | None = None,
        *,
        state: str | Path | None = None,
    ) -> Constellation:
        """Fingerprint every domain's probes in the generalist and make the basis (section 3.2).

        `probes` maps every specialist's name, and `general` if there are any, to texts. One probe makes a domain (its centroid is
        then that one fingerprint; leave-one-out retrieval cannot be measured for it). `state` is a folder where finished
        domains are kept, so that an interrupted build goes on from there.
        Raises UnknownName for a domain without a specialist, DataError for a domain or a specialist without probes.
        """
        settings = settings or IndexSettings()
        probes = checked(library, probes)
        missing = [name for name in library.names if name not in probes]
        if missing:
            raise DataError("A specialist has no probes.", met=", ".join(missing), mend="give texts of each specialist's domain")
        rows = fingerprinted(library, probes, settings, state)
        kept = domain_signatures(library, probes, settings) if settings.domain_signatures else {}
        return cls.from_fingerprints(library, rows, settings, digests=store.probe_digests(probes), signatures=kept)

    @classmethod
    def from_fingerprints(
        cls,
        library: Library,
        rows: Mapping[str, Tensor],
        settings: IndexSettings | None = None,
        *,
        digests: Mapping[str, str],
        signatures: Mapping[str, Tensor] | None = None,
    ) -> Constellation:
        """The index of fingerprints taken before: domain -> [n, d], `general` optional, with the digest of each domain's texts."""
        settings = settings or IndexSettings()
        if settings.domain_signatures and not signatures:
            raise SettingsError(
                "Domain signatures need the probes' texts.", met="fingerprints alone", mend="build(...), or domain_signatures: false"
            )
        centroids = {domain: centroid(values) for domain, values in rows.items()}
        return _assembled(library, settings, centroids, Shelf(rows), digests, Shelf(signatures or {}))

    # ---- asking

    def fingerprints(self, domain: str) -> Tensor:
        """[n, d] stored fingerprints of a domain's probes, or of `general`."""
        if domain not in self.rows:
            raise UnknownName("domain", domain, self.rows)
        return self.rows[domain]

    def fingerprint(self, texts: str | Sequence[str]) -> Tensor:
        """Fingerprints of new texts in the generalist: one text -> [d], several -> [n, d] (Eq. 4)."""
        several = [texts] if isinstance(texts, str) else list(texts)
        model, settings = self._model(None), self.settings
        found = fingerprints(model, self.library.tokenizer, several, layer=settings.layer, max_length=settings.max_length)
        return found[0] if isinstance(texts, str) else found

    def coefficients(self, texts: str | Sequence[str]) -> Tensor:
        """How much of each domain a text asks for: [N], or [n, N] for several texts (Eq. 5)."""
        return self.basis.coefficients(self.fingerprint(texts))

    def mixture(self, text: str, settings: MixtureSettings | None = None, **changes: Any) -> Mixture:
        """What one query asks of the library; `changes` override single settings, e.g. `top_k=2`."""
        return self.mixtures([text], settings, **changes)[0]

    def mixtures(self, texts: Sequence[str], settings: MixtureSettings | None = None, **changes: Any) -> list[Mixture]:
        """One mixture a text. Each chosen specialist reads, in batches, the texts that chose it; no text changes another's mixture.

        Raises SettingsError when top_k exceeds the number of domains.
        """
        settings, texts = (settings or MixtureSettings()).changed(**changes), list(texts)
        if settings.mode == "evidence":
            rows, losses = self._read(None, texts)
            known = Evidence(losses, lambda name, places: self._read(name, [texts[place] for place in places])[1])
            return self.mixture_from(rows, settings=settings, evidence=known, texts=texts)
        rows = self.fingerprint(texts)
        return self.mixture_from(rows, self._reading(texts, settings) if settings.mode == "nodes" else None, settings, texts=texts)

    def mixture_from(
        self,
        fingerprints: Tensor,
        signatures: Mapping[str, Tensor] | Source | None = None,
        settings: MixtureSettings | None = None,
        *,
        evidence: Evidence | None = None,
        texts: Sequence[str] | None = None,
    ) -> list[Mixture]:
        """The pure part of `mixtures`: fingerprints [n, d] are given, and what the mode asks for.

        Mode `evidence` needs `evidence`; mode `nodes` the specialists' signatures ({name: [n, d]}, or a source), unless they are
        the domains' own; mode `fast` nothing more. Noise on the weights needs `texts`.
        """
        settings = settings or MixtureSettings()
        coefficients = self.basis.coefficients(fingerprints)
        if settings.mode == "nodes":
            return mixtures_of(self.domains, coefficients, self._source(signatures, settings), settings, self.settings, texts)
        asked = (settings, self.settings, self.calibration)
        needed = settings.mode == "fast" or self.calibration.prior > 0
        standard = standardised(fingerprints, *self._prior_basis, len(self.domains)) if needed else None
        rest: dict[str, Any] = dict(standard=standard, nodes=self.centroids.shape[1], texts=texts)
        if settings.mode == "fast":
            return fast_mixtures(self.domains, coefficients, *asked, **rest)
        if evidence is None:
            mend = "give evidence=..., or choose mode fast, which needs none"
            raise SettingsError("How well the candidates predict the texts is missing.", met="mode evidence", mend=mend)
        return evidence_mixtures(self.domains, coefficients, evidence, *asked, **rest)

    @cached_property
    def _prior_basis(self) -> tuple[Basis, float]:
        return prior_basis(self.centroids, self.general_mean)

    @staticmethod
    def mixture_of(coefficients: Tensor, signatures: Mapping[str, Tensor], settings: MixtureSettings) -> list[Mixture]:
        """Mixtures per node of any coefficients [n, N] whose columns follow `signatures` ({specialist: [n, d]})."""
        return mixtures_of(tuple(signatures), coefficients, tabled(signatures), settings)

    def _model(self, name: str | None) -> PreTrainedModel:
        """What reads texts: the generalist, or a specialist."""
        return self.library.model(name)

    def _read(self, specialist: str | None, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """One pass of the generalist or a specialist over texts: fingerprints [n, d] and mean losses [n]."""
        model, own = self._model(specialist), self.settings
        return read(model, self.library.tokenizer, texts, layer=own.layer, max_length=own.max_length)

    def _source(self, signatures: Mapping[str, Tensor] | Source | None, settings: MixtureSettings) -> Source:
        if settings.signature == "domain":
            return partial(self._kept, per_module=settings.per_module)
        if signatures is None:
            raise SettingsError("The query's own signatures are missing.", met="signatures=None", mend="give them, or signature: domain")
        return tabled(signatures) if isinstance(signatures, Mapping) else signatures

    def _reading(self, texts: Sequence[str], settings: MixtureSettings) -> Source:
        """A source that runs each specialist once over the texts that chose it (Eq. 6)."""

        def source(name: str, rows: Sequence[int]) -> Signature:
            model, tokenizer, own = self._model(name), self.library.tokenizer, [texts[row] for row in rows]
            if not settings.per_module:
                return Signature(signatures(model, tokenizer, own, max_length=self.settings.max_length), {})
            found = module_signatures(model, self.library.anatomy, tokenizer, own, max_length=self.settings.max_length)
            return Signature(found.pop(self.library.anatomy.layout.final_norm), found)

        return source

    def _kept(self, name: str, rows: Sequence[int], *, per_module: bool) -> Signature:
        """A source of the stored domain signatures: no specialist is loaded."""
        if not self.signatures:
            mend = "build with IndexSettings(domain_signatures=True), or signature: query"
            raise SettingsError("The index keeps no domain signatures.", met="signature: domain", mend=mend)
        paths = block_modules(self.library.anatomy) if per_module else ()
        kept = {path: self.signatures[f"{path}@{name}"].expand(len(rows), -1) for path in (FINAL, *paths)}
        return Signature(kept.pop(FINAL), kept)

    # ---- changing

    def with_domain(self, name: str, texts: Sequence[str]) -> Constellation:
        """The constellation with one more domain (or `general`), or with other probes for one; only `texts` are fingerprinted."""
        probes = checked(self.library, {name: texts})
        rows = fingerprinted(self.library, probes, self.settings)
        kept = domain_signatures(self.library, probes, self.settings) if self.settings.domain_signatures else {}
        centroids = self._centroids() | {name: centroid(rows[name])}
        return _assembled(
            self.library,
            self.settings,
            centroids,
            self.rows.plus(rows),
            self.origin["probes"] | store.probe_digests(probes),
            self.signatures.plus(kept),
        )

    def without_domain(self, *names: str) -> Constellation:
        """The constellation without some domains (or without `general`); nothing is fingerprinted."""
        centroids = self._centroids()
        for name in names:
            if centroids.pop(name, None) is None:
                raise UnknownName("domain", name, centroids)
        digests = {domain: digest for domain, digest in self.origin["probes"].items() if domain not in names}
        kept = self.signatures.only(lambda key: key.rpartition("@")[2] not in names)
        return _assembled(self.library, self.settings, centroids, self.rows.only(lambda domain: domain not in names), digests, kept)

    def with_settings(self, settings: IndexSettings) -> Constellation:
        """The same fingerprints under another orthogonalisation, centring or noise.

        Raises SettingsError for settings that need the texts again: layer, max_length, and domain signatures not kept so far.
        """
        own = self.settings
        if (settings.layer, settings.max_length) != (own.layer, own.max_length) or settings.domain_signatures > own.domain_signatures:
            met = ", ".join(f"{name}={getattr(settings, name)!r}" for name in ("layer", "max_length", "domain_signatures"))
            raise SettingsError(
                "These settings need the probes' texts again.", met=met, mend="Constellation.build(library, probes, settings)"
            )
        kept = self.signatures if settings.domain_signatures else Shelf({})
        return _assembled(self.library, settings, self._centroids(), self.rows, self.origin["probes"], kept)

    def with_calibration(self, calibration: Calibration) -> Constellation:
        """The same index with other numbers for weighing prior and evidence (see `asterism.evaluate.calibrate`)."""
        return replace(self, calibration=calibration)

    # ---- keeping

    def save(self, folder: str | Path | None = None) -> Path:
        """Write the constellation at `folder` (by default in its library) in one step: a killed process leaves what was there."""
        folder = Path(folder) if folder is not None else self.library.root / FOLDER
        basis = {"centroids": self.centroids, "vectors": self.basis.vectors, "offset": self.basis.offset}
        if self.general_mean is not None:
            basis["general_mean"] = self.general_mean
        index = {
            "settings": self.settings.model_dump(mode="json"),
            "domains": list(self.domains),
            "counts": {domain: self.rows.shape(domain)[0] for domain in self.rows},
            "origin": self.origin,
            "calibration": self.calibration.model_dump(mode="json") if self.calibration.fitted else None,
        }
        store.write(folder, index, basis, self.rows, self.signatures)
        return folder

    @classmethod
    def load(
        cls,
        folder: str | Path,
        library: Library,
        probes: Mapping[str, Sequence[str]] | None = None,
        settings: IndexSettings | None = None,
        *,
        without: Sequence[str] = (),
    ) -> Constellation:
        """Read a saved constellation; fingerprints stay on disk until asked for.

        `probes` and `settings`, where given, must be those it was made with. `without` drops domains, e.g. of specialists
        that have left the library. Raises StaleError naming what changed: generalist, a specialist, probes, settings, format.
        """
        index, stored, basis, rows, signatures = store.read(folder)
        calibration = store.calibration_of(index, library, without)
        store.check_origin(index, library, [name for name in index["domains"] if name not in without], probes, without)
        store.check_settings(stored, settings)
        domains = tuple(index["domains"])
        whole = cls(
            library=library,
            settings=stored,
            domains=domains,
            counts=tuple(index["counts"][domain] for domain in domains),
            centroids=basis["centroids"],
            general_mean=basis.get("general_mean"),
            basis=Basis(basis["vectors"], basis["offset"]),
            origin=index["origin"],
            rows=rows,
            signatures=signatures,
            calibration=calibration,
        )
        return whole.without_domain(*without) if without else whole

    def _centroids(self) -> dict[str, Tensor]:
        """Domain -> [d], `general` included."""
        own = dict(zip(self.domains, self.centroids, strict=True))
        return own if self.general_mean is None else {**own, GENERAL: self.general_mean}


def _assembled(
    library: Library, settings: IndexSettings, centroids: Mapping[str, Tensor], rows: Shelf, digests: Mapping[str, str], signatures: Shelf
) -> Constellation:
    domains = tuple(name for name in library.names if name in centroids)
    for name in centroids.keys() - {GENERAL, *domains}:
        raise UnknownName("specialist for the domain", name, library.names)
    if not domains:
        raise DataError("A constellation needs a domain.", met="none", mend="give probes of at least one specialist's domain")
    stacked = torch.stack([centroids[name] for name in domains])
    general = centroids.get(GENERAL)
    try:
        basis = make_basis(stacked, general, settings)
    except DataError as error:
        row = re.fullmatch(r"row (\d+)", str(error.met))
        raise DataError(error.wrong, met=f"domain {domains[int(row[1])]!r}" if row else error.met, mend=error.mend) from None
    origin: dict[str, Any] = {"generalist": library.digest(), "probes": dict(digests)}
    if settings.domain_signatures:
        origin["specialists"] = {name: library.digest(name) for name in domains}
    counts = tuple(rows.shape(name)[0] for name in domains)
    return Constellation(library, settings, domains, counts, stacked, general, basis, origin, rows, signatures)
