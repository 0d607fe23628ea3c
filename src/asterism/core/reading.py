"""Reading a strict YAML mapping: each key known, once and text; each refusal names the place where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from asterism.core.errors import SettingsError, StorageError, UnknownName

T = TypeVar("T")
TOP = "the recipe"
"""The place of the outermost mapping."""


def read_yaml(path: str | Path) -> Any:
    """What the one document of a YAML (or JSON) file says; StorageError when it cannot be read, SettingsError for odd or double keys."""
    try:
        return yaml.load(Path(path).read_text("utf-8"), _Strict)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise StorageError("The recipe cannot be read.", met=f"{path}: {told}", mend="give one YAML file that holds one recipe") from None


class _Strict(yaml.SafeLoader):
    """YAML whose mappings have text keys, each once."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        met: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            told = (
                f"{key.value!r} on line {key.start_mark.line + 1}"
                if isinstance(key, yaml.ScalarNode)
                else f"line {key.start_mark.line + 1}"
            )
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise SettingsError("A key of the recipe is not text.", met=told, mend="put it in quotes")
            if key.value in met:
                raise SettingsError("A key stands twice in one mapping.", met=told, mend="keep one of them")
            met.add(key.value)
        return node


def keys(value: Any, place: str, known: Sequence[str] | None, needed: Sequence[str] = (), *, empty: bool = False) -> dict[str, Any]:
    """The entries of a mapping. Each key must be among `known` (None: any name), each of `needed` there.

    With known keys an entry without a value counts as absent. `empty` lets the mapping hold nothing.
    """
    if not isinstance(value, Mapping) or not (value or empty):
        raise SettingsError(f"{begun(place)} holds keys and values.", met=told(value), mend="write `key: value` lines")
    for key in value:
        if not isinstance(key, str):
            raise SettingsError(f"A key of {place} is not text.", met=repr(key), mend="put it in quotes")
        if known is not None and key not in known:
            raise UnknownName(f"key in {place}", key, known)
    for key in needed:
        if value.get(key) is None:
            raise SettingsError(f"{begun(place)} lacks {key}.", met=", ".join(value) or "no key", mend=f"add {key}: ...")
    return {key: entry for key, entry in value.items() if known is None or entry is not None}


def each(value: Any, place: str, read: Callable[[Any, str], T]) -> Iterator[T]:
    """The entries of a list that is not empty, each read with its place."""
    if not isinstance(value, list | tuple) or not value:
        raise SettingsError(f"{place} is a list that is not empty.", met=told(value), mend="write one `- ` line an entry")
    for number, entry in enumerate(value):
        yield read(entry, f"{place}[{number}]")


def text(value: Any, place: str) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{place} is a text.", met=told(value), mend="write it, in quotes where YAML reads something else")
    return value


def under(place: str, key: str) -> str:
    """The place of a key."""
    return key if place == TOP else f"{place}.{key}"


def begun(place: str) -> str:
    """A place at the beginning of a sentence."""
    return "The recipe" if place == TOP else place


def told(value: Any) -> str:
    """A value in an error: short."""
    shown = repr(value)
    return "nothing" if value is None else shown if len(shown) <= 120 else shown[:117] + "..."
