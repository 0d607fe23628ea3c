"""From a recipe to a checkpoint: everything is checked first, then tensors stream through one at a time."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.core.draws import stream_key
from asterism.core.errors import DataError
from asterism.core.gram import not_finite
from asterism.core.progress import counting
from asterism.core.sifting import finite
from asterism.core.storage import digest_of
from asterism.merge import beside
from asterism.merge.card import RECORD, record, write_card
from asterism.merge.files import SHARD_BYTES, laid_out, writing
from asterism.merge.findings import content_digest, distances, summary
from asterism.merge.methods import method as named
from asterism.merge.methods.method import Method
from asterism.merge.places import listed, place_for
from asterism.merge.plan import Piece, plan
from asterism.merge.recipe import Recipe
from asterism.merge.sources import Opened, check_alike, check_apart, open_model
from asterism.merge.vocabulary import Alignment, aligned
from asterism.merge.words import Words, words_of
from asterism.merge.words import check_alike as check_words


@dataclass(frozen=True)
class Job:
    """One tensor of the output, ready to be merged."""

    piece: Piece
    order: tuple[int, ...]
    """Places of the sources that are stacked, as the method wants them."""
    base: int | None
    """Place of the source that the deltas are taken from; None where the models themselves are stacked."""
    bound: Mapping[str, Any]
    """Every parameter of the method."""
    keys: tuple[int, ...]
    """The stream of each stacked model."""
    keeps: bool
    """Whether equal tensors merge to themselves."""
    alignment: Alignment | None
    """How rows are mapped to the output's vocabulary."""


class Merge:
    """A recipe whose models are opened and whose every tensor is planned and checked; nothing is computed yet."""

    def __init__(self, recipe: Recipe, seed: int = 42) -> None:
        """Raises whatever is wrong with the recipe or the models."""
        self.recipe, self.seed, self.method = recipe, seed, named(recipe.merge_method)
        self.models = [open_model(reference) for reference in recipe.models]
        self.donor = next((model for model in self.models if model.reference == recipe.donor), None) or open_model(recipe.donor)
        check_alike([self.donor, *self.models])
        self.words = _words(recipe, self.donor, self.models)
        rows = self.words.rows if self.words else None
        self.template = beside.chat_template(recipe, self.models)
        self._tokenizer = beside.tokenizer_at(self.donor, self.models)
        if self.template and not self.words:
            beside.tokenizer_config(self._tokenizer)  # its absence is told now
        self.pieces = plan(
            recipe,
            self.method,
            {model.reference: model.header for model in self.models},
            {model.reference: model.layers for model in self.models if model.layers is not None},
            tied=[model.reference for model in self.models if model.tied],
            rows=rows,
        )
        self.jobs = list(_jobs(recipe, self.method, self.pieces, seed, self.words))
        if not recipe.whole:
            beside.check_donor(self.donor, self.pieces, rows)
        self.config = beside.config_of(recipe, self.donor, self.pieces, rows)
        """The output's."""

    def tensors(self, device: str = "cpu", done: Container[str] = ()) -> Iterator[tuple[Job, Tensor, dict[str, Any]]]:
        """Every tensor of the output that is not `done`, merged, and what was measured of it; the next one's sources are read meanwhile.

        A tensor's memory is used again two tensors later. DataError for NaN or Inf.
        """
        waiting = [job for job in self.jobs if job.piece.name not in done]
        places = _Buffers(max((job.piece.nbytes for job in waiting), default=0))
        with ThreadPoolExecutor(1) as reader, counting("tensors", len(self.jobs)) as advance:
            advance(len(self.jobs) - len(waiting))
            for job, (tensors, digests) in zip(waiting, _ahead(reader, waiting, self.models), strict=True):
                merged = self._merged(job, tensors, places.next(job), device)
                yield job, merged, {"digests": digests, "distances": distances(merged, tensors)}
                advance(1)

    def _merged(self, job: Job, tensors: Sequence[Tensor], out: Tensor, device: str) -> Tensor:
        """`_one`, whose DataError for NaN or Inf names the model that holds it."""
        try:
            return _one(self.method, job, tensors, out, device)
        except DataError:
            for source, tensor in zip(job.piece.sources, tensors, strict=True):
                if not finite(tensor):
                    raise not_finite(f"{source.name} of {self.models[source.model].reference}") from None
            raise

    def write(self, out: str | Path, *, device: str = "cpu", shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
        """Write the whole checkpoint; returns what `merge.json` beside it says. See `merge_recipe`."""
        check_apart(out, (self.donor, *self.models))
        layout = laid_out({piece.name: (piece.shape, piece.dtype) for piece in self.pieces}, shard_bytes)
        with writing(place_for(out, RECORD, "merge"), layout, self._origin(device, shard_bytes)) as output:
            notes = dict(output.done)
            for job, tensor, note in self.tensors(device, output.done):
                notes[job.piece.name] = note
                output.write(job.piece.name, tensor, note)
            missing = self._write_beside(output.folder)
            told = self._told(summary([notes[piece.name] for piece in self.pieces], self.pieces, self.models)) | {"missing_code": missing}
            index = ["model.safetensors.index.json"] if layout.index else []
            names = {RECORD, "README.md", *index, *(path.name for path in output.folder.iterdir() if not path.name.startswith("."))}
            told = listed(told, names)
            write_card(output.folder, Path(out).name, told)
        return told

    def _origin(self, device: str, shard_bytes: int) -> str:
        """What an interrupted run has in common with one that may go on with what it left."""
        return digest_of(self.recipe.digest, self.seed, device, shard_bytes, [stamp(model) for model in (self.donor, *self.models)])

    def _told(self, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return record(self.recipe, self.method, self.models, self.seed, found)

    def _write_beside(self, folder: Path) -> list[str]:
        """Everything but the weights; what the output's `auto_map` loses, for its code lies nowhere."""
        missing = dict(beside.write_config(folder, self.config, self.donor))
        if self.words:
            self.words.save(folder)
        else:
            missing |= beside.copy_tokenizer(folder, self._tokenizer)
        if self.template:
            beside.set_template(folder, self.template)
        return sorted(missing)


def merge_recipe(
    recipe: Recipe | Mapping[str, Any] | str | Path, out: str | Path, *, seed: int = 42, device: str = "cpu", shard_bytes: int = SHARD_BYTES
) -> dict[str, Any]:
    """Write the checkpoint that a recipe (an object, a mapping, a YAML file) describes; returns what `merge.json` beside it says.

    One tensor of every model is in memory at a time. `out` is whole or absent; a killed run of the same recipe, models and seed goes on
    where it stopped. Raises what is wrong with recipe, models or place before anything is written; DataError for NaN and Inf.
    """
    recipe = Recipe.given(recipe)
    place_for(out, RECORD, "merge")  # told before models are fetched
    return Merge(recipe, seed).write(out, device=device, shard_bytes=shard_bytes)


def _one(method: Method, job: Job, tensors: Sequence[Tensor], out: Tensor, device: str) -> Tensor:
    """The merge of one tensor, in `out`; equal tensors of a merge that keeps them pass through."""
    piece = job.piece
    if job.keeps and job.alignment is None and all(_identical(tensors[0], other) for other in tensors[1:]):
        if not finite(tensors[0]):
            raise not_finite(piece.name)
        return out.copy_(tensors[0])
    ready = list(tensors) if job.alignment is None else aligned(tensors, job.alignment, piece.vocabulary or 0)
    if piece.wide:
        ready = [tensor.double() for tensor in ready]
    ready = [tensor.to(device) for tensor in ready]
    target = out if device == "cpu" else torch.empty_like(out, device=device)
    base = None if job.base is None else ready[job.base]
    method.into(target, [ready[place] for place in job.order], base, bound=job.bound, keys=job.keys, name=piece.name)
    return out if target is out else out.copy_(target)


def _jobs(recipe: Recipe, method: Method, pieces: Sequence[Piece], seed: int, words: Words | None) -> Iterator[Job]:
    """The pieces with their parameters bound, checked and their random streams named."""
    alignments: dict[tuple, Alignment] = {}
    for piece in pieces:
        base = piece.base if method.stack != "models" else None
        places = [place for place in range(len(piece.sources)) if place != piece.base]
        if piece.base is not None or not method.ordered:  # sums in one order, whatever the recipe's
            places.sort(key=lambda place: str(recipe.models[piece.sources[place].model]))
        if base is None and piece.base is not None:
            places.insert(0, piece.base)
        bound = method.bind(piece.shared, [piece.each[place] for place in places])
        alignment = None
        if words and piece.vocabulary is not None:
            who = tuple(source.model for source in piece.sources), piece.base
            alignment = alignments.get(who) or alignments.setdefault(who, words.alignment(*who))
        keeps = method.keeps(len(places), bound, based=base is not None)
        yield Job(piece, tuple(places), base, bound, _keys(recipe, piece, places, seed), keeps, alignment)


def _keys(recipe: Recipe, piece: Piece, places: Sequence[int], seed: int) -> tuple[int, ...]:
    """A stream for each model, by its name in the recipe and the tensor's: no order of models and no other tensor matters."""
    return tuple(stream_key(seed, piece.name, str(recipe.models[piece.sources[place].model])) for place in places)


def _ahead(reader: ThreadPoolExecutor, jobs: Sequence[Job], models: Sequence[Opened]) -> Iterator[tuple[list[Tensor], list[str]]]:
    """The sources of each job and their content digests, one job ahead of the one at work: digesting is what reads them from the disk."""

    def read(job: Job) -> tuple[list[Tensor], list[str]]:
        stored = [(models[source.model], source.name) for source in job.piece.sources]
        digests = [content_digest(model.checkpoint.mapped(name)) for model, name in stored]
        return [model.tensor(name) for model, name in stored], digests

    coming = reader.submit(read, jobs[0]) if jobs else None
    for place in range(len(jobs)):
        assert coming is not None
        found = coming.result()
        coming = reader.submit(read, jobs[place + 1]) if place + 1 < len(jobs) else None
        yield found


class _Buffers:
    """Two places for results, used in turn: one is written to the disk while the next tensor is merged into the other."""

    def __init__(self, nbytes: int) -> None:
        self._places = [torch.empty(nbytes, dtype=torch.uint8) for _ in range(2)]

    def next(self, job: Job) -> Tensor:
        """A tensor like the job's result, in the place that was used longer ago."""
        self._places.reverse()
        return self._places[0][: job.piece.nbytes].view(job.piece.dtype).view(job.piece.shape)


def _identical(one: Tensor, other: Tensor) -> bool:
    """Equal bit for bit, told apart by their first entries where these differ."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    mine, theirs = one.reshape(-1), other.reshape(-1)
    return torch.equal(mine[:4096], theirs[:4096]) and torch.equal(mine, theirs)


def _words(recipe: Recipe, donor: Opened, models: Sequence[Opened]) -> Words | None:
    """The output's tokenizer where the recipe has a rule for it, else nothing, after a look whether all tokenizers are alike."""
    if recipe.tokenizer is not None:
        return words_of(recipe, donor, models)
    check_words((model.reference, model.folder) for model in (donor, *models))
    return None


def stamp(model: Opened) -> list[Any]:
    """What tells whether a model's files are still those of an interrupted run."""
    folders = [model.folder, *([model.lora] if model.lora else [])]
    files = sorted(path for folder in folders for path in folder.iterdir() if path.is_file())
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
