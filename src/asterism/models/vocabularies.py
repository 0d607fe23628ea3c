"""The output's tokenizer for a merge: one that exists, or the union of several. What needs transformers for `asterism.merge`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from asterism.core.errors import UnsupportedError
from asterism.core.storage import read_json, write_json
from asterism.models.likeness import read_tokenizer
from asterism.models.sources import TOKENIZER_FILES


def tokenizer_in(folder: Path, rows: int | None = None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder, None where it has no tokenizer files; without the tokens that have no row among `rows`."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    tokenizer = read_tokenizer(folder)
    odd = {token for token, row in tokenizer.get_vocab().items() if rows is not None and row >= rows}
    return _without(tokenizer, odd, folder) if odd else tokenizer


def unite(base: PreTrainedTokenizerBase, others: Sequence[tuple[PreTrainedTokenizerBase, int]]) -> None:
    """Add to `base` every token of the others, each given with the rows of its embedding, that has a row there and that base lacks.

    They come in the others' order, each other's by number: first those of the vocabularies, then those that were added, which keep
    their settings (special, stripping). A token that base has stays as it is, but that one added elsewhere becomes an added one.
    """
    plain: dict[str, None] = {}
    added: dict[str, Any] = {}
    own = {token.content for token in base.added_tokens_decoder.values()}
    for tokenizer, rows in others:
        decoder = tokenizer.added_tokens_decoder
        set_apart = {token.content for token in decoder.values()}
        plain |= dict.fromkeys(token for token, row in _by_row(tokenizer.get_vocab()) if row < rows and token not in set_apart)
        for row, token in sorted(decoder.items()):
            if row < rows and token.content not in own:
                added.setdefault(token.content, token)
    vocabulary = base.get_vocab()
    base.add_tokens([token for token in plain if token not in vocabulary and token not in added])
    base.add_tokens(list(added.values()))


def add(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    """Add the tokens that a tokenizer lacks, in their order."""
    vocabulary = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in dict.fromkeys(tokens) if token not in vocabulary])


def _without(tokenizer: PreTrainedTokenizerBase, tokens: set[str], folder: Path) -> PreTrainedTokenizerBase:
    """The same tokenizer without some tokens, their merges and the roles that name them."""
    with TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        file, settings = Path(place, "tokenizer.json"), Path(place, "tokenizer_config.json")
        content = read_json(file) if file.is_file() else {}
        model = content.get("model", {})
        if model.get("type") != "BPE":
            met = f"{min(tokens)!r} in {folder}, whose tokenizer is {model.get('type') or 'slow'}"
            mend = "resize its embedding with resize_token_embeddings, or take another model's tokenizer"
            raise UnsupportedError("A tokenizer has more tokens than its model has rows.", met=met, mend=mend)
        model["vocab"] = {token: row for token, row in model["vocab"].items() if token not in tokens}
        model["merges"] = [merge for merge in model["merges"] if not tokens.intersection(_parts(merge))]
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in tokens]
        write_json(file, content)
        write_json(settings, {name: value for name, value in read_json(settings).items() if _content(value) not in tokens})
        return read_tokenizer(Path(place))


def _parts(merge: str | Sequence[str]) -> tuple[str, ...]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def _content(value: Any) -> str:
    """The token that a setting names; a text that is none otherwise."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _by_row(vocabulary: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(vocabulary.items(), key=lambda entry: entry[1])
