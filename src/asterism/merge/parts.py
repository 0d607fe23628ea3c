"""A checkpoint's tensors by what they are: loose ones by name, those of the layers by number and name. Reads names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from asterism.core.errors import MismatchError
from asterism.models.checkpoints import OLD_BUFFERS

Header = Mapping[str, tuple[tuple[int, ...], str]]
"""Tensor name -> shape and safetensors dtype."""
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_BARE = re.compile(r"^(model|transformer|gpt_neox|backbone)\.")
_OLD_HEAD = re.compile(r"^embed_out\.")
_VOCABULARY = re.compile(r"(^|.*\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|embeddings|lm_head)\.(weight|bias)")
_HEAD = re.compile(r"(^|.*\.)lm_head\.(weight|bias)")
_EARLY = re.compile(r"(^|.*\.)(w[tp]e|\w*embed\w*)\..*")
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """Keys are names as all models of a kind share them: without the base model's prefix, an old `embed_out` as `lm_head`."""

    loose: Mapping[str, str]
    """Key -> name, outside the layers."""
    stacks: Mapping[str, tuple[Mapping[str, str], ...]]
    """What stands before a layer's number -> for each layer, what follows it -> name."""

    @property
    def layers(self) -> tuple[Mapping[str, str], ...]:
        """The layers of the only stack; of the longest where there are several, none where there is none."""
        return max(self.stacks.values(), key=len, default=())


def is_vocabulary(key: str) -> bool:
    """Whether the first axis of a loose tensor runs over tokens."""
    return _VOCABULARY.fullmatch(key) is not None


def is_head(key: str) -> bool:
    """Whether a loose tensor belongs to the output head."""
    return _HEAD.fullmatch(key) is not None


def is_early(key: str) -> bool:
    """Whether a loose tensor is used before the first layer."""
    return _EARLY.fullmatch(key) is not None and not is_head(key)


def parts_of(names: Collection[str], of: object) -> Parts:
    """Sort a checkpoint's tensors; buffers that old transformers stored are passed over (they are rebuilt from the config).

    Raises MismatchError, naming the model `of`, when two names mean one tensor or a layer is missing between others.
    """
    loose: dict[str, str] = {}
    stacks: dict[str, dict[int, dict[str, str]]] = {}
    for name in names:
        if OLD_BUFFERS.fullmatch(name):
            continue
        key = _OLD_HEAD.sub("lm_head.", _BARE.sub("", name))
        found = _LAYER.search(key)
        where = loose if found is None else stacks.setdefault(key[: found.start(1)], {}).setdefault(int(found[1]), {})
        rest = key if found is None else key[found.end(1) + 1 :]
        if rest in where:
            mend = "save the model again with save_pretrained"
            raise MismatchError("A checkpoint holds a tensor under two names.", met=f"{where[rest]} and {name} in {of}", mend=mend)
        where[rest] = name
    return Parts(loose, {before: _in_order(before, layers, of) for before, layers in stacks.items()})


def embedding_of(parts: Parts, header: Header) -> tuple[int, ...] | None:
    """Shape of the token embedding, [rows, width]; None where no tensor is known to be one."""
    return next((tuple(header[name][0]) for key, name in parts.loose.items() if is_vocabulary(key) and not is_head(key)), None)


def _in_order(before: str, layers: Mapping[int, T], of: object) -> tuple[T, ...]:
    if missing := set(range(max(layers) + 1)) - layers.keys():
        met = f"{before}{min(missing)} in {of}"
        raise MismatchError("A checkpoint lacks a layer.", met=met, mend="copy or save the model again")
    return tuple(layers[number] for number in range(len(layers)))
