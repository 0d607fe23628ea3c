"""A constellation on disk: one folder, whole or absent, small parts read at once and fingerprints when asked for.

index.json                format_version, settings, counts, origin (digests of what it was made from), calibration if it was fitted
basis.safetensors         centroids [N, d], vectors [N, d], offset [d], general_mean [d] if there are general probes
fingerprints.safetensors  one tensor [n, d] a domain, `general` included
signatures.safetensors    only with domain signatures: `module@domain` -> [out]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from asterism.constellation.calibration import Calibration
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import AsterismError, StaleError, StorageError
from asterism.core.storage import digest_of, read_json, read_tensors, replacing, write_json, write_tensors

FORMAT = 1
AGAIN = "build the index again"
CALIBRATE = "build the index again, then calibrate it (`asterism index`, `asterism calibrate`)"
INDEX, BASIS, FINGERPRINTS, SIGNATURES = "index.json", "basis.safetensors", "fingerprints.safetensors", "signatures.safetensors"


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file held open, so that replacing the file changes nothing here."""

    file: Any
    name: str

    def read(self) -> Tensor:
        return self.file.get_tensor(self.name)

    def shape(self) -> tuple[int, ...]:
        return tuple(self.file.get_slice(self.name).get_shape())


class Shelf(Mapping[str, Tensor]):
    """Named tensors, in memory or in a safetensors file that is read tensor by tensor, when asked for."""

    def __init__(self, entries: Mapping[str, Tensor | _Stored]) -> None:
        self._entries = dict(entries)

    @classmethod
    def open(cls, path: Path) -> Shelf:
        """The tensors of a file; StorageError when it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = safe_open(path, framework="pt")
        except FileNotFoundError:
            raise StorageError("A tensor file is missing.", met=path, mend=AGAIN) from None
        except (OSError, SafetensorError) as error:
            raise StorageError("A tensor file is damaged.", met=f"{path}: {error}", mend=AGAIN) from None
        return cls({name: _Stored(file, name) for name in file.keys()})  # noqa: SIM118 - not a dict

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        return entry.read() if isinstance(entry, _Stored) else entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor; reads no values."""
        entry = self._entries[name]
        return entry.shape() if isinstance(entry, _Stored) else tuple(entry.shape)

    def plus(self, more: Mapping[str, Tensor]) -> Shelf:
        """These tensors and `more`, which win."""
        return Shelf({**self._entries, **more})

    def only(self, keep: Callable[[str], bool]) -> Shelf:
        """The tensors whose names `keep` accepts."""
        return Shelf({name: entry for name, entry in self._entries.items() if keep(name)})


def probe_digests(probes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Content identity of every domain's texts, in their order."""
    return {domain: digest_of(list(texts)) for domain, texts in probes.items()}


def write(
    folder: str | Path, index: Mapping[str, Any], basis: Mapping[str, Tensor], rows: Mapping[str, Tensor], signatures: Mapping[str, Tensor]
) -> None:
    """Write a constellation's folder in one step; a folder that holds anything but a constellation is left alone (StorageError)."""
    folder = Path(folder)
    if folder.exists() and not (folder / INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError("The place holds something that is no constellation.", met=folder, mend="choose another place, or move it away")
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_tensors(temporary / BASIS, basis)
        write_tensors(temporary / FINGERPRINTS, rows)
        if signatures:
            write_tensors(temporary / SIGNATURES, signatures)
        write_json(temporary / INDEX, {"format_version": FORMAT, **index})


def read(folder: str | Path) -> tuple[dict[str, Any], IndexSettings, dict[str, Tensor], Shelf, Shelf]:
    """Index, settings, basis tensors, fingerprints and signatures (both lazily) of a saved constellation.

    Raises StorageError when something is missing or damaged, StaleError when another version of the format wrote it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise StorageError("There is no constellation there.", met=folder, mend="build and save the index first")
    index = read_json(folder / INDEX)
    if not isinstance(index, dict) or index.get("format_version") != FORMAT:
        met = f"{folder}: format_version {index.get('format_version') if isinstance(index, dict) else None}"
        raise StaleError("The constellation's format is another one.", met=met, mend=f"this version reads {FORMAT}: {AGAIN}")
    try:
        settings = IndexSettings(**index["settings"])
    except AsterismError as error:
        raise StaleError("The constellation's settings are no longer known.", met=error.met, mend=AGAIN) from None
    except (KeyError, TypeError):
        raise damaged(folder / INDEX, "settings") from None
    basis = {name: tensor.clone() for name, tensor in read_tensors(folder / BASIS).items()}  # aligned anew: same bits from the same sums
    rows = Shelf.open(folder / FINGERPRINTS)
    signatures = Shelf.open(folder / SIGNATURES) if settings.domain_signatures else Shelf({})
    _check_shapes(folder, index, basis, rows)
    return index, settings, basis, rows, signatures


def check_origin(
    index: Mapping[str, Any], library: Any, kept: Sequence[str], probes: Mapping[str, Sequence[str]] | None, without: Sequence[str] = ()
) -> None:
    """StaleError, naming what changed, unless generalist, specialists and (where given) probes are those the index was made from."""
    origin = index["origin"]
    if library.digest() != origin["generalist"]:
        met = f"generalist {library.digest()[:12]}, the index was made with {origin['generalist'][:12]}"
        raise StaleError("The constellation is stale: its generalist changed.", met=met, mend=AGAIN)
    gone = [name for name in kept if name not in library.names]
    if gone:
        mend = f"add the specialist again, or load without={gone!r}"
        raise StaleError("The constellation is stale: a domain's specialist left the library.", met=", ".join(gone), mend=mend)
    for name, digest in origin.get("specialists", {}).items():
        if name in kept and library.digest(name) != digest:
            mend = f"its domain signature is of the old one: {AGAIN}, or turn domain_signatures off"
            raise StaleError("The constellation is stale: a specialist changed.", met=name, mend=mend)
    if probes is None:
        return
    given = probe_digests(probes)
    known = {name: digest for name, digest in origin["probes"].items() if name not in without}
    changed = [f"{name} (changed)" for name in known if name in given and given[name] != known[name]]
    changed += [f"{name} (new)" for name in given if name not in known] + [f"{name} (gone)" for name in known if name not in given]
    if changed:
        raise StaleError("The constellation is stale: its probes changed.", met=", ".join(changed), mend=AGAIN)


def calibration_of(index: Mapping[str, Any], library: Any, without: Sequence[str] = ()) -> Calibration:
    """The calibration kept with an index, or the defaults; StaleError when a specialist changed since it was fitted."""
    try:
        found = Calibration(**(index.get("calibration") or {}))
    except (AsterismError, TypeError) as error:
        raise StaleError("The constellation's calibration cannot be read.", met=str(error), mend=CALIBRATE) from None
    for name, digest in found.specialists.items():
        if name not in without and name in library.names and library.digest(name) != digest:
            raise StaleError("The calibration is stale: a specialist changed since it was fitted.", met=name, mend=CALIBRATE)
    return found


def check_settings(stored: IndexSettings, wanted: IndexSettings | None) -> None:
    """StaleError naming every setting that differs."""
    if wanted is None or stored == wanted:
        return
    old, new = stored.model_dump(), wanted.model_dump()
    met = ", ".join(f"{name} {old[name]!r} -> {new[name]!r}" for name in old if old[name] != new[name])
    mend = f"{AGAIN}, or load it as it is and use with_settings"
    raise StaleError("The constellation is stale: its settings changed.", met=met, mend=mend)


def damaged(path: Path, what: str) -> StorageError:
    """The error of a file whose parts do not fit together."""
    return StorageError("A constellation's file is damaged.", met=f"{path}: {what}", mend=AGAIN)


def _check_shapes(folder: Path, index: Mapping[str, Any], basis: Mapping[str, Tensor], rows: Shelf) -> None:
    try:
        counts, origin = dict(index["counts"]), index["origin"]
        domains = list(index["domains"])
        n, d = basis["centroids"].shape
        fits = n == len(domains) and basis["vectors"].shape == (n, d) and basis["offset"].shape == (d,)
        fits = fits and isinstance(origin["generalist"], str) and set(origin["probes"]) == set(counts) and set(domains) <= set(counts)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / INDEX, repr(error)) from None
    if not fits:
        raise damaged(folder / BASIS, "it does not fit index.json")
    for domain, count in counts.items():
        if domain not in rows or rows.shape(domain) != (count, d):
            raise damaged(folder / FINGERPRINTS, f"domain {domain!r}")
