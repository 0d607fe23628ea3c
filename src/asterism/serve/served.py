"""What the API knows of the library that it serves: its name, tokenizer and shape. No weights."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asterism.models.responses import ends_of, generation_settings

if TYPE_CHECKING:
    from asterism.constellation.index import Constellation
    from asterism.models.library import Library


@dataclass(frozen=True, eq=False)
class Served:
    """A library as the API sees it. Which specialists there are now is the engine's to say."""

    name: str
    """Name of the composed model."""
    library: Library
    """For its digests and shape; its weights and models are the engine's."""
    tokenizer: Any
    """The API's own copy: two threads cannot use one tokenizer at a time."""
    ends: frozenset[int]
    """Tokens that end an answer."""
    window: int
    """Tokens of a prompt that choosing reads."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time, for `/v1/models`."""

    @classmethod
    def of(cls, library: Library, constellation: Constellation, name: str | None = None) -> Served:
        """Of an open library; `name` is its folder's unless given."""
        ends = frozenset(ends_of(generation_settings(library.folder(), library.config), library.tokenizer))
        own = name or _plain(library.root.resolve().name)
        return cls(own, library, copy.deepcopy(library.tokenizer), ends, constellation.settings.max_length)

    @property
    def root(self) -> Path:
        """The library's folder."""
        return self.library.root

    @property
    def nodes(self) -> int:
        """Hidden nodes that a mixture speaks of."""
        return self.library.anatomy.hidden_size


def _plain(name: str) -> str:
    """A folder's name as a model's: what a name may not hold becomes a dash."""
    return "".join("-" if mark.isspace() or mark in ":@/" else mark for mark in name) or "asterism"
