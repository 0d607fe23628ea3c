"""A library on disk: one generalist and its named specialists, checked when opened, read when used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from asterism.core.errors import MismatchError, SettingsError, StorageError, UnknownName, UnsupportedError
from asterism.core.progress import track
from asterism.core.storage import read_json, write_json
from asterism.models import likeness
from asterism.models.adapters import Adapter, check_base, read_adapter
from asterism.models.anatomy import Anatomy, anatomy_of, skeleton
from asterism.models.changes import Change, Dense, LowRank, applied
from asterism.models.checkpoints import Checkpoint
from asterism.models.digests import folder_digest
from asterism.models.loading import build, read_config
from asterism.models.sources import HUB, located, recorded

MANIFEST = "library.json"
FORMAT_VERSION = 1
RESERVED = ("general", "generalist", "all", "auto", "constellation", "merging")
"""Names that already mean something: the general probes, the generalist itself, every layer, two folders beside the manifest."""


@dataclass(frozen=True, eq=False)
class _Full:
    """A specialist that is a whole checkpoint."""

    checkpoint: Checkpoint
    names: likeness.Names

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder


class Library:
    """One generalist and its specialists. `Library.open` an existing folder or `Library.create` a new one."""

    def __init__(
        self, root: Path, manifest: Mapping[str, Any], device: str | torch.device, dtype: torch.dtype | None, max_models: int
    ) -> None:
        self.root, self.device, self._max_models = root, torch.device(device), max_models
        self._sources: dict[str, str] = {}
        self._generalist_source: str = manifest["generalist"]
        self._folder = located(self._generalist_source, root)
        if (self._folder / "adapter_config.json").exists():
            raise UnsupportedError("The generalist is an adapter.", met=self._folder, mend="give its base model as the generalist")
        self.config: PreTrainedConfig = read_config(self._folder)
        """The generalist's config."""
        bones = skeleton(self.config)
        self.anatomy: Anatomy = anatomy_of(bones)
        """Where things lie in the generalist, and so in every specialist."""
        self._expected = likeness.Expected(bones)
        self._checkpoint = Checkpoint.open(self._folder)
        self._names = likeness.parameter_names(self._checkpoint, self._expected)
        own: Any = self.config.dtype or self._checkpoint.dtype(next(iter(self._names.stored.values())))
        self.dtype: torch.dtype = dtype or own
        """Dtype of every tensor and model given out: the generalist's own unless chosen."""
        self._tensors: dict[str, Tensor] = {}
        self._equal: set[tuple[str, str]] = set()
        self._alike: set[str] = set()
        self._specialists: dict[str, _Full | Adapter] = {}
        self._model: PreTrainedModel | None = None
        self._models: OrderedDict[str, PreTrainedModel] = OrderedDict()
        for entry in manifest["specialists"]:
            self._specialists[entry["name"]] = self._opened(entry["source"])
            self._sources[entry["name"]] = entry["source"]

    @classmethod
    def create(cls, root: str | Path, generalist: str | Path, specialists: Mapping[str, str | Path]) -> Library:
        """Check a generalist and its specialists whole (every weight is read) and write the manifest in `root`; no model is copied.

        A source is a folder, inside `root` or elsewhere, or a Hub id (`org/name`, `org/name@revision`), pinned to its commit.
        The order of `specialists` is kept: it is the order of Gram-Schmidt.
        """
        root = Path(root)
        if (root / MANIFEST).exists():
            raise StorageError("A library lies there already.", met=root / MANIFEST, mend="open it and add to it, or choose another folder")
        for name in specialists:
            check_name(name)
        sources = [{"name": name, "source": recorded(source, root)} for name, source in specialists.items()]
        manifest = {"format_version": FORMAT_VERSION, "generalist": recorded(generalist, root), "specialists": sources}
        library = cls(root, manifest, "cpu", None, 8)
        for name in (None, *specialists):
            library._read_through(name)
        write_json(root / MANIFEST, manifest)
        return library

    @classmethod
    def open(
        cls, root: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, max_models: int = 8
    ) -> Library:
        """Open a library: configs, tokenizers and tensor headers are compared with the generalist's, no weight is read.

        `device` and `dtype` are those of everything it gives out; at most `max_models` specialists' models stay in memory.
        Raises StorageError (missing or damaged files), MismatchError (models that do not belong together), UnsupportedError.
        """
        root = Path(root)
        if not (root / MANIFEST).is_file():
            raise StorageError("There is no library here.", met=root / MANIFEST, mend="make one with Library.create or `asterism train`")
        if max_models < 1:
            raise SettingsError("max_models must be at least 1.", met=max_models, mend="e.g. 8")
        return cls(root, _checked(read_json(root / MANIFEST), root / MANIFEST), device, dtype, max_models)

    @property
    def names(self) -> tuple[str, ...]:
        """The specialists, in the order of the manifest."""
        return tuple(self._specialists)

    @property
    def generalist(self) -> str:
        """What loads the generalist elsewhere, and names it in adapters: a Hub id, or an absolute path."""
        if self._generalist_source.startswith(HUB):
            return self._generalist_source.removeprefix(HUB).partition("@")[0]
        return str(self._folder.resolve())

    @cached_property
    def tokenizer(self) -> Any:
        """The generalist's tokenizer, which serves every specialist."""
        tokenizer = likeness.read_tokenizer(self._folder)
        token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if index >= self.anatomy.vocabulary:
            met = f"token {token!r} is {index}, the embedding of {self._folder} has {self.anatomy.vocabulary} rows"
            raise MismatchError("The tokenizer knows tokens that the model does not.", met=met, mend="take the model's own tokenizer")
        return tokenizer

    def add(self, name: str, source: str | Path) -> None:
        """Check a specialist whole and append it to the manifest; on any error the library stays as it was."""
        check_name(name)
        if name in self._specialists:
            raise SettingsError(
                "A specialist has that name already.", met=repr(name), mend="choose another name, or remove the old one first"
            )
        known = recorded(source, self.root)
        self._specialists[name] = self._opened(known)
        try:
            self._read_through(name)
            self._write({**self._sources, name: known})
        except BaseException:
            del self._specialists[name]
            self._forget(name)
            raise

    def remove(self, name: str) -> None:
        """Take a specialist out of the manifest; its files stay where they are."""
        self._specialist(name)
        self._write({known: source for known, source in self._sources.items() if known != name})
        del self._specialists[name]
        self._forget(name)

    def take_over(self, now: Library) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Have the specialists that `now` has, this library as it was opened later: (names that went, names that came).

        One whose source is another by now is both. MismatchError where the generalist is another one: nothing has changed then.
        """
        if now._generalist_source != self._generalist_source:
            mend = "start whatever uses the library again"
            raise MismatchError("The library has another generalist by now.", met=now._generalist_source, mend=mend)
        gone = tuple(name for name, source in self._sources.items() if now._sources.get(name) != source)
        new = tuple(name for name, source in now._sources.items() if self._sources.get(name) != source)
        self._specialists = {name: (now if name in new else self)._specialists[name] for name in now.names}
        self._sources = dict(now._sources)
        for name in gone:
            self._forget(name)
        return gone, new

    def folder(self, name: str | None = None) -> Path:
        """Where the files of the generalist or of a specialist lie."""
        return self._folder if name is None else self._specialist(name).folder

    def digest(self, name: str | None = None) -> str:
        """SHA-256 over the weights, config and tokenizer files of the generalist or of a specialist (cached by path, size and time)."""
        return folder_digest(self.folder(name), self.root)

    def digests(self) -> list[str]:
        """The digests of the generalist and of every specialist, in order: what anything measured of the whole library comes from."""
        return [self.digest(), *map(self.digest, self.names)]

    def tensor(self, parameter: str) -> Tensor:
        """The generalist's parameter in the library's dtype, on its device; read once. NaN or Inf: DataError."""
        if parameter not in self._tensors:
            if parameter not in self._names.stored:
                raise UnknownName("parameter", parameter, self._names.stored)
            self._tensors[parameter] = self._read(self._checkpoint, self._names, parameter)
        return self._tensors[parameter]

    def change(self, name: str, parameter: str) -> Change | None:
        """What a specialist holds for a parameter; None where it equals the generalist's value for value.

        Dense tensors are in the library's dtype; low-rank factors in float32 (float64 in a float64 library). Nothing is cached.
        """
        specialist = self._specialist(name)
        if parameter not in self._names.stored:
            raise UnknownName("parameter", parameter, self._names.stored)
        if isinstance(specialist, Adapter):
            return specialist.change(parameter, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
        if (name, parameter) in self._equal:
            return None
        tensor = self._read(specialist.checkpoint, specialist.names, parameter)
        if torch.equal(tensor, self.tensor(parameter)):
            self._equal.add((name, parameter))
            return None
        return Dense(tensor)

    def model(self, name: str | None = None) -> PreTrainedModel:
        """The generalist, or a specialist, as a live model in eval mode. Do not edit it: unchanged tensors are the generalist's own.

        The generalist's model stays in memory; of the specialists' the most recently used ones (`max_models`).
        """
        if name is None:
            if self._model is None:
                self._model = build(
                    self.config, {parameter: self.tensor(parameter) for parameter in self._names.stored}, self.dtype, folder=self._folder
                )
            return self._model
        specialist = self._specialist(name)
        if name not in self._models:
            tensors = {parameter: self._specialised(name, parameter) for parameter in self._names.stored}
            own = (specialist.folder / "generation_config.json").is_file()
            self._models[name] = build(self.config, tensors, self.dtype, folder=specialist.folder if own else self._folder)
            while len(self._models) > self._max_models:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return self._models[name]

    def fresh_model(self) -> PreTrainedModel:
        """An independent copy of the generalist: its parameters may be overwritten (they ask for no gradients)."""
        tensors = {parameter: self.tensor(parameter).clone() for parameter in self._names.stored}
        return build(self.config, tensors, self.dtype, folder=self._folder)

    def _specialised(self, name: str, parameter: str) -> Tensor:
        change = self.change(name, parameter)
        axis = self.anatomy.output_axes[parameter] if isinstance(change, LowRank) else 0
        return applied(self.tensor(parameter), change, axis)

    def _specialist(self, name: str) -> _Full | Adapter:
        try:
            return self._specialists[name]
        except (KeyError, TypeError):
            raise UnknownName("specialist", name, self._specialists) from None

    def _opened(self, source: str) -> _Full | Adapter:
        folder = located(source, self.root)
        likeness.check_tokenizer(self._folder, folder, self._alike)
        if (folder / "adapter_config.json").is_file():
            adapter = read_adapter(folder)
            check_base(adapter, self._generalist_source, self._folder, self.root)
            return adapter.fitted(self.anatomy, self._expected.prefix)
        likeness.check_architecture(self.config, self._folder, folder)
        checkpoint = Checkpoint.open(folder)
        return _Full(checkpoint, likeness.parameter_names(checkpoint, self._expected))

    def _read(self, checkpoint: Checkpoint, names: likeness.Names, parameter: str) -> Tensor:
        tensor = checkpoint.tensor(names.stored[parameter], dtype=self.dtype, device=self.device)
        for twin in names.twins.get(parameter, ()):
            if not torch.equal(tensor, checkpoint.tensor(twin, dtype=self.dtype, device=self.device)):
                met = f"{names.stored[parameter]} and {twin} differ in {checkpoint.folder}"
                mend = "save the model with tie_word_embeddings as its weights are"
                raise MismatchError("Weights that the config ties are not equal.", met=met, mend=mend)
        return tensor

    def _read_through(self, name: str | None) -> None:
        """Read every weight once, so that a bad one is met here and not in the middle of later work."""
        for parameter in track(list(self._names.stored), f"checking {name or 'generalist'}"):
            if name is None:
                self.tensor(parameter)
            else:
                self.change(name, parameter)

    def _forget(self, name: str) -> None:
        self._models.pop(name, None)
        self._equal = {pair for pair in self._equal if pair[0] != name}

    def _write(self, sources: dict[str, str]) -> None:
        entries = [{"name": name, "source": source} for name, source in sources.items()]
        write_json(self.root / MANIFEST, {"format_version": FORMAT_VERSION, "generalist": self._generalist_source, "specialists": entries})
        self._sources = sources


def check_name(name: str) -> None:
    """SettingsError unless `name` can name a specialist: it becomes a file name, a table row and a word on the command line."""
    usable = isinstance(name, str) and name == name.strip() and 0 < len(name) <= 100 and name.isprintable()
    if not usable or name.startswith((".", "-")) or any(mark in name for mark in "/\\:=,@"):
        mend = "use a short word such as 'medical'; no path separators, no : = , @, not starting with a dot or dash"
        raise SettingsError("A specialist cannot have that name.", met=repr(name), mend=mend)
    if name.lower() in RESERVED:
        raise SettingsError("That name means something else in asterism.", met=repr(name), mend=f"any name but {', '.join(RESERVED)}")


def _checked(manifest: Any, path: Path) -> Mapping[str, Any]:
    """The manifest, its form checked field by field."""

    def damaged(what: str) -> StorageError:
        return StorageError(
            "The library's manifest is not usable.", met=f"{path}: {what}", mend="mend the file by hand, or create the library again"
        )

    if not isinstance(manifest, dict):
        raise damaged("not an object")
    if manifest.get("format_version") != FORMAT_VERSION:
        met = f"{path}: format_version {manifest.get('format_version')!r}, not {FORMAT_VERSION}"
        raise StorageError(
            "The library was written by another version of asterism.", met=met, mend="upgrade asterism, or create the library again"
        )
    generalist, specialists = manifest.get("generalist"), manifest.get("specialists")
    if not isinstance(generalist, str) or not generalist:
        raise damaged("generalist is not a source")
    if not isinstance(specialists, list):
        raise damaged("specialists is not a list")
    seen: set[str] = set()
    for entry in specialists:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("name"), str)
            or not isinstance(entry.get("source"), str)
            or not entry["source"]
        ):
            raise damaged(f"{entry!r} is not a name with a source")
        check_name(entry["name"])
        if entry["name"] in seen:
            raise damaged(f"the name {entry['name']!r} is there twice")
        seen.add(entry["name"])
    return manifest
