"""What lies beside a merge's weights: config, tokenizer, generation config, chat template. Plain files; transformers is not needed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from asterism.core.errors import MismatchError, SettingsError, StorageError, UnknownName
from asterism.core.storage import read_json, write_json
from asterism.merge.chat import TEMPLATES, check_template
from asterism.merge.code import code_of
from asterism.merge.parts import is_head, is_vocabulary, parts_of
from asterism.merge.plan import Piece
from asterism.merge.recipe import Recipe
from asterism.merge.sources import LAYER_FIELDS, Opened

TOKENIZER = ("tokenizer*", "vocab.*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "spiece.model", "chat_template*")
"""Files that make up a tokenizer."""


def config_of(recipe: Recipe, donor: Opened, pieces: Iterable[Piece], rows: int | None) -> dict[str, Any]:
    """The donor's config with the output's dtype, number of layers and vocabulary (`rows`, where a tokenizer rule maps it)."""
    config = {name: value for name, value in donor.config.items() if name != "_name_or_path"}
    sizes: Counter[str] = Counter()
    for piece in pieces:
        sizes[str(piece.dtype).removeprefix("torch.")] += piece.dtype.itemsize
    for field in [name for name in ("dtype", "torch_dtype") if name in config] or ["torch_dtype"]:
        config[field] = sizes.most_common(1)[0][0]
    if not recipe.whole:
        config |= _restacked(config, [number for part in recipe.slices for number in range(*(part.sources[0].layers or (0, 0)))])
    return config | ({} if rows is None else {"vocab_size": rows})


def check_donor(donor: Opened, pieces: Iterable[Piece], rows: int | None) -> None:
    """MismatchError unless what slices make is of the names and shapes of the donor, whose config it takes; no number of layers matters.

    rows: of the output's vocabulary where a tokenizer rule maps it, as in `config_of`.
    """
    shapes = {piece.name: piece.shape for piece in pieces}
    made, theirs = parts_of(shapes, "the merge"), parts_of(donor.header, donor.reference)
    loose = {key: name for key, name in theirs.loose.items() if not (donor.tied and is_head(key))}
    for table, others in ((made.loose, (loose,)), *((layer, theirs.layers) for layer in made.layers)):
        told = [_unlike(table, shapes, other, donor, rows) for other in others]
        if all(told):
            mend = "name as base_model a model of the sources' architecture and size"
            raise MismatchError("What the slices make does not fit the config that it takes.", met=told[0], mend=mend)


def chat_template(recipe: Recipe, models: Sequence[Opened]) -> str | None:
    """The chat template that a recipe asks for: a Jinja text, a name that mergekit knows, or `auto`, what most of the models have."""
    asked = recipe.chat_template
    if asked is None:
        return None
    if "{" in asked:
        check_template(asked)
        return asked
    if asked == "auto":
        by_name = sorted(models, key=lambda model: str(model.reference))  # so that the recipe's order picks none of equals
        found = [template for model in by_name if (template := _template_of(model.folder))]
        return Counter(found).most_common(1)[0][0] if found else None
    if asked not in TEMPLATES:
        raise UnknownName("chat template", asked, (*TEMPLATES, "auto"))
    return TEMPLATES[asked]


def write_config(folder: Path, config: Mapping[str, Any], donor: Opened) -> Mapping[str, Any]:
    """config.json with the code that it names, and the donor's generation_config.json; what of its auto_map is left out."""
    missing = _write_with_code(folder / "config.json", config, donor.folder)
    if (donor.folder / "generation_config.json").is_file():
        shutil.copyfile(donor.folder / "generation_config.json", folder / "generation_config.json")
    return missing


def tokenizer_at(donor: Opened, models: Iterable[Opened]) -> Path:
    """Where the tokenizer that all models share lies: with the donor, else with the first by name that has one."""
    by_name = sorted(models, key=lambda model: str(model.reference))
    return next((model.folder for model in (donor, *by_name) if _tokenizer_files(model.folder)), donor.folder)


def copy_tokenizer(folder: Path, origin: Path) -> Mapping[str, Any]:
    """The tokenizer of another folder as it is, with its code; the entries of its auto_map whose code is missing."""
    for path in _tokenizer_files(origin):
        shutil.copyfile(path, folder / path.name)
    config = folder / "tokenizer_config.json"
    content = read_json(config) if config.is_file() else {}
    return _write_with_code(config, content, origin) if "auto_map" in content else {}


def set_template(folder: Path, template: str) -> None:
    """Make `template` the chat template of the tokenizer in a folder. SettingsError where there is no tokenizer."""
    config = tokenizer_config(folder)
    content = read_json(config)
    content.pop("chat_template", None)
    write_json(config, content)
    for old in folder.glob("chat_template*"):
        old.unlink()
    (folder / "chat_template.jinja").write_text(template, "utf-8")


def tokenizer_config(folder: Path) -> Path:
    """The file that a chat template is told beside. SettingsError where there is none."""
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        mend = "save a tokenizer there with tokenizer.save_pretrained, or drop chat_template"
        raise SettingsError("A chat template needs a tokenizer.", met=f"{folder} holds no {config.name}", mend=mend)
    return config


def _write_with_code(path: Path, content: Mapping[str, Any], origin: Path) -> Mapping[str, Any]:
    """A config whose auto_map names what is there, the modules beside it; the entries that are left out."""
    code = code_of(content.get("auto_map"), origin)
    plain = {name: value for name, value in content.items() if name != "auto_map"}
    write_json(path, plain | ({"auto_map": code.auto_map} if code.auto_map else {}))
    for file in code.files:
        shutil.copyfile(file, path.parent / file.name)
    return code.missing


def _unlike(
    made: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], table: Mapping[str, str], donor: Opened, rows: int | None
) -> str:
    """The first difference between tensors of the merge and the donor's, key -> name each; nothing where they are alike."""
    for key in [*made, *(key for key in table if key not in made)]:
        if key not in table or key not in made:
            there, lacking = ("the merge", donor.reference) if key in made else (donor.reference, "the merge")
            return f"{made.get(key) or table[key]} is in {there}, not in {lacking}"
        mine, theirs = shapes[made[key]], tuple(donor.header[table[key]][0])
        if mine != theirs and not (rows is not None and is_vocabulary(key) and mine[1:] == theirs[1:]):
            return f"{made[key]} is {list(mine)}, {list(theirs)} in {donor.reference}"
    return ""


def _restacked(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Fields of a config that speak of its layers, for these layers of the donor."""
    field = next((name for name in LAYER_FIELDS if name in config), None)
    if field is None:
        raise StorageError("A config does not say how many layers there are.", met=", ".join(LAYER_FIELDS), mend="merge whole models")
    count = config[field]
    changed: dict[str, Any] = {field: len(layers)}
    for name, value in config.items():
        if isinstance(value, list) and len(value) == count and "layer" in name:
            changed[name] = [value[number] for number in layers if number < count]
    return changed


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER for path in folder.glob(pattern) if path.is_file()})


def _template_of(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8").strip()
    kept = read_json(folder / "tokenizer_config.json").get("chat_template") if (folder / "tokenizer_config.json").is_file() else None
    if isinstance(kept, list):
        kept = next((each.get("template") for each in kept if each.get("name") == "default"), None)
    return kept.strip() if isinstance(kept, str) else None
