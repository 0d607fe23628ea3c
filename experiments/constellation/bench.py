"""A bench: one library reads some probes once, and any composition of it can then be scored on them; nothing is scored twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.core.corpus import Probe
from asterism.core.parts import Parts
from asterism.core.storage import digest_of
from asterism.evaluate.candidates import Composed, composed_candidates, mixtures_of
from asterism.evaluate.packing import pack, unpack
from asterism.evaluate.passes import retrieval, score_composed
from asterism.evaluate.probes import read_span, tokens_of
from asterism.evaluate.reading import Reading, read_all
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.models.batching import Batch, batches, pad_id
from asterism.models.library import Library

Task = Literal["single", "cross"]


@dataclass(eq=False)
class Bench:
    """Probes, what the library makes of them, and every loss scored so far, kept on disk.

    A loss is filed under what it is the loss of (composition, mixtures, protocol, probes), so that sweeps that meet the same
    composition share it, and an interrupted one goes on where it stopped.
    """

    library: Library
    probes: Sequence[Probe]
    settings: EvaluationSettings
    folder: Path
    """Where the reading and the losses are kept; those of another library or other probes are thrown away."""
    _composer: Composer | None = field(default=None, init=False, repr=False)

    @cached_property
    def origin(self) -> str:
        """What everything here was made from."""
        return digest_of(
            self.library.digests(), [[probe.id, probe.text, list(probe.domains)] for probe in self.probes], self.settings.max_length
        )

    @cached_property
    def tokens(self) -> list[list[int]]:
        """Token ids of every probe, cut at the settings' length."""
        return tokens_of(self.library, self.probes, self.settings.max_length)

    @cached_property
    def reading(self) -> Reading:
        """What the generalist and each specialist say of every probe: 1 + N passes a probe, once."""

        def read() -> dict[str, Tensor]:
            composer = Composer(self.library, CompositionSettings(layers="all", node_map="mean"))
            batched = self._batched(range(len(self.probes)))
            return pack(read_all(self.library, composer, batched, len(self.probes), layer="final", ensembles=False))

        return unpack(self._parts.tensors("reading", read), self.library.names)

    def rows(self, task: Task) -> list[int]:
        """Places of a task's probes."""
        return [row for row, probe in enumerate(self.probes) if probe.is_cross == (task == "cross")]

    def candidates(self, constellation: Constellation) -> dict[str, Composed]:
        """The evaluation's compositions by name, for an index of this library."""
        return {candidate.name: candidate for candidate in composed_candidates(self.library, constellation, self.settings)}

    def losses(self, candidate: Composed, protocol: Protocol, task: Task) -> Tensor:
        """[n] mean loss over the scored span of a task's probes, each under its own mixture: a composed pass a probe, unless known."""
        rows = self.rows(task)
        everyone = mixtures_of(candidate, self.reading, protocol, self.settings.seed, texts=self._read_texts(protocol))
        mixtures = [everyone[row] for row in rows]
        name = digest_of(candidate.composition.digest(), protocol, task, _content(mixtures))

        def score() -> dict[str, Tensor]:
            batched = self._batched(rows)
            composer = self._composer_of(candidate.composition)
            return {"loss": score_composed(composer, candidate, mixtures, batched, protocol, self.settings)}

        return self._parts.tensors(name, score)["loss"]

    def retrieval(self, index: Constellation) -> dict[str, float]:
        """How often a single-domain probe's own specialist comes first, and among the first three; no pass."""
        coefficients = index.basis.coefficients(self.reading.generalist.fingerprint["whole"])
        found = retrieval("", coefficients, self.probes, index.domains, signed=index.settings.ranking == "signed")
        return {name: found[name] for name in ("top1", "top1_low", "top1_high", "top3")}

    @cached_property
    def _parts(self) -> Parts:
        return Parts(self.folder, self.origin)

    def _batched(self, rows: Sequence[int]) -> list[Batch]:
        pad = pad_id(self.library.tokenizer)
        return batches([self.tokens[row] for row in rows], max_tokens=self.settings.max_tokens, pad=pad)

    def _read_texts(self, protocol: Protocol) -> list[str]:
        return [self.library.tokenizer.decode(ids[: read_span(protocol, len(ids)).stop]) for ids in self.tokens]

    def _composer_of(self, settings: CompositionSettings) -> Composer:
        """The composer of these settings; only the last one is held."""
        if self._composer is None or self._composer.settings != settings:
            self._composer = Composer(self.library, settings)
        return self._composer


def _content(mixtures: Sequence[Mixture]) -> str:
    """What the mixtures do, weight by weight, whatever index and settings they came from."""
    found = sha256()
    for mixture in mixtures:
        found.update(repr((mixture.specialists, mixture.generalist, mixture.scale)).encode())
        found.update(mixture.weights.contiguous().numpy().tobytes())
    return found.hexdigest()
