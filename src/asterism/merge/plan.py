"""What a merge does, tensor by tensor, before any weight is read: sources, parameters, shape and dtype of every output tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from asterism.core.errors import MismatchError, SettingsError, UnsupportedError
from asterism.merge.parameters import base_of, check, check_filters, place_in_stack, resolve
from asterism.merge.parts import Header, Parts, embedding_of, is_early, is_head, is_vocabulary, parts_of
from asterism.merge.recipe import Recipe, Slice
from asterism.merge.references import Reference
from asterism.models.checkpoints import DTYPES

if TYPE_CHECKING:
    from asterism.merge.methods.method import Method


@dataclass(frozen=True)
class Source:
    """One tensor that goes into a piece: the model's place in `Recipe.models` and the name in its checkpoint."""

    model: int
    name: str


@dataclass(frozen=True)
class Piece:
    """One tensor of the output and all that its merge needs."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    """What the result is rounded to."""
    sources: tuple[Source, ...]
    """In the recipe's order, the base among them."""
    base: int | None
    """Place of the base among the sources; None where the method works without."""
    shared: Mapping[str, Any]
    """The method's own parameters that the recipe gives."""
    each: tuple[Mapping[str, Any], ...]
    """Each source's own parameters; none for a base that is not stacked."""
    vocabulary: int | None
    """Axis that runs over tokens."""
    wide: bool = False
    """Whether the recipe asks for float64 arithmetic on narrower tensors."""

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return prod(self.shape) * self.dtype.itemsize


def plan(
    recipe: Recipe,
    method: Method,
    headers: Mapping[Reference, Header],
    layers: Mapping[Reference, int] | None = None,
    *,
    tied: Collection[Reference] = (),
    rows: int | None = None,
) -> tuple[Piece, ...]:
    """All tensors of the output: embeddings, layers in order, the rest.

    headers: names, shapes and dtypes of every model in `recipe.models`. layers: their numbers of layers by config, where known.
    tied: models whose head is their embedding; a head stored beside it is passed over. rows: of the output's embedding where
    a tokenizer rule maps vocabularies.
    Raises MismatchError for models that do not fit together (numbers of models and layers, missing tensors, shapes, heads),
    SettingsError and UnknownName for a recipe that does not fit the method or the models, UnsupportedError for what cannot be merged.
    """
    check(method, recipe)
    for part in recipe.slices:
        _check_models(method, recipe, part)
    models = [_Model(number, model, headers[model], model in tied) for number, model in enumerate(recipe.models)]
    for model in models:
        model.check_layers((layers or {}).get(model.reference))
    _check_heads(models)
    _check_widths(models)
    pieces = tuple(_Planner(recipe, method, models, rows).pieces())
    check_filters(method, recipe, (piece.name for piece in pieces), (source.name for piece in pieces for source in piece.sources))
    if rows is not None and not any(piece.vocabulary is not None for piece in pieces):
        mend = "remove the tokenizer rule; the models' tokenizers must then be alike"
        raise UnsupportedError("No tensor of these models is known to be a token embedding.", met=recipe.donor, mend=mend)
    return pieces


class _Model:
    """One model's header, sorted."""

    def __init__(self, number: int, reference: Reference, header: Header, tied: bool) -> None:
        self.number, self.reference, self.header, self.tied = number, reference, header, tied
        parts = parts_of(header, reference)
        self.parts = Parts({key: name for key, name in parts.loose.items() if not (tied and is_head(key))}, parts.stacks)
        self.embedding = embedding_of(self.parts, header)

    @property
    def rows(self) -> int | None:
        return self.embedding[0] if self.embedding else None

    @property
    def has_head(self) -> bool:
        return any(is_head(key) for key in self.parts.loose)

    def check_layers(self, by_config: int | None) -> None:
        if by_config is not None and self.parts.layers and by_config != len(self.parts.layers):
            met = f"{len(self.parts.layers)} layers in the weights, {by_config} in the config of {self.reference}"
            raise MismatchError("A checkpoint's layers are not those of its config.", met=met, mend="copy or save the model again")


class _Planner:
    def __init__(self, recipe: Recipe, method: Method, models: Sequence[_Model], rows: int | None) -> None:
        self.recipe, self.method, self.rows = recipe, method, rows
        self.models = {model.reference: model for model in models}
        self.names = self.models.get(recipe.donor, models[0]).parts
        """The checkpoint whose way of naming the output takes."""

    def pieces(self) -> Iterator[Piece]:
        first, last = self.recipe.slices[0], self.recipe.slices[-1]
        yield from self.loose(first, early=True)
        if self.recipe.whole:
            yield from self.all_layers(first)
        else:
            yield from self.chosen_layers()
        yield from self.loose(last, early=False)

    def loose(self, part: Slice, *, early: bool) -> Iterator[Piece]:
        """The tensors before the layers, or those after them; of slices the first, or the last, gives them."""
        tables = [{key: name for key, name in model.parts.loose.items() if is_early(key) is early} for model in self.of(part)]
        for key in self.shared(part, tables):
            name = self.names.loose.get(key, tables[0][key])
            yield self.piece(part, name, key, [table[key] for table in tables], 0.0)

    def all_layers(self, part: Slice) -> Iterator[Piece]:
        """Every layer of every stack, each at its place."""
        models = self.of(part)
        stacks = [model.parts.stacks for model in models]
        for before in self.shared(part, stacks, "{}N"):
            counts = [len(each[before]) for each in stacks]
            if len(set(counts)) > 1:
                met = ", ".join(f"{count} in {model.reference}" for count, model in zip(counts, models, strict=True))
                mend = "merge models of one architecture, or give slices with layer_range"
                raise MismatchError("The models have different numbers of layers.", met=met, mend=mend)
            for number in range(counts[0]):
                tables = [each[before][number] for each in stacks]
                for rest in self.shared(part, tables, f"{before}{number}.{{}}"):
                    name = self.names.stacks[before][number].get(rest, tables[0][rest])
                    yield self.piece(part, name, None, [table[rest] for table in tables], place_in_stack(number, counts[0]))

    def chosen_layers(self) -> Iterator[Piece]:
        """The layers of all slices, counted through."""
        for model in self.models.values():
            if len(model.parts.stacks) != 1:
                met = f"{', '.join(model.parts.stacks) or 'none'} in {model.reference}"
                raise UnsupportedError("Slices need models with one stack of layers.", met=met, mend="merge whole models with `models`")
        before = next(iter(self.names.stacks))
        written = _before_number(self.names)
        out = 0
        for part in self.recipe.slices:
            models = self.of(part)
            ranges = [self.layers_of(source.layers, model, source.place) for source, model in zip(part.sources, models, strict=True)]
            for place in range(len(ranges[0])):
                tables = [model.parts.layers[numbers[place]] for model, numbers in zip(models, ranges, strict=True)]
                for rest in self.shared(part, tables, f"{before}{ranges[0][place]}.{{}}"):
                    t = place_in_stack(place, len(ranges[0]))
                    yield self.piece(part, f"{written}{out}.{rest}", None, [table[rest] for table in tables], t)
                out += 1

    def layers_of(self, given: tuple[int, int] | None, model: _Model, place: str) -> range:
        count = len(model.parts.layers)
        first, end = given or (0, count)
        if end > count:
            met = f"{place}: [{first}, {end}], {model.reference} has {count}"
            raise SettingsError("A layer_range goes beyond the model's layers.", met=met, mend=f"use layers from 0 to {count}")
        return range(first, end)

    def of(self, part: Slice) -> list[_Model]:
        return [self.models[source.model] for source in part.sources]

    def shared(self, part: Slice, tables: Sequence[Mapping[str, Any]], wording: str = "{}") -> list[str]:
        """The keys of the first table, in its order; MismatchError unless every table has the same."""
        first = part.sources[0]
        for source, table in zip(part.sources, tables, strict=True):
            for one, other, having, lacking in ((tables[0], table, first, source), (table, tables[0], source, first)):
                if absent := [key for key in one if key not in other]:
                    met = f"{wording.format(absent[0])} is in {having.model}, not in {lacking.model}"
                    mend = "merge models of one architecture, each saved whole"
                    raise MismatchError("A model lacks a tensor that another has.", met=met, mend=mend)
        return list(tables[0])

    def piece(self, part: Slice, name: str, key: str | None, inputs: Sequence[str], t: float) -> Piece:
        """One tensor of the output. key: its loose key, None inside the layers."""
        models = self.of(part)
        shapes = [tuple(model.header[own][0]) for model, own in zip(models, inputs, strict=True)]
        dtypes = [_dtype(model, own) for model, own in zip(models, inputs, strict=True)]
        axis = 0 if key is not None and is_vocabulary(key) else None
        shape = self.mapped(models, inputs, shapes) if axis is not None and self.rows is not None else _alike(models, inputs, shapes, axis)
        if axis is None and key is not None and self.rows is not None:
            _check_no_vocabulary(models, inputs, shapes)
        asked = self.recipe.out_dtype or self.recipe.dtype
        shared, each = resolve(self.method, self.recipe, part, name, inputs, t)
        return Piece(
            name=name,
            shape=shape,
            dtype=getattr(torch, asked) if asked else reduce(torch.promote_types, dtypes),
            sources=tuple(Source(model.number, own) for model, own in zip(models, inputs, strict=True)),
            base=base_of(self.method, part),
            shared=shared,
            each=each,
            vocabulary=axis,
            wide=self.recipe.dtype == "float64" and torch.float64 not in dtypes,
        )

    def mapped(self, models: Sequence[_Model], inputs: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of a tensor whose rows are mapped to the output's vocabulary."""
        for model, own, shape in zip(models, inputs, shapes, strict=True):
            if shape[0] != model.rows:
                met = f"{own} of {model.reference} has {shape[0]} rows, its embedding {model.rows}"
                raise MismatchError(
                    "Head and embedding have different vocabularies.", met=met, mend="resize one with resize_token_embeddings"
                )
        _alike(models, inputs, [shape[1:] for shape in shapes], None)
        return (self.rows or 0, *shapes[0][1:])


def _check_models(method: Method, recipe: Recipe, part: Slice) -> None:
    """Whether a slice has the base and the number of models that the method takes."""
    base = base_of(method, part)
    if method.base == "required" and part.base is None:
        raise SettingsError(
            f"{method.name} needs a base.", met=f"no base_model in {part.place}", mend="add base_model: the model all were tuned from"
        )
    if method.base != "none" and part.base is not None and base is None:
        mend = "list it among the sources with the layers that the others are compared with"
        raise SettingsError(f"{part.place} does not merge its base.", met=f"base_model {part.base}", mend=mend)
    method.check_count(len(part.sources) - (base is not None and method.stack != "models"))


def _check_heads(models: Sequence[_Model]) -> None:
    """MismatchError when the output head is the embedding in some models and a tensor of its own in others."""
    having, lacking = ([model.reference for model in models if model.has_head is has] for has in (True, False))
    if having and lacking:
        met = f"{lacking[0]} ties its head to the embedding or has none, {having[0]} has lm_head"
        mend = "untie the first: set tie_word_embeddings to false in its config and save its embedding also as lm_head.weight"
        raise MismatchError("Tied and untied embeddings do not merge.", met=met, mend=mend)


def _check_widths(models: Sequence[_Model]) -> None:
    """MismatchError when embeddings, and so the layers of different slices, differ in width."""
    known = [(model.reference, model.embedding) for model in models if model.embedding is not None]
    for model, shape in known:
        if shape[1:] != known[0][1][1:]:
            met = f"{list(shape)} in {model}, {list(known[0][1])} in {known[0][0]}"
            raise MismatchError("The models' embeddings have different widths.", met=met, mend="merge models of one architecture and size")


def _check_no_vocabulary(models: Sequence[_Model], inputs: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """UnsupportedError for a loose matrix of an embedding's shape that is not known to be one: its rows would not be mapped."""
    for model, own, shape in zip(models, inputs, shapes, strict=True):
        if shape == model.embedding:
            met = f"{own} {list(shape)} in {model.reference}"
            mend = "remove the tokenizer rule; the models' tokenizers must then be alike"
            raise UnsupportedError("A tensor may be a token embedding, which its name does not tell.", met=met, mend=mend)


def _alike(models: Sequence[_Model], inputs: Sequence[str], shapes: Sequence[tuple[int, ...]], axis: int | None) -> tuple[int, ...]:
    for model, own, shape in zip(models, inputs, shapes, strict=True):
        if shape != shapes[0]:
            met = f"{own} is {list(shape)} in {model.reference}, {list(shapes[0])} in {models[0].reference}"
            by_token = axis is not None and shape[1:] == shapes[0][1:]
            mend = "add tokenizer: {source: base} or {source: union}" if by_token else "merge models of one architecture and size"
            raise MismatchError("A tensor has different shapes.", met=met, mend=mend)
    return shapes[0]


def _dtype(model: _Model, name: str) -> torch.dtype:
    kind = model.header[name][1]
    if kind not in DTYPES:
        mend = "use unquantised weights in float32, float16 or bfloat16"
        raise UnsupportedError("A weight is not plain floating point.", met=f"{name} in {model.reference} is {kind}", mend=mend)
    return DTYPES[kind]


def _before_number(parts: Parts) -> str:
    """How names of the only stack begin, up to the layer's number."""
    layer = parts.layers[0]
    rest, name = next(iter(layer.items()))
    return name.removesuffix(f"0.{rest}")
