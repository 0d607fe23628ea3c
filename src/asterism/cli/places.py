"""Where commands find things: the library with its constellation, the query, and the settings of its mixture."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from asterism.cli.options import Given
from asterism.compose.settings import CompositionSettings, mixture_settings
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.errors import DataError, SettingsError, StorageError

if TYPE_CHECKING:
    from asterism.constellation.index import Constellation
    from asterism.models.library import Library

CONSTELLATION = "constellation"


def open_library(root: Path, given: Given) -> Library:
    """The library on the device and in the type asked for."""
    from asterism.models.library import Library

    return Library.open(root, device=given.device, dtype=torch_dtype(given.dtype))


def open_both(root: Path, given: Given, *, paper: bool = False) -> tuple[Library, Constellation]:
    """The library and its constellation, with the paper's basis if asked."""
    library = open_library(root, given)
    from asterism.constellation.index import Constellation

    place = library.root / CONSTELLATION
    if not place.exists():
        raise StorageError("The library has no constellation yet.", met=place, mend=f"run `asterism index {root} --data DIR`")
    constellation = Constellation.load(place, library)
    if paper:
        now = constellation.settings
        kept = dict(layer=now.layer, max_length=now.max_length, domain_signatures=now.domain_signatures)
        constellation = constellation.with_settings(IndexSettings.paper(**kept))
    return library, constellation


def query_settings(given: Given, constellation: Constellation, *, paper: bool) -> tuple[MixtureSettings, CompositionSettings]:
    """Settings of a query's mixture and composition: what was given, over the defaults or the paper's."""
    composition = given.settings(CompositionSettings, CompositionSettings.paper() if paper else None)
    return given.settings(MixtureSettings, mixture_settings(len(constellation.domains), composition, paper=paper)), composition


def torch_dtype(name: str | None):
    """The torch type of that name; None stays None."""
    if name is None:
        return None
    import torch

    return getattr(torch, name)


def text_of(given: str) -> str:
    """The text itself, or what stands on stdin for `-`; DataError when it is empty or not UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8") if given == "-" else given
        text.encode("utf-8")
    except UnicodeError as error:
        raise DataError("The text is not UTF-8.", met=str(error), mend="convert it to UTF-8") from None
    if not text.strip():
        raise DataError("The text is empty.", met=repr(text[:20]), mend="give some words")
    return text


def named(what: str, given: Iterable[str], example: str) -> dict[str, str]:
    """`name=FOLDER` each, as a mapping; SettingsError for another form or a name given twice."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, source = text.strip().partition("=")
        if not (name and equals and source) or name in found:
            raise SettingsError(f"A {what} is given as name=FOLDER, each name once.", met=text, mend=f"e.g. {example}")
        found[name] = source
    return found
