"""PEFT LoRA adapters as low-rank changes of the generalist's parameters, and back. Only here is peft imported, and late."""

from __future__ import annotations

import math
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from asterism.core.errors import DataError, MismatchError, SettingsError, StorageError, UnknownName, UnsupportedError
from asterism.core.storage import digest_of, file_digest, read_json, replacing, write_json, write_tensors
from asterism.models.anatomy import Anatomy, anatomy_of
from asterism.models.changes import LowRank
from asterism.models.checkpoints import Checkpoint
from asterism.models.digests import folder_digest
from asterism.models.sources import HUB

if TYPE_CHECKING:
    from peft import PeftModel

KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
HARMLESS = frozenset(
    {
        "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias", "init_lora_weights",
        "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying", "lora_dropout",
        "megatron_core", "loftq_config", "eva_config", "velora_config", "runtime_config", "qalora_group_size",
    }
)  # fmt: skip
"""Fields that are read here or say only how the adapter was trained; any other that is set is refused by name."""
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "true", "false")
"""Initialisations that leave the generalist's weights as they are; PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA change them."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Where the two factors of one parameter's change lie in the file, and LoRA's scale."""

    up: str
    down: str
    scale: float


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA adapter whose factors are read when asked for."""

    checkpoint: Checkpoint
    config: Mapping[str, Any]
    pairs: Mapping[str, Pair]
    """Parameter -> its factors. Names are those of the adapter's file until `fitted` to an anatomy."""

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.checkpoint.folder

    @property
    def digest(self) -> str:
        """SHA-256 over its config and its weights."""
        return digest_of([[file.name, file_digest(file)] for file in (self.folder / "adapter_config.json", *self.checkpoint.files)])

    @property
    def changes(self) -> dict[str, LowRank]:
        """Every change, read now: in float32, or float64 where that is stored."""
        return {parameter: self._read(pair, None, "cpu") for parameter, pair in self.pairs.items()}

    def change(self, parameter: str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> LowRank | None:
        """The change of one parameter, scale included, in `dtype`; None when the adapter leaves it alone."""
        pair = self.pairs.get(parameter)
        return self._read(pair, dtype, device) if pair else None

    def fitted(self, anatomy: Anatomy, prefix: str) -> Adapter:
        """The same adapter with the generalist's parameter names, every factor's shape checked; MismatchError names the first misfit."""
        pairs = {}
        for name, pair in self.pairs.items():
            parameter = next((spelt for spelt in (name, f"{prefix}.{name}") if spelt in anatomy.shapes), None)
            if parameter is None and anatomy.tied and name.removesuffix(".weight").endswith(anatomy.layout.head):
                mend = "train the adapter without the head, or untie the generalist"
                raise UnsupportedError("A LoRA changes a tied head but not its embedding.", met=f"{name} in {self.folder}", mend=mend)
            if parameter is None:
                raise MismatchError("A LoRA changes a module that the generalist has not.", met=f"{name} in {self.folder}", mend=_MEND)
            if anatomy.role_of(parameter) == "embedding":
                raise UnsupportedError(
                    "LoRA on embeddings is not supported.", met=f"{name} in {self.folder}", mend="train it on the linear modules"
                )
            outputs, inputs = self.checkpoint.shape(pair.up)[0], self.checkpoint.shape(pair.down)[1]
            wanted = anatomy.shapes[parameter] if anatomy.output_axes[parameter] == 0 else anatomy.shapes[parameter][::-1]
            if (outputs, inputs) != wanted:
                met = f"{name} in {self.folder} is for [{outputs}, {inputs}] (out, in), the generalist's is {list(wanted)}"
                raise MismatchError("A LoRA is of another base: its shapes differ.", met=met, mend=_MEND)
            pairs[parameter] = pair
        return replace(self, pairs=pairs)

    def _read(self, pair: Pair, dtype: torch.dtype | None, device: str | torch.device) -> LowRank:
        stored = torch.promote_types(self.checkpoint.dtype(pair.up), self.checkpoint.dtype(pair.down))
        wide = dtype or torch.promote_types(stored, torch.float32)
        up = self.checkpoint.tensor(pair.up, dtype=wide, device=device)
        return LowRank(up * pair.scale, self.checkpoint.tensor(pair.down, dtype=wide, device=device))


def read_adapter(path: str | Path) -> Adapter:
    """Open a PEFT LoRA folder: its config is checked and the headers read; plain and rank-stabilised scales, rank and alpha patterns.

    UnsupportedError, by name, for whatever is not exactly `W + scale * B @ A`.
    """
    folder = Path(path)
    config = read_json(folder / "adapter_config.json")
    if not isinstance(config, dict):
        raise _damaged(folder, "not an object")
    _check_plain(config, folder)
    checkpoint = Checkpoint.open(folder, "adapter_model")
    sides: dict[str, dict[str, str]] = {}
    for name in checkpoint.names:
        found = KEY.fullmatch(name)
        if not found:
            mend = "use a plain LoRA adapter (lora_A and lora_B of linear modules only)"
            raise UnsupportedError("An adapter holds a tensor that is not plain LoRA.", met=f"{name} in {folder}", mend=mend)
        checkpoint.dtype(name)
        sides.setdefault(found["module"], {})[found["side"]] = name
    if not sides:
        raise StorageError("An adapter is empty.", met=folder, mend="train it, or copy it again")
    return Adapter(checkpoint, config, {f"{module}.weight": _pair(module, side, checkpoint, config) for module, side in sides.items()})


def check_base(adapter: Adapter, generalist: str, generalist_at: Path, root: Path) -> None:
    """MismatchError unless the base that an adapter names is the generalist: its source, a folder of equal content, or the same last name.

    An adapter that names no base passes (its shapes are checked elsewhere).
    """
    base = str(adapter.config.get("base_model_name_or_path") or "")
    source = generalist.removeprefix(HUB).partition("@")[0] if generalist.startswith(HUB) else generalist
    if not base or base in (source, str(generalist_at)):
        return
    folder = Path(base).expanduser()
    if (folder / "config.json").is_file():
        if folder.samefile(generalist_at) or folder_digest(folder, root) == folder_digest(generalist_at, root):
            return
    elif Path(base).name == Path(source).name:
        return
    mend = f"if that is the same model, set base_model_name_or_path to {source!r} in its adapter_config.json; else make it the generalist"
    raise MismatchError("A LoRA is of another base.", met=f"{base} in {adapter.folder}; the generalist is {source}", mend=mend)


def write_adapter(path: str | Path, changes: Mapping[str, LowRank], base: str, anatomy: Anatomy, *, revision: str | None = None) -> Path:
    """Write changes as a PEFT LoRA folder that `PeftModel.from_pretrained` loads onto `base`, whole or not at all.

    Every parameter keeps its own rank (rank_pattern), with alpha = rank, so PEFT's scale is 1 and `up` is written as it is. revision: of
    a base on the Hub.
    Raises UnsupportedError for what PEFT cannot hold so (embeddings, vectors, a tied head), StorageError when `path` is taken.
    """
    path = _free(path)
    if not changes:
        raise DataError("There is no change to write.", met="an empty adapter", mend="use the generalist itself")
    for parameter, change in changes.items():
        _check_writable(parameter, change, anatomy)
    ranks = {anatomy.module_of(parameter): change.rank for parameter, change in changes.items()}
    usual = max(set(ranks.values()), key=lambda rank: (list(ranks.values()).count(rank), rank))
    odd = {module: rank for module, rank in ranks.items() if rank != usual}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision,
        "inference_mode": True,
        "r": usual, "lora_alpha": usual, "rank_pattern": odd, "alpha_pattern": odd, "use_rslora": False,
        "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": any(anatomy.output_axes[parameter] == 1 for parameter in changes),
        "target_modules": _targets(set(ranks), anatomy), "init_lora_weights": True,
    }  # fmt: skip
    tensors = {}
    for parameter, change in changes.items():
        stem = f"base_model.model.{anatomy.module_of(parameter)}"
        tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = change.down.clone(), change.up.clone()
    with replacing(path) as temporary:
        write_tensors(temporary / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(temporary / "adapter_config.json", config)
    return path


def rewritten(adapter: Adapter, path: str | Path, ups: Mapping[str, Tensor], downs: Mapping[str, Tensor] | None = None) -> Path:
    """Write a copy of an adapter with other B's at `path`, whole or not at all: {parameter, as the adapter names it: B [out, r]}.

    downs: other A's [r, in], too. Factors are the file's own, LoRA's scale not taken in, and get its dtype; every other tensor and the
    config are the same bytes. Raises StorageError when `path` is taken, UnknownName for a parameter that the adapter does not change,
    MismatchError for a factor of another shape, DataError for one that is not finite.
    """
    path = _free(path)
    tensors = {name: adapter.checkpoint.mapped(name) for name in adapter.checkpoint.names}
    for side, factors in (("up", ups), ("down", downs or {})):
        for parameter, factor in factors.items():
            if parameter not in adapter.pairs:
                raise UnknownName(f"parameter changed by {adapter.folder}", parameter, adapter.pairs)
            name = getattr(adapter.pairs[parameter], side)
            if factor.shape != tensors[name].shape:
                met = f"{parameter}: {list(factor.shape)}, not {list(tensors[name].shape)}"
                raise MismatchError("A factor has another shape than the adapter's.", met=met, mend="B is [out, r], A is [r, in]")
            tensors[name] = factor.detach().to(device="cpu", dtype=tensors[name].dtype)
            if not torch.isfinite(tensors[name]).all():
                mend = "train with a lower learning rate"
                raise DataError("A factor is not finite.", met=f"{parameter} in {tensors[name].dtype}", mend=mend)
    with replacing(path) as temporary:
        write_tensors(temporary / "adapter_model.safetensors", tensors, {"format": "pt"})
        shutil.copyfile(adapter.folder / "adapter_config.json", temporary / "adapter_config.json")
    return path


def with_lora(model: PreTrainedModel, *, rank: int, alpha: float, base: str | None = None, up_only: bool = False) -> PeftModel:
    """`model` with a new, trainable LoRA on every linear module of its blocks; `base` names the generalist in the saved config.

    up_only: B alone trains. The model itself is changed (its linear modules are wrapped, its own weights frozen), as PEFT does.
    """
    from peft import LoraConfig, get_peft_model

    anatomy = anatomy_of(model)
    inside = [name for name, shape in anatomy.shapes.items() if anatomy.block_of(name) is not None and len(shape) == 2]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        target_modules=_targets({anatomy.module_of(name) for name in inside}, anatomy),
        fan_in_fan_out=any(anatomy.output_axes[name] == 1 for name in inside),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a deprecated property
        adapted = cast("PeftModel", get_peft_model(model, config))
    return _trainable(adapted, base or model.name_or_path or None, up_only)


def with_adapter(model: PreTrainedModel, folder: str | Path, *, up_only: bool = False, base: str | None = None) -> PeftModel:
    """`model` with a saved LoRA that goes on training, both its factors or (up_only) B alone; saved again it names the base it named.

    base: another name for it. The model itself is changed (its linear modules are wrapped, its own weights frozen), as PEFT does; the
    adapter's files are not. Raises as `read_adapter` and `Adapter.fitted`.
    """
    from peft import PeftModel

    folder = Path(folder)
    adapter = read_adapter(folder).fitted(anatomy_of(model), model.base_model_prefix)
    for pair in adapter.pairs.values():
        for name in (pair.up, pair.down):
            adapter.checkpoint.tensor(name)  # told where it is not finite
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a deprecated property
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    return _trainable(adapted, base or adapter.config.get("base_model_name_or_path"), up_only)


def _trainable(adapted: PeftModel, base: str | None, up_only: bool) -> PeftModel:
    """The adapted model, its base named, its A's frozen where B alone trains."""
    adapted.peft_config["default"].base_model_name_or_path = base
    if up_only:
        for name, parameter in adapted.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
    # by default peft looks the base up on the Hub when saving, to learn whether the vocabulary grew; here it did not
    cast("Any", adapted).save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted


def with_arrow(
    model: PreTrainedModel, folders: Mapping[str, Path], *, top_k: int | None = None, temperature: float = 1.0, seed: int = 0
) -> PeftModel:
    """`model` with LoRA adapters that PEFT's Arrow routes between, token by token, in every linear module they change.

    A token's weight on an adapter is softmax of |v x| / temperature over its `top_k` best (all by default), v the top right singular
    vector of the adapter's change, which PEFT nears in fifteen steps of power iteration from `seed`. Adapters go by task_0, task_1, ...
    in the order of `folders`. The model itself is changed, as PEFT does. Source: Ostapenko et al. 2024 (arXiv:2405.11157).
    Raises SettingsError for a `top_k` beyond the adapters or a temperature that is not positive, MismatchError unless all change the
    same modules at equal ranks.
    """
    from peft import ArrowConfig, LoraConfig, PeftModel

    top_k = len(folders) if top_k is None else top_k
    if not 1 <= top_k <= len(folders):
        raise SettingsError("Arrow cannot choose so many adapters.", met=f"top_k {top_k} of {len(folders)}", mend="1 to all of them")
    if not temperature > 0:
        raise SettingsError("A temperature is positive.", met=temperature, mend="e.g. 1.0; lower makes a token choose more sharply")
    anatomy = anatomy_of(model)
    ranks = {name: _ranks(folder, anatomy, model.base_model_prefix) for name, folder in folders.items()}
    first, same = next(iter(ranks.items()))
    for name, other in ranks.items():
        for module in sorted(same.keys() | other.keys()):
            if same.get(module) != other.get(module):
                met = f"{module}: rank {other.get(module, 0)} in {name}, {same.get(module, 0)} in {first}"
                mend = "train them with one rank on the same modules, or route between their MLPs instead"
                raise MismatchError("Arrow needs adapters of the same modules and ranks.", met=met, mend=mend)
    tasks = [f"task_{index}" for index in range(len(folders))]
    arrow = ArrowConfig(top_k=top_k, router_temperature=temperature, rng_seed=seed)
    arrow.task_adapter_names, arrow.gks_adapter_names = tasks, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a deprecated property
        adapted = PeftModel.from_pretrained(model, folders[first], adapter_name=tasks[0])
        for task, folder in zip(tasks[1:], list(folders.values())[1:], strict=True):
            adapted.load_adapter(str(folder), adapter_name=task)
        router = LoraConfig(arrow_config=arrow, target_modules=_targets(set(same), anatomy), r=max(same.values()))
        adapted.add_adapter("arrow_router", router)
        adapted.set_adapter("arrow_router")
    return adapted.eval()


def _ranks(folder: Path, anatomy: Anatomy, prefix: str) -> dict[str, int]:
    """Module -> rank of an adapter that fits the anatomy."""
    adapter = read_adapter(folder).fitted(anatomy, prefix)
    return {anatomy.module_of(name): adapter.checkpoint.shape(pair.up)[1] for name, pair in adapter.pairs.items()}


def _free(path: str | Path) -> Path:
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StorageError("The output place holds something else.", met=path, mend="choose another place, or remove it")
    return path


_MEND = "use a LoRA trained from this generalist"


def _targets(modules: set[str], anatomy: Anatomy) -> list[str]:
    """Module names for PEFT: short ones where they mean exactly these modules, else whole paths."""
    short = {module.rpartition(".")[2] for module in modules}
    owners = {anatomy.module_of(name) for name in anatomy.shapes} | {anatomy.layout.head}
    meant = {owner for owner in owners if owner.rpartition(".")[2] in short}
    return sorted(short if meant == modules else modules)


def _check_writable(parameter: str, change: LowRank, anatomy: Anatomy) -> None:
    if parameter not in anatomy.shapes:
        raise UnknownName("parameter", parameter, anatomy.shapes)
    if not anatomy.is_linear(parameter):
        mend = "save a full checkpoint, or leave this parameter out"
        raise UnsupportedError("A LoRA adapter holds linear weights only.", met=f"{parameter} ({anatomy.role_of(parameter)})", mend=mend)
    shape = change.shape(anatomy.output_axes[parameter])
    if shape != anatomy.shapes[parameter] or change.rank < 1:
        met = f"{parameter}: {list(shape)} of rank {change.rank}, not {list(anatomy.shapes[parameter])}"
        raise MismatchError("A change does not fit its parameter.", met=met, mend="up is [out, r] and down [r, in], r >= 1")


def _check_plain(config: Mapping[str, Any], folder: Path) -> None:
    def refuse(what: str) -> UnsupportedError:
        mend = "use a plain LoRA (rsLoRA, rank_pattern and alpha_pattern are fine), or merge the adapter and give the full checkpoint"
        return UnsupportedError(f"This adapter is not exactly representable: {what}.", met=folder, mend=mend)

    if config.get("peft_type") != "LORA":
        raise refuse(f"its peft_type is {config.get('peft_type')}, not LORA")
    if config.get("use_dora"):
        raise refuse("DoRA (use_dora)")
    start = config.get("init_lora_weights", True)
    if (start.lower() if isinstance(start, str) else start) not in PLAIN_STARTS:
        raise refuse(f"init_lora_weights={start} changes the base model")
    if config.get("bias", "none") != "none":
        raise refuse(f"bias={config['bias']}")
    for field, value in config.items():
        if value and field not in HARMLESS:
            raise refuse(f"{field} is set")
    if not isinstance(config.get("r"), int) or not isinstance(config.get("lora_alpha"), int | float):
        raise _damaged(folder, "r or lora_alpha")
    for field in ("rank_pattern", "alpha_pattern"):
        try:
            for pattern, value in (config.get(field) or {}).items():
                re.compile(pattern)
                float(value)
        except (AttributeError, TypeError, ValueError, re.error):
            raise _damaged(folder, field) from None


def _damaged(folder: Path, what: str) -> StorageError:
    return StorageError("An adapter's config is damaged.", met=f"{folder / 'adapter_config.json'}: {what}", mend="copy the adapter again")


def _pair(module: str, side: Mapping[str, str], checkpoint: Checkpoint, config: Mapping[str, Any]) -> Pair:
    if side.keys() != {"A", "B"}:
        raise StorageError(
            "An adapter lacks one of its two factors.", met=f"{module} in {checkpoint.folder}", mend="copy the adapter again"
        )
    up, down = checkpoint.shape(side["B"]), checkpoint.shape(side["A"])
    rank = _patterned(config.get("rank_pattern"), module, config["r"])
    if rank < 1 or len(up) != 2 or len(down) != 2 or up[1] != rank or down[0] != rank:
        met = f"{module} in {checkpoint.folder}: B {list(up)}, A {list(down)}, rank {rank}"
        raise MismatchError(
            "An adapter's factors do not have the rank its config gives.", met=met, mend="copy the adapter and its config together"
        )
    alpha = _patterned(config.get("alpha_pattern"), module, config["lora_alpha"])
    return Pair(side["B"], side["A"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _patterned(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole name, or its end after a dot."""
    return next((value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module)), default)
