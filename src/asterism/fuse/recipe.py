"""A fusion's recipe: target, sources, replay data and settings in one YAML file, read strictly; each refusal names the place.

    target: {model: llama, adapter: llama-ner}
    sources:
      - {name: qwen, config: qwen/config.json, adapter: qwen-re}
    data: [replay/ner.jsonl, {path: replay/re.jsonl, limit: 300}]

Paths are relative to the recipe's folder; what lies neither there nor reads like a path is a Hub id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asterism.core.errors import SettingsError
from asterism.core.reading import TOP, each, keys, read_yaml, text, told, under
from asterism.core.settings import Settings
from asterism.fuse.settings import FusionSettings
from asterism.models.settings import PRESETS, TrainingSettings

HELD_OUT = 0.1
"""Share of the replay examples that is held out unless told otherwise."""
_STAGE = ("name", "sources", "data", "settings", "training", "held_out")


@dataclass(frozen=True)
class Part:
    """A source: its backbone's config (a file, a model's folder or a Hub id) and its adapter."""

    name: str
    config: str
    adapter: str


@dataclass(frozen=True)
class Data:
    """Rows of replay examples: a file, a folder or a Hub id, and how many of them."""

    path: str
    split: str = "train"
    limit: int | None = None


@dataclass(frozen=True)
class Stage:
    """One fusion: sources, replay data and how."""

    name: str
    sources: tuple[Part, ...]
    data: tuple[Data, ...]
    settings: FusionSettings
    training: TrainingSettings
    held_out: float | Data
    """Share of the replay examples, or rows of their own."""


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. Use `Recipe.read` or `Recipe.of`, which check it."""

    model: str
    adapter: str
    stages: tuple[Stage, ...]
    """One, or several in sequence: what one writes is the next one's target."""
    chat: bool
    """Whether the tokenizer's chat template is used, where it has one."""

    @classmethod
    def read(cls, path: str | Path, *, seed: int | None = None) -> Recipe:
        """Read a YAML (or JSON) file; `seed` takes the place of all seeds in it."""
        return cls.of(read_yaml(path), Path(path).parent, seed=seed)

    @classmethod
    def of(cls, content: Any, root: str | Path = ".", *, seed: int | None = None) -> Recipe:
        """Check a mapping whose paths are relative to `root`.

        Raises UnknownName for an unknown key anywhere, SettingsError for a value that cannot be meant.
        """
        root = Path(root)
        read = keys(content, TOP, ("target", "stages", "chat", *_STAGE[1:]), ("target",))
        target = keys(read["target"], "target", ("model", "adapter"), ("model", "adapter"))
        shared = _Shared.of(read, TOP, root, _Shared(seed=seed))
        if "stages" not in read:
            stages = (_stage(read, TOP, "fusion", root, shared),)
        elif given := [key for key in ("sources", "data") if key in read]:
            mend = "each stage has its own; settings, training and held_out outside the stages hold for all of them"
            raise SettingsError("A recipe of stages has sources and data in each stage.", met=", ".join(given), mend=mend)
        else:
            stages = tuple(each(read["stages"], "stages", lambda value, place: _staged(value, place, root, shared)))
        if len({stage.name for stage in stages}) < len(stages):
            raise SettingsError("Two stages have one name.", met=", ".join(stage.name for stage in stages), mend="give each its own name")
        if type(read.get("chat", True)) is not bool:
            raise SettingsError("chat is true or false.", met=told(read["chat"]), mend="false leaves the tokenizer's chat template out")
        model, adapter = (_place(target[key], f"target.{key}", root) for key in ("model", "adapter"))
        return cls(model, adapter, stages, read.get("chat", True))


@dataclass(frozen=True)
class _Shared:
    """What may stand outside the stages, and holds in each unless the stage says otherwise."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    held_out: float | Data = HELD_OUT
    seed: int | None = None

    @classmethod
    def of(cls, read: Mapping[str, Any], place: str, root: Path, before: _Shared) -> _Shared:
        settings = {**before.settings, **_mapping(read, "settings", place, FusionSettings)}
        training = {**before.training, **_mapping(read, "training", place, TrainingSettings)}
        held_out = _held_out(read["held_out"], under(place, "held_out"), root) if "held_out" in read else before.held_out
        return cls(settings, training, held_out, before.seed)


def _mapping(read: Mapping[str, Any], name: str, place: str, cls: type[Settings]) -> dict[str, Any]:
    return keys(read[name], under(place, name), tuple(cls.model_fields), empty=True) if name in read else {}


def _staged(value: Any, place: str, root: Path, shared: _Shared) -> Stage:
    read = keys(value, place, _STAGE, ("sources", "data"))
    number = int(place.rpartition("[")[2].rstrip("]")) + 1
    name = text(read.get("name", f"stage-{number}"), under(place, "name"))
    if Path(name).name != name or name.startswith("."):
        raise SettingsError(f"{under(place, 'name')} names no folder.", met=repr(name), mend="letters, digits, - and _")
    return _stage(read, place, name, root, _Shared.of(read, place, root, shared))


def _stage(read: Mapping[str, Any], place: str, name: str, root: Path, shared: _Shared) -> Stage:
    keys(read, place, None, ("sources", "data"))
    at = under(place, "sources")
    sources = tuple(each(read["sources"], at, lambda value, where: _part(value, where, root)))
    names = [source.name for source in sources]
    if twice := next((each_ for each_ in names if names.count(each_) > 1), None):
        raise SettingsError("Two sources have one name.", met=f"{twice} in {at}", mend="give each its own `name`")
    given = read["data"] if isinstance(read["data"], list) else [read["data"]]
    data = tuple(each(given, under(place, "data"), lambda value, where: _data(value, where, root)))
    seed = {} if shared.seed is None else {"seed": shared.seed}
    settings = FusionSettings(**{**shared.settings, **seed})
    usual = {key: value for key, value in PRESETS["fusion"].items() if key != "epochs" or "steps" not in shared.training}
    training = TrainingSettings(**{**usual, **shared.training, **seed})
    return Stage(name, sources, data, settings, training, shared.held_out)


def _part(value: Any, place: str, root: Path) -> Part:
    read = keys(value, place, ("name", "model", "config", "adapter"), ("adapter",))
    given = [key for key in ("model", "config") if key in read]
    if len(given) != 1:
        met, mend = " and ".join(given) or "neither", "name the backbone by its model's folder or Hub id, or by its config.json alone"
        raise SettingsError(f"{place} holds one of model and config.", met=met, mend=mend)
    adapter = _place(read["adapter"], under(place, "adapter"), root)
    name = text(read["name"], under(place, "name")) if "name" in read else Path(adapter).name
    return Part(name, _place(read[given[0]], under(place, given[0]), root), adapter)


def _data(value: Any, place: str, root: Path) -> Data:
    if not isinstance(value, Mapping):
        return Data(_place(value, place, root))
    read = keys(value, place, ("path", "split", "limit"), ("path",))
    limit = read.get("limit")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise SettingsError(f"{under(place, 'limit')} is a whole number, at least 1.", met=told(limit), mend="e.g. 300")
    split = text(read.get("split", "train"), under(place, "split"))
    return Data(_place(read["path"], under(place, "path"), root), split, limit)


def _held_out(value: Any, place: str, root: Path) -> float | Data:
    if isinstance(value, str | Mapping):
        return _data(value, place, root)
    if type(value) in (int, float) and 0 <= value < 1:
        return float(value)
    raise SettingsError(f"{place} is a share of the examples, or a file of them.", met=told(value), mend="e.g. 0.1; 0 for none")


def _place(value: Any, place: str, root: Path) -> str:
    """A path from the recipe's folder; a name that nothing there bears, and that does not read like a path, is a Hub id."""
    given = Path(text(value, place)).expanduser()
    here = root / given
    is_path = (
        given.is_absolute() or value.startswith((".", "~")) or value.count("/") > 1 or bool(given.suffix in (".json", ".jsonl", ".gz"))
    )
    return str(here) if here.exists() or (is_path and "://" not in value) else value
