"""Which model a recipe means: a folder or Hub id, perhaps at a revision, perhaps with an adapter on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asterism.core.errors import SettingsError, UnsupportedError
from asterism.core.reading import keys, text, under


@dataclass(frozen=True)
class Origin:
    """Where weights lie: a folder or a Hub id, perhaps at a revision."""

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"


@dataclass(frozen=True)
class Reference:
    """A model of the recipe: a checkpoint, perhaps with an adapter on it."""

    model: Origin
    lora: Origin | None = None

    def __str__(self) -> str:
        return str(self.model) if self.lora is None else f"{self.model}+{self.lora}"

    @classmethod
    def of(cls, value: Any, place: str = "a model") -> Reference:
        """Read `path`, `path@revision`, `path+lora` or a mapping of `model` and `lora`, each a text or `path` and `revision`."""
        if isinstance(value, str):
            model, plus, lora = value.partition("+")
            if "+" in lora:
                raise SettingsError(f"{place} names more than one adapter.", met=repr(value), mend="merge one adapter a model: path+lora")
            return cls(_origin(model, place), _origin(lora, place) if plus else None)
        read = keys(value, place, ("model", "lora", "override_architecture"), ("model",))
        if "override_architecture" in read:
            mend = "remove it: the architecture is read from the model's own config.json"
            raise UnsupportedError("override_architecture is not supported.", met=f"{place}: {read['override_architecture']!r}", mend=mend)
        model, lora = (read.get(key) for key in ("model", "lora"))
        return cls(_origin(model, under(place, "model")), None if lora is None else _origin(lora, under(place, "lora")))


def _origin(value: Any, place: str) -> Origin:
    """A path and its revision; the mapping form takes the path as it stands."""
    if isinstance(value, Mapping):
        read = keys(value, place, ("path", "revision"), ("path",))
        revision = read.get("revision")
        path = text(read["path"], under(place, "path"))
        return Origin(path, None if revision is None else text(revision, under(place, "revision")))
    path, sign, revision = text(value, place).partition("@")
    if not path.strip() or "@" in revision or (sign and not revision):
        mend = "write path, path@revision or path+lora; a path with such signs: {model: {path: ...}}"
        raise SettingsError(f"{place} is not a model.", met=repr(value), mend=mend)
    return Origin(path, revision or None)
