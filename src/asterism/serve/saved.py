"""Saved compositions: LIBRARY/compositions/LABEL.json, the record that `asterism compose` writes; replicas read the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asterism.compose.export import recalled, record
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import AsterismError, UnknownName
from asterism.core.storage import read_json, write_json
from asterism.models.library import Library, check_name
from asterism.serve.errors import Refused

FOLDER = "compositions"
SUFFIX = ".json"
MOST = 1000
"""Compositions that a library keeps: each is a file, and each a model in the API's list."""


class Saved:
    """The saved compositions of a library."""

    def __init__(self, library: Library) -> None:
        self._library, self._folder = library, library.root / FOLDER
        self._known: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}

    def labels(self) -> list[str]:
        """The labels there are now, in order."""
        return sorted(file.name.removesuffix(SUFFIX) for file in self._folder.glob(f"*{SUFFIX}") if not file.name.startswith("."))

    def recall(self, label: str) -> tuple[Mixture, CompositionSettings]:
        """The mixture of a label, and where it acts.

        Raises UnknownName for a label that is not there or a specialist that left, StaleError where a model is another one by now.
        """
        return recalled(self.record(label), self._library)

    def record(self, label: str) -> dict[str, Any]:
        """What is kept under a label; read again when its file has changed."""
        if label not in self.labels():
            raise UnknownName("saved composition", label, self.labels())
        status = (path := self._path(label)).stat()
        mark = (status.st_mtime_ns, status.st_size)
        known = self._known.get(label)
        if known is None or known[0] != mark:
            known = self._known[label] = (mark, read_json(path))
        return known[1]

    def told(self, label: str) -> dict[str, Any]:
        """A saved composition as the API tells it; `usable` is whether this library still has the models it was made of."""
        found = self.record(label)
        try:
            recalled(found, self._library)
            usable, why = True, None
        except AsterismError as error:
            usable, why = False, error.wrong
        names = ("shares", "scale", "settings", "origin")
        return {"label": label, "generalist": found.get("generalist_share"), "usable": usable, "why": why} | {
            name: found.get(name) for name in names
        }

    def save(self, label: str, mixture: Mixture, settings: CompositionSettings, *, origin: dict[str, Any], replace: bool = False) -> None:
        """Keep a mixture under a label. SettingsError for a label that cannot name a file, Refused (409) for one that is taken."""
        check_name(label)
        if label in self.labels() and not replace:
            raise Refused(409, "A composition has that label already.", met=repr(label), mend="choose another one, or give replace: true")
        if len(self.labels()) >= MOST:
            raise Refused(409, "The library keeps no more compositions.", met=f"{MOST} of them", mend="remove some")
        write_json(self._path(label), record(self._library, mixture, settings, kind="saved", origin=origin))

    def remove(self, label: str) -> None:
        """Forget a composition. UnknownName for a label that is not there."""
        if label not in self.labels():
            raise UnknownName("saved composition", label, self.labels())
        self._path(label).unlink(missing_ok=True)
        self._known.pop(label, None)

    def _path(self, label: str) -> Path:
        return self._folder / f"{label}{SUFFIX}"
