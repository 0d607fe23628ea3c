"""Whether two models belong together: same architecture, same tensors, same tokenizer. Errors name the field or tensor."""

from __future__ import annotations

import filecmp
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from asterism.core.errors import MismatchError, StorageError, UnsupportedError
from asterism.core.storage import file_digest, read_json
from asterism.models.checkpoints import OLD_BUFFERS, Checkpoint
from asterism.models.loading import read_config
from asterism.models.sources import TOKENIZER_FILES

COSMETIC = re.compile(
    r"_.*|architectures|auto_map|transformers_version|(torch_)?dtype|use_cache|.*(dropout|pdrop|drop_rate).*|initializer_range|initializer_factor"
    r"|summary_.*|task_specific_params|output_(attentions|hidden_states)|return_dict|id2label|label2id|problem_type|chunk_size_feed_forward"
    r"|(bos|eos|pad|sep|decoder_start)_token_id|is_decoder|max_window_layers|finetuning_task|use_mems|prefix|bad_words_ids|gradient_checkpointing"
)
"""Fields of a config that do not shape what a model computes from given weights (tie_word_embeddings and all sizes do)."""


@dataclass(frozen=True)
class Names:
    """How a checkpoint names the model's parameters."""

    stored: Mapping[str, str]
    """Parameter -> tensor name in the file."""
    twins: Mapping[str, tuple[str, ...]]
    """Parameter -> further tensors in the file that must be equal to it (a tied head that was stored)."""


def check_architecture(ours: PreTrainedConfig, ours_at: Path, theirs_at: Path) -> None:
    """MismatchError naming the first config field that shapes the model and differs; defaults left out of a file count.

    Files that say the same are not looked at further.
    """
    path = theirs_at / "config.json"
    if path.is_file() and _written(read_json(ours_at / "config.json")) == _written(read_json(path)):
        return
    mine, other = _shaping(ours), _shaping(read_config(theirs_at))
    for field in sorted(mine.keys() | other.keys(), key=lambda field: (field != "model_type", field)):
        if mine.get(field) != other.get(field):
            met = f"{field} is {other.get(field)!r} in {theirs_at}, {mine.get(field)!r} in the generalist"
            raise MismatchError(
                "A specialist has another architecture than the generalist.", met=met, mend="use a model fine-tuned from this generalist"
            )


class Expected:
    """What a checkpoint of one model must hold; read once from a skeleton."""

    def __init__(self, skeleton: PreTrainedModel) -> None:
        once = {id(parameter): name for name, parameter in skeleton.named_parameters()}
        self.prefix = skeleton.base_model_prefix
        self.shapes = {name: tuple(parameter.shape) for name, parameter in skeleton.named_parameters()}
        self.owner = {name: once[id(parameter)] for name, parameter in skeleton.named_parameters(remove_duplicate=False)}
        """Parameter by each of its names: a tied head's name stands for the embedding."""
        if odd := skeleton.state_dict().keys() - self.owner.keys():
            raise UnsupportedError("A model keeps buffers in its checkpoint.", met=min(odd), mend="use an architecture named in the README")

    def parameter(self, name: str) -> str | None:
        """The parameter that a stored name means: as it is, with the base model's prefix, or GPT-NeoX's head before transformers 5."""
        return self.owner.get(name) or self.owner.get(f"{self.prefix}.{name}") or self.owner.get(re.sub(r"^embed_out\.", "lm_head.", name))


def parameter_names(checkpoint: Checkpoint, expected: Expected) -> Names:
    """Match the tensors of a checkpoint to a model's parameters by name and shape.

    Names may lack the base model's prefix (`h.0...` for `transformer.h.0...`); a tied head may be there or not; buffers of
    old transformers are passed over. Anything else missing, left over or of another shape is a MismatchError naming it.
    """
    stored: dict[str, str] = {}
    twins: dict[str, tuple[str, ...]] = {}
    for name in checkpoint.names:
        parameter = expected.parameter(name)
        if parameter is None:
            if OLD_BUFFERS.fullmatch(name):
                continue
            raise MismatchError("A checkpoint holds a tensor that the model has not.", met=f"{name} in {checkpoint.folder}", mend=_MEND)
        if checkpoint.shape(name) != expected.shapes[parameter]:
            met = f"{name} in {checkpoint.folder} is {list(checkpoint.shape(name))}, not {list(expected.shapes[parameter])}"
            raise MismatchError("A tensor has another shape than the generalist's.", met=met, mend=_MEND)
        checkpoint.dtype(name)
        if parameter in stored:
            twins[parameter] = (*twins.get(parameter, ()), name)
        else:
            stored[parameter] = name
    if missing := [name for name in expected.shapes if name not in stored]:
        raise MismatchError("A checkpoint lacks a tensor of the model.", met=f"{missing[0]} in {checkpoint.folder}", mend=_MEND)
    return Names(stored, twins)


def check_tokenizer(ours: Path, theirs: Path, alike: set[str]) -> None:
    """MismatchError naming the part of the tokenizer that differs. A specialist without tokenizer files passes.

    Files equal byte by byte are not parsed; padding, truncation and how text is decoded do not matter. `alike` collects the
    digests of files found alike, so that specialists saved by one program are compared once.
    """
    present = [name for name in TOKENIZER_FILES if (theirs / name).is_file()]
    if not present:
        return
    shared = [name for name in present if (ours / name).is_file()]
    if shared and filecmp.cmp(ours / shared[0], theirs / shared[0], shallow=False):
        return
    digest = file_digest(theirs / present[0])
    if digest in alike:
        return
    if "tokenizer.json" in shared:
        mine, other = _tokenizing(ours / "tokenizer.json"), _tokenizing(theirs / "tokenizer.json")
    else:
        mine, other = ({"vocabulary": read_tokenizer(folder).get_vocab()} for folder in (ours, theirs))
    for part in mine:
        if mine[part] != other[part]:
            mend = "fine-tune with the generalist's tokenizer; if only its file differs, remove the tokenizer files beside the specialist"
            met = f"{_difference(part, mine, other)} in {theirs}"
            raise MismatchError("A specialist has another tokenizer than the generalist.", met=met, mend=mend)
    alike.add(digest)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; StorageError when there is none or it is damaged."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make up an empty one
        mend = "save the generalist's tokenizer there with tokenizer.save_pretrained"
        raise StorageError("A tokenizer is missing.", met=f"{folder} holds none of {', '.join(TOKENIZER_FILES)}", mend=mend)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(
            "A tokenizer cannot be read.", met=f"{folder}: {first}", mend="save it there with tokenizer.save_pretrained"
        ) from None


_MEND = "use a model fine-tuned from this generalist, saved whole with save_pretrained"


def _written(content: Any) -> Any:
    return {field: value for field, value in content.items() if not COSMETIC.fullmatch(field)} if isinstance(content, dict) else None


def _shaping(config: PreTrainedConfig) -> dict[str, Any]:
    values = _written(config.to_dict())
    rope = values.get("rope_parameters") or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    if kinds <= {"default", "llama3", "linear", "yarn"}:  # how long texts may be; learned positions show in a tensor's shape
        values.pop("max_position_embeddings", None)
        values.pop("n_positions", None)
        values.pop("n_ctx", None)
    return values


def _tokenizing(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise StorageError("A tokenizer file is damaged.", met=path, mend="save it again with tokenizer.save_pretrained")
    model = content["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model.get("merges") or ()]
    return {
        "vocabulary": model.get("vocab"),
        "added tokens": {token.get("content"): token.get("id") for token in content.get("added_tokens") or ()},
        "merges": merges,
        "normalizer": content.get("normalizer"),
        "pre_tokenizer": content.get("pre_tokenizer"),
        "model type": model.get("type"),
    }


def _difference(part: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    left, right = mine[part], other[part]
    if isinstance(left, dict) and isinstance(right, dict):
        token = min((key for key in left.keys() | right.keys() if left.get(key) != right.get(key)), key=str)
        return f"{part}: {token!r} is {right.get(token)}, {left.get(token)} in the generalist,"
    return f"{part} differs"
