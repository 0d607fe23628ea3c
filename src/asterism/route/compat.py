"""Whether two models of a library belong together: how alike they represent, what they changed, what lies between them; and advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from asterism.constellation.settings import SimilaritySettings
from asterism.constellation.similarity import Similarity, similarity
from asterism.core.conflict import Conflict
from asterism.core.corpus import GENERAL, Corpus, Probe, is_corpus_file, read_corpus, read_rows, read_texts
from asterism.core.errors import DataError
from asterism.core.statistics import mean_interval
from asterism.models.library import Library
from asterism.route.advice import Advice, Way, advise, ways_of
from asterism.route.barrier import Barrier, barrier
from asterism.route.deltas import conflicts
from asterism.route.experts import GENERALIST
from asterism.route.interpolation import Kind, Sweep, check_ends, live, sweep
from asterism.route.scoring import TextLosses, text_losses
from asterism.route.settings import CompatSettings


@dataclass(frozen=True, eq=False)
class Compatibility:
    """Every measurement between two models. Losses are means over texts of nats a token."""

    left: str
    right: str
    texts: int
    losses: Mapping[str, TextLosses]
    """Of the generalist and of both models."""
    sweeps: Mapping[Kind, Sweep]
    barriers: Mapping[Kind, Barrier]
    deltas: Mapping[str, Conflict]
    """By part: attention, mlp, other, all."""
    maps: Mapping[str, Similarity]
    """CKA of the left model's layers (rows) with the right one's, on the texts (`target`) and on `general` ones where there are any."""
    within: Mapping[str, Similarity]
    """CKA of each model's layers among themselves on the texts, if asked."""
    ways: Mapping[str, Way]
    """What each way to use the models loses, see `asterism.route.advice.ways_of`."""
    advice: Advice
    reason: str
    notes: tuple[str, ...]
    settings: CompatSettings

    @property
    def similar(self) -> Mapping[str, float]:
        """Mean CKA of corresponding layers, of each map."""
        return {name: corresponding(own) for name, own in self.maps.items()}

    @property
    def best(self) -> dict[str, Any]:
        """The row of the point of all paths that loses least on these very texts."""
        return min(self._rows(), key=lambda row: row["loss"])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        seed = self.settings.seed
        return {
            "left": self.left,
            "right": self.right,
            "texts": self.texts,
            "losses": {name: _interval(own, seed) for name, own in self.losses.items()},
            "paths": self._rows(),
            "best": self.best,
            "barriers": {kind: own.to_dict() for kind, own in self.barriers.items()},
            "deltas": {part: own.to_dict() for part, own in self.deltas.items()},
            "similar": dict(self.similar),
            "similarity": {name: own.to_dict() for name, own in self.maps.items()},
            "within": {name: own.to_dict() for name, own in self.within.items()},
            "ways": {name: way.to_dict(seed) for name, way in self.ways.items()},
            "advice": self.advice,
            "reason": self.reason,
            "notes": list(self.notes),
            "settings": self.settings.model_dump(mode="json"),
        }

    def _rows(self) -> list[dict[str, Any]]:
        return [row for own in self.sweeps.values() for row in own.rows(self.settings.seed)]


def compat(
    library: Library,
    left: str,
    right: str,
    texts: Sequence[str],
    *,
    general: Sequence[str] | None = None,
    settings: CompatSettings | None = None,
    comparing: SimilaritySettings | None = None,
) -> Compatibility:
    """Measure two models, specialists or "generalist", on texts that they should serve; layers also on general texts, if given.

    `comparing`: how layers are compared. A reading of the texts for each point of a path, and a few more. Raises UnknownName and
    SettingsError for the names, DataError for no texts, an empty one, or one of fewer than three tokens.
    """
    settings, comparing = settings or CompatSettings(), comparing or SimilaritySettings()
    check_ends(library, left, right)
    both, tokenizer, length = (live(library, left), live(library, right)), library.tokenizer, settings.max_length
    generalist = text_losses(library.model(), tokenizer, texts, max_length=length)
    compared = {"target": texts} | ({"general": general} if general else {})
    maps = {name: similarity(*both, tokenizer, own, comparing, names=(left, right)) for name, own in compared.items()}
    each = zip((left, right), both, strict=True) if settings.within else ()
    within = {name: similarity(model, None, tokenizer, texts, comparing, names=(name, name)) for name, model in each}
    deltas = conflicts(library, left, right)
    kinds, notes = _kinds(deltas, settings)
    shares = tuple(step / (settings.points - 1) for step in range(settings.points))
    sweeps = sweep(library, left, right, texts, kinds, shares=shares, max_length=length, attention=settings.attention)
    ends = {left: sweeps["lerp"].losses[-1], right: sweeps["lerp"].losses[0]}
    barriers: dict[Kind, Barrier] = {kind: barrier(shares, own.losses.whole, settings.seed) for kind, own in sweeps.items()}
    ways = ways_of(generalist, sweeps, left, right)
    advice, reason, doubts = advise(ways, settings.seed)
    return Compatibility(
        left=left,
        right=right,
        texts=len(texts),
        losses={GENERALIST: generalist} | ends,
        sweeps=sweeps,
        barriers=barriers,
        deltas=deltas,
        maps=maps,
        within=within,
        ways=ways,
        advice=advice,
        reason=reason,
        notes=(*notes, *doubts),
        settings=settings,
    )


def pair_corpus(places: Sequence[str | Path], left: str, right: str) -> Corpus:
    """What `read_corpus` reads; the rows of a file whose first names no domain are texts of a task that both models are wanted for.

    Such a row holds `text`, or `prompt` and `response`, as `asterism route train` reads them. Raises DataError as `read_corpus`.
    """
    tasks = [Path(place) for place in places if _is_task(Path(place))]
    others = [place for place in places if Path(place) not in tasks]
    corpus = read_corpus(*others) if others else Corpus()
    for path in tasks:
        corpus.cross.extend(Probe(f"{path.name}-{number}", text, (left, right)) for number, text in enumerate(read_texts(path), 1))
    return corpus


def pair_texts(corpus: Corpus, left: str, right: str, most: int = 100, seed: int = 42) -> tuple[list[str], list[str]]:
    """At most `most` texts that need both models, and as many general ones, drawn by `seed`.

    The pair's cross-domain probes, or where there are none the held-out probes of both domains; held-out general text, or where
    there is none the generalist's training text. DataError where nothing suits the pair.
    """
    cross = [probe.text for probe in corpus.cross if {left, right} <= set(probe.domains)]
    own = cross or [probe.text for name in (left, right) for probe in corpus.heldout.get(name, ())]
    if not own:
        mend = f"give cross.{left}-{right}.jsonl, or {left}.heldout.jsonl and {right}.heldout.jsonl"
        raise DataError("No text suits the two models.", met=f"{left} and {right}", mend=mend)
    general = [probe.text for probe in corpus.heldout.get(GENERAL, ())] or corpus.train.get(GENERAL, [])
    drawn = (Random(f"{seed}:{what}").sample(found, min(most, len(found))) for what, found in (("pair", own), (GENERAL, general)))
    return next(drawn), next(drawn)


def _is_task(path: Path) -> bool:
    """Whether it is a file whose first row tells no domain, by its name or in itself."""
    if not path.is_file() or is_corpus_file(path):
        return False
    return not {"domains", "domain"} & next(read_rows(path), {"domain": None}).keys()


def _kinds(deltas: Mapping[str, Conflict], settings: CompatSettings) -> tuple[list[Kind], list[str]]:
    """The paths to measure, and what is left out for a reason."""
    kinds: list[Kind] = ["lerp", "slerp"] if settings.slerp else ["lerp"]
    notes = []
    if settings.activation and (settings.attention != "refuse" or not (deltas["attention"].entries or deltas["other"].entries)):
        kinds.append("activation")
    elif settings.activation:
        notes.append("The models differ in more than their MLPs; mixing MLP outputs is measured with attention generalist or mean.")
    return kinds, notes


def corresponding(layers: Similarity) -> float:
    """Mean CKA of the layers of equal place."""
    return float(layers.map.diagonal().mean())


def _interval(losses: TextLosses, seed: int) -> dict[str, float | None]:
    loss, low, high = mean_interval(losses.whole.numpy(), seed)
    return {"loss": loss, "low": low, "high": high}
