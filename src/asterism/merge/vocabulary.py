"""Embeddings of models with different vocabularies, mapped by token to the output's: which row of which model each output row is.

The rules are mergekit's. A model's own row stays. A row that a model lacks is the base's where the base has the token, else its only
owner's, else the mean of its owners', zero where no model has it; a recipe's `tokens` name another source, and may force it on all.
Rows of no token (padding) are the mean of the model's rows that have one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from asterism.core.errors import MismatchError, UnknownName
from asterism.merge.recipe import TokenRule
from asterism.merge.references import Reference


@dataclass(frozen=True)
class Known:
    """The tokens of one model."""

    model: Reference
    tokens: Mapping[str, int]
    """Token -> row."""
    rows: int
    """Rows of the embedding; a token beyond them has none."""


@dataclass(frozen=True)
class Alignment:
    """How the rows of some models' embeddings become those of the output."""

    places: tuple[Tensor | None, ...]
    """For each model [rows] int64: its own row, -1 for one to fill; None where its first rows are the output's as they stand."""
    needed: Tensor
    """[n] int64: output rows that some model has filled."""
    donors: Tensor
    """[models, n] int64: the row that each model gives to the mean that fills a needed row, -1 where it gives none."""
    spare: Tensor
    """[rows] bool: rows of no token."""
    order: tuple[int, ...]
    """The models' places by name: rows are added up so, whatever the recipe's order."""

    @property
    def rows(self) -> int:
        """Rows of the output."""
        return len(self.spare)


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens and how each model numbers them."""

    tokens: Mapping[str, int]
    """Token -> row of the output."""
    known: tuple[Known, ...]
    """By the model's number."""
    base: Reference | None = None
    """Whose rows those lacking a token take first."""
    rules: Mapping[str, TokenRule] = field(default_factory=dict)
    multiple: int | None = None

    @property
    def rows(self) -> int:
        """Rows of the output's embedding: one for each token's number, padded to the multiple asked for."""
        least = max(self.tokens.values()) + 1
        return least if self.multiple is None else -(-least // self.multiple) * self.multiple

    def alignment(self, models: Sequence[int], base: int | None = None) -> Alignment:
        """How the embeddings of some models are mapped. models: their numbers; base: its place among them where it is not `self.base`.

        Raises MismatchError or UnknownName when a token's row is asked from a model that has none.
        """
        known = [self.known[number] for number in models]
        own = torch.full((len(known), self.rows), -1, dtype=torch.int64)
        for place, model in enumerate(known):
            pairs = [(row, old) for token, row in self.tokens.items() if 0 <= (old := model.tokens.get(token, -1)) < model.rows]
            if pairs:
                at, rows = torch.tensor(pairs, dtype=torch.int64).T
                own[place, at] = rows
        spare = torch.ones(self.rows, dtype=torch.bool)
        spare[torch.tensor(sorted(self.tokens.values()), dtype=torch.int64)] = False
        donors = own.clone()
        if base is None:
            base = next((place for place, model in enumerate(known) if model.model == self.base), None)
        if base is not None:
            others = [place for place in range(len(known)) if place != base]
            donors[torch.tensor(others, dtype=torch.int64)[:, None], own[base] >= 0] = -1
        for token, rule in self.rules.items():
            row = self.tokens[token]
            if rule.says and (rule.force or bool((own[:, row] < 0).any())):
                donors[:, row] = torch.tensor(_given_by(rule, token, known), dtype=torch.int64)
                if rule.force:
                    own[:, row] = -1
        needed = ((own < 0).any(0) & ~spare).nonzero()[:, 0]
        places = tuple(None if _as_it_stands(mine) else mine for mine in own)
        order = tuple(sorted(range(len(known)), key=lambda place: str(known[place].model)))
        return Alignment(places, needed, donors[:, needed], spare, order)


def aligned(tensors: Sequence[Tensor], alignment: Alignment, axis: int = 0) -> list[Tensor]:
    """The tensors, [tokens of the model, ...] along `axis`, as [rows of the output, ...], in the widest of their dtypes.

    Means are computed in float32 or wider and rounded once. A tensor whose rows need no change is passed on as a view.
    """
    views = [tensor.movedim(axis, 0) for tensor in tensors]
    dtype = reduce(torch.promote_types, [view.dtype for view in views])
    fill = _fill(views, alignment, dtype) if any(place is not None for place in alignment.places) else None
    return [
        (view[: alignment.rows] if places is None else _taken(view, places, alignment, fill, dtype)).movedim(0, axis)
        for view, places in zip(views, alignment.places, strict=True)
    ]


def _fill(views: Sequence[Tensor], alignment: Alignment, dtype: torch.dtype) -> Tensor:
    """The means of the donors' rows for all needed rows: [n, ...]."""
    sums = torch.zeros((len(alignment.needed), *views[0].shape[1:]), dtype=torch.promote_types(dtype, torch.float32))
    for place in alignment.order:
        rows = alignment.donors[place]
        given = rows >= 0
        sums[given] += views[place][rows[given]].to(sums.dtype)
    counts = (alignment.donors >= 0).sum(0).clamp(min=1)
    return sums.div_(counts.reshape(-1, *[1] * (sums.ndim - 1))).to(dtype)


def _taken(view: Tensor, places: Tensor, alignment: Alignment, fill: Tensor | None, dtype: torch.dtype) -> Tensor:
    """One model's rows: its own, the filled ones, and the mean of both for rows of no token."""
    out = view[places.clamp(min=0)].to(dtype)
    lacking = places[alignment.needed] < 0
    if fill is not None and bool(lacking.any()):
        out[alignment.needed[lacking]] = fill[lacking]
    if bool(alignment.spare.any()):
        wide = torch.promote_types(dtype, torch.float32)
        out[alignment.spare] = out[~alignment.spare].mean(0, dtype=wide).to(dtype)
    return out


def _as_it_stands(places: Tensor) -> bool:
    return torch.equal(places, torch.arange(len(places)))


def _given_by(rule: TokenRule, token: str, known: Sequence[Known]) -> list[int]:
    """The row that each model gives for a token whose source the recipe names: one model's, or none's."""
    rows = [-1] * len(known)
    if rule.zero:
        return rows
    place = next((place for place, model in enumerate(known) if model.model == rule.donor), None)
    if place is None:
        mend = f"name one of {', '.join(str(model.model) for model in known)}"
        raise MismatchError("A token's row is asked from a model that is not merged there.", met=f"{token!r} from {rule.donor}", mend=mend)
    donor, wanted = known[place], token if rule.token is None else rule.token
    if rule.row is None and wanted not in donor.tokens:
        raise UnknownName(f"token in {donor.model}", wanted, donor.tokens)
    row = donor.tokens[wanted] if rule.row is None else rule.row
    if row >= donor.rows:
        met = f"{token!r} from row {row} of {donor.model}, which has {donor.rows}"
        raise MismatchError("A token's row lies beyond the embedding.", met=met, mend="name another token or row")
    rows[place] = row
    return rows
