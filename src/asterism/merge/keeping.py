"""What merging learnt of a library, kept beside it in `merging/`: a folder a thing, whole or absent, refused once its models change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asterism.core.errors import DataError, StaleError, StorageError, UnknownName
from asterism.core.storage import digest_of, read_json, replacing, write_json, write_tensors
from asterism.models.library import Library

HOME = "merging"
"""The folder in the library's."""
FORMAT = 1
_FACTS, _TENSORS = "facts.json", "tensors.safetensors"


@dataclass(frozen=True, eq=False)
class Kept(Mapping[str, Tensor]):
    """A folder that was written by `keep`: what it says, and its tensors, read when asked for (on the CPU; do not write to them)."""

    folder: Path
    what: str
    facts: Mapping[str, Any]
    file: Any
    names: frozenset[str]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        return self.file.get_tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.names))

    def __len__(self) -> int:
        return len(self.names)

    def check_models(self, library: Library, *, gone: bool = False) -> None:
        """StaleError, naming which, when the generalist or a specialist that it comes from has changed, or left (unless `gone` may be)."""
        origin = self.facts["origin"]
        if library.digest() != origin["generalist"]:
            raise self._stale("the generalist changed", library.generalist)
        for name, digest in origin["specialists"].items():
            if name not in library.names:
                if not gone:
                    raise self._stale("a specialist left the library", name)
            elif library.digest(name) != digest:
                raise self._stale("a specialist changed", name)

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """StaleError naming every setting that differs."""
        was = self.facts["origin"]["settings"]
        if other := [f"{name} was {was.get(name)!r}, is {value!r}" for name, value in settings.items() if was.get(name) != value]:
            raise self._stale("other settings", ", ".join(other))

    def _stale(self, why: str, met: str) -> StaleError:
        return StaleError(f"Stale: the {self.what} come from something else: {why}.", met=f"{self.folder}: {met}", mend=_anew(self.what))


def place(library: Library, *parts: str) -> Path:
    """Where something is kept."""
    return library.root.joinpath(HOME, *parts)


def origin_of(
    library: Library, names: Sequence[str], texts: Mapping[str, Sequence[str]] | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What something measured comes from: content digests of the models and of the texts, and the settings."""
    return {
        "generalist": library.digest(),
        "specialists": {name: library.digest(name) for name in names},
        "texts": {name: digest_of(list(texts[name])) for name in names} if texts else {},
        "settings": dict(settings or {}),
    }


def keep(folder: Path, origin: Mapping[str, Any], facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a folder in one step, in the place of an older one; StorageError where something else lies."""
    if folder.exists() and not (folder / _FACTS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError("The place holds something else.", met=folder, mend="choose another place, or move it away")
    with replacing(folder) as temporary:
        temporary.mkdir()
        if tensors:  # safetensors does not read back a file of none
            write_tensors(temporary / _TENSORS, tensors)
        write_json(temporary / _FACTS, {"format_version": FORMAT, "origin": origin, "tensors": len(tensors), **facts})


def kept(folder: Path, what: str) -> Kept:
    """Open a kept folder. Raises StorageError when there is none or it is damaged, StaleError for another version's."""
    from safetensors import SafetensorError, safe_open

    if not folder.is_dir():
        raise StorageError(f"There are no {what} yet.", met=folder, mend=_anew(what))
    facts = read_json(folder / _FACTS)
    if not isinstance(facts, dict) or facts.get("format_version") != FORMAT:
        met = f"{folder}: format_version {facts.get('format_version') if isinstance(facts, dict) else None}, not {FORMAT}"
        raise StaleError(f"The {what} are of another version of asterism.", met=met, mend=_anew(what))
    origin = facts.get("origin")
    if not isinstance(origin, dict) or not all(isinstance(origin.get(part), dict) for part in ("specialists", "texts", "settings")):
        raise StorageError("A file is damaged.", met=f"{folder / _FACTS}: origin", mend=_anew(what))
    if not facts.get("tensors"):
        return Kept(folder, what, facts, None, frozenset())
    try:
        file: Any = safe_open(folder / _TENSORS, framework="pt")
    except (OSError, SafetensorError) as error:
        raise StorageError("A tensor file is missing or damaged.", met=f"{folder / _TENSORS}: {error}", mend=_anew(what)) from None
    return Kept(folder, what, facts, file, frozenset(file.keys()))


def recalled(
    folder: Path, what: str, library: Library, names: Sequence[str], texts: Mapping[str, Sequence[str]] | None, settings: Mapping[str, Any]
) -> Kept | None:
    """What is kept of these models, texts and settings; None when it must be made, which takes texts.

    Without texts those that it was made from stand: StorageError when nothing is kept, StaleError when it is of other models or settings.
    """
    if texts is None:
        found = kept(folder, what)
        found.check_models(library)
        found.check_settings(settings)
        return found
    try:
        found = kept(folder, what)
    except (StorageError, StaleError):
        return None
    return found if found.facts["origin"] == origin_of(library, names, texts, settings) else None


def check_texts(library: Library, texts: Mapping[str, Sequence[str]]) -> None:
    """UnknownName for texts of something that is no specialist, DataError where a specialist has none."""
    if unknown := [name for name in texts if name not in library.names]:
        raise UnknownName("specialist", unknown[0], library.names)
    for name in library.names:
        if name not in texts:
            raise DataError("A specialist has no texts.", met=name, mend="give each specialist texts of its own domain")
        if isinstance(texts[name], str) or not len(texts[name]):
            raise DataError("A specialist's texts are a list, at least one.", met=f"{name}: {texts[name]!r}", mend='e.g. ["one text"]')


def _anew(what: str) -> str:
    return f"make the {what} again" + (" by giving texts" if what != "EMR parts" else ": Emr.build(library).save()")
