"""Settings: frozen, validated at birth, one definition for Python, YAML/JSON files and the command line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from asterism.core.errors import SettingsError, StorageError, UnknownName


class Settings(BaseModel):
    """Base of all settings. A docstring under each field is its help, in Python and on the command line alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _told(type(self), error) from None

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read settings from a YAML or JSON file holding one mapping of field names to values."""
        return cls(**read_mapping(path))

    def changed(self, **values: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return type(self)(**{**self.model_dump(), **values})

    def digest(self) -> str:
        """SHA-256 of the canonical JSON form: equal settings, equal digest."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The one mapping that a YAML or JSON file holds."""
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise StorageError("The settings file cannot be read.", met=f"{path}: {told}", mend="give a YAML or JSON file") from None
    if not isinstance(values, Mapping):
        raise SettingsError("A settings file holds one mapping.", met=type(values).__name__, mend="write `field: value` lines")
    return {str(name): value for name, value in values.items()}


def _told(cls: type[Settings], error: ValidationError) -> SettingsError | UnknownName:
    errors = error.errors(include_url=False)
    first = errors[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return UnknownName(f"setting of {cls.__name__}", name, cls.model_fields)
    of_field = [each["msg"].removeprefix("Value error, ") for each in errors if each["loc"][:1] == first["loc"][:1]]
    told = ", or: ".join(dict.fromkeys(of_field))  # each way that a union could have been met
    field, met = cls.model_fields.get(name), first.get("input")
    if name:
        wrong, mend = f"{cls.__name__}.{name} is not usable: {told}.", (field and field.description) or "see its documentation"
        return SettingsError(wrong, met=repr(met), mend=mend)
    plain = {key: own.default for key, own in cls.model_fields.items()}
    values = plain | (met if isinstance(met, dict) else {})
    named = [key for key in plain if re.search(rf"\b{key}\b", told)]
    shown = ", ".join(f"{key} {values[key]!r}" for key in (named or plain) if named or values[key] != plain[key])
    return SettingsError(f"{cls.__name__}: {told}.", met=shown or repr(met), mend="change one of these")
