"""The models of a recipe, opened: folders or Hub snapshots, headers read, weights mapped when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asterism.core.errors import MismatchError, StorageError, UnsupportedError
from asterism.core.storage import read_json
from asterism.merge.parts import Header, is_head, is_vocabulary, parts_of
from asterism.merge.references import Origin, Reference
from asterism.models.checkpoints import Checkpoint
from asterism.models.sources import HUB, folder_at

if TYPE_CHECKING:
    from asterism.models.adapters import Adapter
    from asterism.models.anatomy import Anatomy

LAYER_FIELDS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""How configs call their number of layers."""
MEANING = {
    "model_type": None, "hidden_act": None, "activation_function": None, "num_attention_heads": None, "n_head": None, "head_dim": None,
    "num_key_value_heads": None, "partial_rotary_factor": None, "rotary_pct": None, "use_parallel_residual": None,
    "parallel_attn": None, "new_decoder_architecture": None, "scale_attn_by_inverse_layer_idx": False, "alibi": False,
}  # fmt: skip
"""Fields of a config that say what weights of one shape mean -> what an absent one stands for; models that differ do not merge."""


@dataclass(frozen=True, eq=False)
class Opened:
    """One model of a recipe."""

    reference: Reference
    folder: Path
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    lora: Path | None = None

    @property
    def header(self) -> Header:
        """Tensor name -> shape and stored dtype."""
        return self.checkpoint.headers

    @property
    def layers(self) -> int | None:
        """Number of layers by the config."""
        return next((self.config[field] for field in LAYER_FIELDS if isinstance(self.config.get(field), int)), None)

    def tensor(self, name: str) -> Tensor:
        """One tensor by its name in the checkpoint, mapped, not copied and not looked at; with an adapter on it, float32."""
        stored = self.checkpoint.mapped(name)
        if self.lora is None:
            return stored
        adapter, anatomy, parameter = self._adapted
        change = adapter.change(parameter[name], dtype=torch.float32, device="cpu") if name in parameter else None
        if change is None:
            return stored
        return stored.float() + change.delta(anatomy.output_axes[parameter[name]])

    @cached_property
    def tied(self) -> bool:
        """Whether the head is the embedding. MismatchError where the config ties them and both are stored and differ."""
        loose = parts_of(self.header, self.reference).loose
        heads = [name for key, name in loose.items() if is_head(key) and name.endswith("weight")]
        embeddings = [name for key, name in loose.items() if is_vocabulary(key) and not is_head(key)]
        if not heads or not embeddings:
            return not heads
        declared = self.config.get("tie_word_embeddings")
        if declared is False:
            return False
        head, embedding = self.checkpoint.mapped(heads[0]), self.checkpoint.mapped(embeddings[0])
        if head.shape == embedding.shape and torch.equal(head, embedding):
            return declared or self._ties_by_default()
        if declared:
            met = f"{heads[0]} and {embeddings[0]} differ in {self.folder}"
            mend = "save the model with tie_word_embeddings as its weights are"
            raise MismatchError("Weights that the config ties are not equal.", met=met, mend=mend)
        return False

    @cached_property
    def _adapted(self) -> tuple[Adapter, Anatomy, dict[str, str]]:
        """The adapter fitted to the model, the model's anatomy, and tensor name -> parameter."""
        from asterism.models.adapters import read_adapter
        from asterism.models.anatomy import anatomy_of, skeleton
        from asterism.models.likeness import Expected, parameter_names
        from asterism.models.loading import read_config

        assert self.lora is not None
        bones = skeleton(read_config(self.folder))
        anatomy, expected = anatomy_of(bones), Expected(bones)
        names = parameter_names(self.checkpoint, expected)
        adapter = read_adapter(self.lora)
        _check_base(adapter, self)
        return adapter.fitted(anatomy, expected.prefix), anatomy, {name: own for own, name in names.stored.items()}

    def _ties_by_default(self) -> bool:
        from asterism.models.loading import read_config

        return bool(read_config(self.folder).tie_word_embeddings)


def open_model(reference: Reference) -> Opened:
    """Find a model (a folder here, else on the Hub) and read its headers and config.

    Raises StorageError for what is missing or damaged, UnsupportedError for pickled or quantised weights and for adapters that are no
    plain LoRA, MismatchError for an adapter of another base.
    """
    folder = folder_of(reference.model)
    if not (folder / "config.json").is_file():
        what = "an adapter: name it as MODEL+ADAPTER" if (folder / "adapter_config.json").is_file() else "no config.json"
        raise StorageError("A model's config.json is missing.", met=f"{folder}: {what}", mend="give the folder of a whole model")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise StorageError("A model's config is damaged.", met=folder / "config.json", mend="copy the model again")
    if config.get("quantization_config"):
        raise UnsupportedError("Quantised models cannot be merged exactly.", met=folder, mend="use the unquantised checkpoint")
    lora = None if reference.lora is None else _adapter_at(folder_of(reference.lora))
    opened = Opened(reference, folder, config, Checkpoint.open(folder), lora)
    if not opened.header:
        raise StorageError("A checkpoint has no weights.", met=f"{folder}: no tensor in its files", mend="save or download it again")
    if lora is not None:
        _ = opened._adapted  # whatever is wrong with it is told now
    return opened


def check_alike(models: Sequence[Opened]) -> None:
    """MismatchError naming the first field of the configs that gives weights another meaning in one model than in the first."""
    first = models[0]
    for other in models[1:]:
        for field, absent in MEANING.items():
            mine, theirs = first.config.get(field, absent), other.config.get(field, absent)
            if mine != theirs and (field == "model_type" or None not in (mine, theirs)):
                met = f"{field} is {theirs!r} in {other.folder}, {mine!r} in {first.folder}"
                raise MismatchError("The models' weights mean different things.", met=met, mend="merge models of one architecture")


def check_apart(out: str | Path, models: Iterable[Opened]) -> None:
    """StorageError where what is written to `out` would take the place of a model that goes into it."""
    place = Path(out).resolve()
    for model in models:
        for folder in filter(None, (model.folder, model.lora)):
            if place in (folder.resolve(), *folder.resolve().parents):
                wrong = "The output would take the place of a model that it is made of."
                raise StorageError(wrong, met=f"{out}, where {folder} lies", mend="choose another folder")


def folder_of(origin: Origin) -> Path:
    """Where a model's files lie: a folder here, else a snapshot from the Hub."""
    if origin.revision is None and Path(origin.path).expanduser().is_dir():
        return Path(origin.path).expanduser()
    return folder_at(str(origin))


def hub_id(folder: Path) -> str | None:
    """The id of a model that lies in the Hub's cache, however the recipe names it."""
    cached = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/") if cached else None


def _check_base(adapter: Adapter, model: Opened) -> None:
    """MismatchError, in a recipe's words, where an adapter names another base than the model that it is put on."""
    from asterism.models.adapters import check_base

    origin, known = model.reference.model, hub_id(model.folder)
    no_folder = adapter.folder / "adapter_config.json"  # so that no cache of digests is left behind
    try:
        check_base(adapter, HUB + known if known else origin.path, model.folder, no_folder)
    except MismatchError as error:
        base = adapter.config["base_model_name_or_path"]
        mend = f"write {base}+{model.reference.lora}; if both are one model, put {origin.path!r} into the adapter_config.json"
        raise MismatchError(error.wrong, met=f"{adapter.folder} is of {base}, not of {origin}", mend=mend) from None


def _adapter_at(folder: Path) -> Path:
    if (folder / "adapter_config.json").is_file():
        return folder
    what = "a whole model: name it by itself" if (folder / "config.json").is_file() else "no adapter_config.json"
    raise StorageError("An adapter's adapter_config.json is missing.", met=f"{folder}: {what}", mend="MODEL+ADAPTER, a folder of PEFT's")
