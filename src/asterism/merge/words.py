"""The tokenizers of a merge's models: whether they are alike, and what a recipe's tokenizer rule makes of them."""

from __future__ import annotations

import filecmp
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asterism.core.errors import MismatchError, StorageError
from asterism.core.storage import read_json
from asterism.merge.parts import embedding_of, parts_of
from asterism.merge.recipe import Recipe
from asterism.merge.references import Reference
from asterism.merge.vocabulary import Alignment, Known, Vocabulary
from asterism.models.sources import TOKENIZER_FILES

if TYPE_CHECKING:
    from asterism.merge.sources import Opened

_MEND = "add tokenizer: {source: base} or {source: union}, which maps embeddings by token"


@dataclass(frozen=True)
class Words:
    """The output's tokenizer and how the models' embeddings are mapped to it."""

    vocabulary: Vocabulary
    tokenizer: Any
    """Of transformers."""

    @property
    def rows(self) -> int:
        """Rows of the output's embedding."""
        return self.vocabulary.rows

    def alignment(self, models: Sequence[int], base: int | None = None) -> Alignment:
        """How the embeddings of a piece's sources are mapped; see `Vocabulary.alignment`."""
        return self.vocabulary.alignment(models, base)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)


def words_of(recipe: Recipe, donor: Opened, models: Sequence[Opened]) -> Words:
    """What a recipe's tokenizer rule asks for. Loads transformers.

    A model without tokenizer files counts as having the donor's, if its embedding has as many rows. Of the donor's tokens those
    without a row are left out; with `union`, of the others' too.
    Raises MismatchError, StorageError or UnsupportedError for tokenizers that cannot be used.
    """
    from asterism.models.vocabularies import add, tokenizer_in, unite

    rule = recipe.tokenizer
    assert rule is not None
    opened = {model.reference: model for model in (donor, *models)}
    rows = {reference: _rows(model) for reference, model in opened.items()}
    base = _there(tokenizer_in(donor.folder, rows[donor.reference]), donor.folder)
    by_name = sorted((reference for reference in opened if reference != donor.reference), key=str)  # no matter how the recipe lists them
    others = {reference: tokenizer_in(opened[reference].folder) for reference in by_name}
    known = {donor.reference: Known(donor.reference, base.get_vocab(), rows[donor.reference])}
    for reference, tokenizer in others.items():
        if tokenizer is None and rows[reference] != rows[donor.reference]:
            met = f"{reference}, whose embedding has {rows[reference]} rows; {donor.reference} has {rows[donor.reference]}"
            raise MismatchError("A model has no tokenizer, and cannot have the other's.", met=met, mend="put its tokenizer files beside it")
        known[reference] = Known(reference, known[donor.reference].tokens if tokenizer is None else tokenizer.get_vocab(), rows[reference])
    output = base
    if isinstance(rule.source, Reference):
        folder = _folder(rule.source, opened)
        output = _there(tokenizer_in(folder), folder)
    elif rule.source == "union":
        unite(base, [(tokenizer, rows[reference]) for reference, tokenizer in others.items() if tokenizer is not None])
    add(output, rule.tokens)
    numbered = tuple(known[reference] for reference in recipe.models)
    return Words(Vocabulary(output.get_vocab(), numbered, recipe.base_model, rule.tokens, rule.multiple), output)


def check_alike(folders: Iterable[tuple[Reference, Path]]) -> None:
    """MismatchError naming a token that two models number differently or one lacks; for recipes without a tokenizer rule.

    A folder without tokenizer files passes. Files equal byte by byte are not parsed; transformers is not loaded.
    """
    met: list[tuple[Reference, Path]] = []
    for model, folder in folders:
        file = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
        if file is None:
            continue
        if met and not any(file.name == other.name and filecmp.cmp(file, other, shallow=False) for _, other in met):
            _compare(*met[0], model, file)
        met.append((model, file))


def _compare(one: Reference, first: Path, other: Reference, second: Path) -> None:
    mine, theirs = _numbers(first), _numbers(second)
    if mine is None or theirs is None:
        met = f"{first} and {second}"
        raise MismatchError("The models' tokenizers are not alike, or cannot be compared.", met=met, mend=_MEND)
    differing = [token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token)]
    if differing:
        token = min(differing, key=lambda token: (len(token), token))
        met = f"{token!r} is {_row(mine, token)} in {one}, {_row(theirs, token)} in {other}"
        raise MismatchError("The models have different vocabularies and the recipe no rule for them.", met=met, mend=_MEND)


def _row(numbers: Mapping[str, int], token: str) -> str:
    return f"token {numbers[token]}" if token in numbers else "no token"


def _numbers(path: Path) -> dict[str, int] | None:
    """Token -> number of a tokenizer.json; None for another file."""
    if path.name != "tokenizer.json":
        return None
    content = read_json(path)
    try:
        tokens = content["model"]["vocab"]
        numbered = tokens if isinstance(tokens, dict) else {entry[0]: number for number, entry in enumerate(tokens)}
        return numbered | {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    except (TypeError, KeyError, IndexError):
        raise StorageError("A tokenizer file is damaged.", met=path, mend="save it again with tokenizer.save_pretrained") from None


def _rows(model: Opened) -> int:
    embedding = embedding_of(parts_of(model.header, model.reference), model.header)
    return embedding[0] if embedding else 0


def _folder(reference: Reference, opened: Mapping[Reference, Opened]) -> Path:
    from asterism.merge import sources

    return opened[reference].folder if reference in opened else sources.folder_of(reference.model)


def _there(tokenizer: Any, folder: Path) -> Any:
    if tokenizer is None:
        mend = "save it there with tokenizer.save_pretrained, or name another source"
        raise StorageError("A tokenizer is missing.", met=f"{folder} holds none of {', '.join(TOKENIZER_FILES)}", mend=mend)
    return tokenizer
