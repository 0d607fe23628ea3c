"""A live transformers model from a config and tensors, without initialising or copying what is given."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from asterism.core.errors import StorageError, UnsupportedError
from asterism.core.storage import read_json
from asterism.models.anatomy import MAKING
from asterism.models.sources import config_folder


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint folder, or a config file itself. Code that a checkpoint carries is never run."""
    file = folder if folder.is_file() else folder / "config.json"
    if not file.is_file():
        raise StorageError(
            "A model's config.json is missing.", met=folder, mend="save the model with save_pretrained, or copy its config.json"
        )
    if not isinstance(read_json(file), dict):
        raise StorageError("A model's config is damaged.", met=file, mend="copy the model again")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(
            "A model's config cannot be used.", met=f"{file}: {first}", mend="use an architecture that transformers knows"
        ) from None
    if getattr(config, "quantization_config", None):
        raise UnsupportedError("Quantised models cannot be mixed exactly.", met=folder, mend="use the unquantised checkpoint")
    return config


def config_at(source: str | Path | PreTrainedConfig) -> PreTrainedConfig:
    """A config as a user gives it: itself, a model's folder, a config.json, or a Hub id (`org/name@revision`), fetched alone.

    Raises what `read_config` raises, and StorageError where there is no such place.
    """
    if isinstance(source, PreTrainedConfig):
        return source
    path = Path(source).expanduser()
    return read_config(path if path.exists() or isinstance(source, Path) else config_folder(source))


def build(config: PreTrainedConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype, *, folder: Path | None = None) -> PreTrainedModel:
    """A causal LM in eval mode whose parameters are `tensors` themselves (storage shared), none of them asking for gradients.

    Buffers that no checkpoint stores (rotary frequencies, embedding scales) are computed as transformers does. Tied weights
    stay tied. `folder` may hold a generation_config.json.
    """
    from accelerate import init_empty_weights

    with MAKING:
        with init_empty_weights(include_buffers=False), no_init_weights():
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        model.load_state_dict(dict(tensors), strict=False, assign=True)
        model.tie_weights()
    absent = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if absent:
        raise UnsupportedError("A model could not be filled.", met=f"nothing for {absent[0]}", mend="report this architecture")
    model.to(device=next(iter(tensors.values())).device)
    model.requires_grad_(False)
    if folder and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()
