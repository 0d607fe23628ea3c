"""safetensors checkpoints read lazily: opening reads headers, a tensor is read (and its values checked) when asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asterism.core.errors import DataError, StorageError, UnknownName, UnsupportedError
from asterism.core.storage import read_json

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""safetensors dtypes that hold plain weights; the rest are indices or quantised codes."""
OLD_BUFFERS = re.compile(r"(.*\.)?(attn|attention)\.(bias|masked_bias)|(.*\.)?rotary_emb\.inv_freq")
"""Buffers that old transformers wrote into checkpoints; masks and frequencies, rebuilt from the config."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """The tensors of one folder, a single file or shards under an index. Use `Checkpoint.open`."""

    def __init__(self, folder: Path, files: Mapping[str, Path], headers: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        self.folder, self._files, self._headers = folder, files, headers
        self._open: dict[Path, Any] = {}

    @classmethod
    def open(cls, path: str | Path, stem: str = "model") -> Checkpoint:
        """Read the headers of `stem`.safetensors, or of the shards named by `stem`.safetensors.index.json, under a folder.

        Raises StorageError for a missing, truncated or corrupt file, UnsupportedError when there are only pickled weights.
        """
        folder = Path(path)
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.is_file():
            headers = _headers(single)
            return cls(folder, dict.fromkeys(headers, single), headers)
        if index.is_file():
            return cls._sharded(folder, index)
        raise _no_weights(folder, stem)

    @classmethod
    def _sharded(cls, folder: Path, index: Path) -> Checkpoint:
        content = read_json(index)
        shard_of = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(shard, str) for shard in shard_of.values()):
            raise StorageError("A shard index is damaged.", met=f"{index}: no weight_map", mend="copy the checkpoint again")
        found: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}
        for shard in sorted(set(shard_of.values())):
            if Path(shard).name != shard or "\\" in shard or shard in ("", ".", ".."):
                raise StorageError("A shard lies outside its checkpoint.", met=f"{index}: {shard!r}", mend="shards lie beside their index")
            if not (folder / shard).is_file():
                raise StorageError(
                    "A shard of the checkpoint is missing.", met=folder / shard, mend="copy or download the checkpoint again"
                )
            found[shard] = _headers(folder / shard)
        for name, shard in shard_of.items():
            if name not in found[shard]:
                met = f"{name} in {folder / shard}"
                raise StorageError("A shard lacks a tensor that its index names.", met=met, mend="copy or download the checkpoint again")
        return cls(folder, {name: folder / shard for name, shard in shard_of.items()}, {n: found[s][n] for n, s in shard_of.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, as in the files."""
        return tuple(self._headers)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, sorted."""
        return tuple(sorted(set(self._files.values())))

    @property
    def headers(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Tensor name -> shape and safetensors dtype."""
        return self._headers

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from the header."""
        return self._header(name)[0]

    def dtype(self, name: str) -> torch.dtype:
        """Stored dtype of a tensor; UnsupportedError when it is not plain floating point (quantised weights)."""
        kind = self._header(name)[1]
        if kind not in DTYPES:
            mend = "use unquantised weights in float32, float16 or bfloat16"
            raise UnsupportedError("A weight is not plain floating point.", met=f"{name} in {self.folder} is {kind}", mend=mend)
        return DTYPES[kind]

    def tensor(self, name: str, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        """Read one tensor, in `dtype` if given. Raises DataError when it holds NaN or Inf, before or after that cast."""
        stored = self.mapped(name)
        tensor = stored.to(device=device, dtype=dtype or stored.dtype)
        if not torch.isfinite(tensor).all():
            if torch.isfinite(stored).all():
                raise DataError(f"A weight does not fit in {dtype}.", met=f"{name} in {self.folder}", mend="choose a wider dtype")
            mend = "take an earlier checkpoint, or train again with a lower learning rate"
            raise DataError("A weight is not finite (NaN or Inf).", met=f"{name} in {self.folder}", mend=mend)
        return tensor

    def mapped(self, name: str) -> Tensor:
        """One tensor on the CPU as it is stored, its memory that of the file; its values are not looked at. Do not write to it."""
        self.dtype(name)
        try:
            return self._file(self._files[name]).get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(self._files[name], error) from None

    def _header(self, name: str) -> tuple[tuple[int, ...], str]:
        try:
            return self._headers[name]
        except KeyError:
            raise UnknownName(f"tensor in {self.folder}", name, self._headers) from None

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        return self._open[path]


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), str(part.get_dtype())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError("A weight file is damaged.", met=f"{path}: {error}", mend="copy or download it again; it may be cut short")


def _no_weights(folder: Path, stem: str) -> StorageError | UnsupportedError:
    if not folder.is_dir():
        return StorageError(
            "There is no such checkpoint folder.", met=folder, mend="give the folder that holds config.json and the weights"
        )
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLED and "model" in file.name)
    if pickled:
        mend = "convert it where you trust it: AutoModelForCausalLM.from_pretrained(SOURCE).save_pretrained(FOLDER)"
        return UnsupportedError("Pickled weights are never read.", met=folder / pickled[0], mend=mend)
    met = f"{folder} holds no {stem}.safetensors"
    return StorageError("A checkpoint has no weights.", met=met, mend="save it with save_pretrained, or download it again")
