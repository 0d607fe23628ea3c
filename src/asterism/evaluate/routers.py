"""Routed models as candidates: one model for all probes, whose gates weigh the experts token by token."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterism.core.errors import SettingsError
from asterism.core.storage import digest_of, file_digest
from asterism.models.library import Library
from asterism.models.routed import RoutedForCausalLM
from asterism.route.build import RECORD, TENSORS, load_router, read_router
from asterism.route.experts import GENERALIST
from asterism.route.settings import RouterSettings
from asterism.route.texts import check_unseen

GATES = {"linear": "a linear gate", "mlp": "a two-layer gate", "fixed": "all tokens alike"}
PLACES = {"layer": " in every layer", "single": " for all layers"}


@dataclass(frozen=True)
class Routed:
    """A router on disk, trained or not, with the library that it was made from."""

    called: str
    folder: Path
    settings: RouterSettings
    digest: str
    """Of the router's files."""

    @property
    def name(self) -> str:
        """In the tables."""
        return f"router:{self.called}"

    @property
    def about(self) -> str:
        """One line."""
        own = self.settings
        experts = [*(own.experts or ()), *([GENERALIST] if own.with_generalist else [])]
        how = [GATES[own.gate] + ("" if own.gate == "fixed" else PLACES[own.scope])]
        if own.depth > 1:
            how.append(f"over {own.depth} layers")
        if own.top_k is not None:
            how.append(f"top {own.top_k}")
        return f"one model: the MLPs of {', '.join(experts)} side by side, weighed token by token ({', '.join(how)})"

    @property
    def told(self) -> dict[str, Any]:
        """What an evaluation was made from."""
        return {"router": self.called, "digest": self.digest}

    def build(self, library: Library) -> RoutedForCausalLM:
        """The routed model."""
        return load_router(self.folder, library)

    def check(self, texts: Sequence[str]) -> None:
        """DataError for texts that the router has learnt from."""
        check_unseen(self.folder, texts)


def open_routers(library: Library, folders: Mapping[str, str | Path]) -> list[Routed]:
    """Routers by name, each proven to be this library's; none is built yet.

    Raises what `read_router` raises (StaleError for another library's), SettingsError for a name that is not one word.
    """
    found = []
    for name, folder in folders.items():
        if not re.fullmatch(r"[\w.-]+", name):
            raise SettingsError("A router's name is one word.", met=repr(name), mend="letters, digits, `_`, `.` and `-`")
        settings, _ = read_router(folder, library)
        digest = digest_of(*(file_digest(Path(folder) / part) for part in (RECORD, TENSORS)))
        found.append(Routed(name, Path(folder), settings, digest))
    return found
