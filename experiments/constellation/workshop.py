"""A workshop: the first seed's library of a trained rung, read once, on which ideas are tried out on validation probes; and its command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.calibration import Calibration
from asterism.constellation.evidence import Evidence
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.corpus import Corpus, Probe
from asterism.core.storage import read_json, write_json
from asterism.evaluate.probes import read_span, validation_probes
from asterism.evaluate.reading import Reading, read_all
from asterism.evaluate.scoring import losses_of
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.models.batching import batches, pad_id, tokenise
from asterism.models.library import Library
from asterism.models.likelihood import logits_of, token_losses
from experiments.commands import parser
from experiments.constellation.ladder import read_text
from experiments.constellation.models import device
from experiments.constellation.rung import DOMAINS, Rung, rungs

EVERYTHING = CompositionSettings(node_map="mean")
Row = dict[str, Any]


class Workshop:
    """One library, read once, and the validation probes that every idea is scored on."""

    def __init__(self, library: Library, constellation: Constellation, probes: list[Probe], settings: EvaluationSettings) -> None:
        self.library, self.constellation, self.probes, self.settings = library, constellation, probes, settings
        self.tokens = tokenise(library.tokenizer, [probe.text for probe in probes], settings.max_length)
        self.batches = batches(self.tokens, max_tokens=settings.max_tokens, pad=pad_id(library.tokenizer))
        self.composer = Composer(library, EVERYTHING)
        self.reading: Reading = read_all(library, self.composer, self.batches, len(probes), layer="final", ensembles=True)
        self.token_losses = self._token_losses()
        self._other = self.composer

    def evidence(self, protocol: Protocol) -> Evidence:
        """What may be read, by everyone."""
        of = {name: scores.read_loss[protocol] for name, scores in self.reading.specialists.items()}
        return Evidence(self.reading.generalist.read_loss[protocol], of)

    def mixtures(self, protocol: Protocol, calibration: Calibration, **changes: Any) -> list[Mixture]:
        """The library's own mixtures under some numbers and settings."""
        signatures = {name: scores.signature[protocol] for name, scores in self.reading.specialists.items()}
        index, settings = self.constellation.with_calibration(calibration), MixtureSettings(**changes)
        return index.mixture_from(self.reading.generalist.fingerprint[protocol], signatures, settings, evidence=self.evidence(protocol))

    def ids(self, row: int) -> Tensor:
        """[1, T] tokens of a probe, on the library's device."""
        return torch.tensor([self.tokens[row]], device=self.library.device)

    def read_ids(self, row: int, protocol: Protocol) -> list[int]:
        """The tokens of a probe that may be read."""
        return self.tokens[row][: read_span(protocol, len(self.tokens[row])).stop]

    def losses(self, mixtures: dict[Protocol, list[Mixture]], composition: CompositionSettings) -> dict[Protocol, Tensor]:
        """[n] mean loss of each probe under its own mixture."""
        if self._other.settings != composition:
            self._other = self.composer if composition == EVERYTHING else Composer(self.library, composition)
        return {protocol: torch.stack([self._loss(m, row, protocol) for row, m in enumerate(own)]) for protocol, own in mixtures.items()}

    @torch.inference_mode()
    def _loss(self, mixture: Mixture, row: int, protocol: Protocol) -> Tensor:
        ids = self.ids(row)
        losses = token_losses(logits_of(self._other.materialise(mixture), ids), ids)
        return losses_of(losses.cpu(), [ids.shape[1]], protocol)[0][0]

    @torch.inference_mode()
    def _token_losses(self) -> list[Tensor]:
        """For each probe [N + 1, T - 1]: every token's loss under each specialist and, last, the generalist."""
        width, found = self.library.anatomy.hidden_size, [[] for _ in self.tokens]
        for name in (*self.library.names, None):
            model = self.composer.restore() if name is None else self.composer.materialise(Mixture.fixed({name: 1.0}, width))
            for row in range(len(self.tokens)):
                found[row].append(token_losses(logits_of(model, self.ids(row)), self.ids(row))[0].cpu())
        return [torch.stack(rows) for rows in found]


def workshop_of(rung: Rung, corpus: Corpus, folder: Path, per_group: int) -> Workshop:
    """The library in `folder`, indexed as the ladder does it, and `per_group` validation probes a domain and pair."""
    library = Library.open(folder, device=device())
    settings = EvaluationSettings(seed=42, max_length=rung.length)
    index = draw_index_probes(corpus, DOMAINS, rung.probes, 42)
    constellation = Constellation.build(library, index, IndexSettings(max_length=rung.length))
    return Workshop(library, constellation, validation_probes(corpus, DOMAINS, settings, per_group), settings)


def run(
    about: str | None,
    place: Path,
    per_group: int,
    rows_of: Callable[[Workshop, str], Iterable[Row]],
    shown: Callable[[list[Row]], Iterable[str]],
    kept_too: Callable[[Workshop], Mapping[str, Any]],
) -> None:
    """The command of an experiment on workshops: the rows of every trained rung, kept in a file; finished rungs are not measured again.

    Args:
        about: The command's help.
        place: The file, unless the command line names another.
        per_group: Validation probes a domain and pair, unless the command line says otherwise.
        rows_of: Measures one workshop; the string is the rung's name.
        shown: A rung's rows as lines to print.
        kept_too: What else the file says.
    """
    given = _parser(about, place, per_group).parse_args()
    corpus, kept = read_text(given.data), read_json(given.out) if given.out.exists() else {"rows": []}
    for rung in rungs(given.scale):
        folder = given.runs / given.scale / rung.name / "seed-42"
        if (given.only and rung.name not in given.only) or not (folder / "library.json").exists():
            continue
        if not any(row["scale"] == rung.name for row in kept["rows"]):
            shop = workshop_of(rung, corpus, folder, given.per_group)
            kept = {**kept_too(shop), "rows": [*kept["rows"], *rows_of(shop, rung.name)]}
            write_json(given.out, kept)
        print(*shown([row for row in kept["rows"] if row["scale"] == rung.name]), sep="\n")


def _parser(about: str | None, place: Path, per_group: int) -> argparse.ArgumentParser:
    own = parser(about, "--data", "--scale", "--only", "--runs")
    own.add_argument("--out", type=Path, default=place, help="file of the rows")
    own.add_argument("--per-group", type=int, default=per_group, help="validation probes a domain and pair")
    return own
