"""What a model makes of a text, averaged over its positions: fingerprints (Eq. 1, 4) and activation signatures (Eq. 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from asterism.core.errors import UnsupportedError
from asterism.models.anatomy import Anatomy
from asterism.models.batching import Batch, finite, hidden_states, masked_mean, placed_batches
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

MAX_LENGTH, MAX_TOKENS = 256, 4096


def fingerprints(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    layer: int | Literal["final"] = "final",
    max_length: int = MAX_LENGTH,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Mean hidden state over each text's own positions (Eq. 1, 4): -> [n, d] float32 on the CPU, in the order given.

    `layer` is the final hidden state (after the last norm) or the output of a block counted from 0. Texts are cut at
    `max_length` tokens, or at the model's positions where those are fewer. Batches hold texts of like length and at most
    `max_tokens` tokens; they change no result.
    On a specialist's model these are the specialist-space fingerprints of section 3.2's earlier version.
    Raises DataError for a text without tokens, or one whose hidden states are not finite.
    """
    return _pooled(model, tokenizer, texts, layer, max_length, max_tokens, absolute=False)


def signatures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int = MAX_LENGTH,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """Mean magnitude of each node of the final hidden state over each text's positions (Eq. 6): -> [n, d] float32, CPU."""
    return _pooled(model, tokenizer, texts, "final", max_length, max_tokens, absolute=True)


@torch.no_grad()
def module_signatures(
    model: PreTrainedModel,
    anatomy: Anatomy,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int = MAX_LENGTH,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Tensor]:
    """Eq. 6 at the output of every module that owns parameters in a block, and of the final norm: path -> [n, out] float32.

    One forward pass gives them all; the final norm's is what `signatures` gives. A norm that runs over each head has the
    mean over heads. Memory: n times the sum of all output sizes.
    """
    paths = [*block_modules(anatomy), anatomy.layout.final_norm]
    found: dict[str, Tensor] = {}
    for batch, rows in placed_batches(model, tokenizer, texts, max_length, max_tokens):
        batch = _told_apart(model, batch)
        with _watching(model, paths, batch) as seen:
            hidden_states(model, batch)
        for path, pooled in seen.items():
            found.setdefault(path, torch.empty(len(texts), pooled.shape[1]))[rows] = pooled.float().cpu()
    return {path: finite(values, texts) for path, values in found.items()}


def block_modules(anatomy: Anatomy) -> tuple[str, ...]:
    """Paths of all modules that own parameters in a block, in model order."""
    return tuple(dict.fromkeys(anatomy.module_of(name) for name in anatomy.shapes if anatomy.block_of(name) is not None))


@torch.no_grad()
def _pooled(model, tokenizer, texts: Sequence[str], layer, max_length: int, max_tokens: int, *, absolute: bool) -> Tensor:
    pooled: Tensor | None = None
    for batch, rows in placed_batches(model, tokenizer, texts, max_length, max_tokens):
        means = masked_mean(hidden_states(model, batch, layer), batch.lengths, absolute=absolute).float().cpu()
        if pooled is None:
            pooled = means.new_empty(len(texts), means.shape[1])
        pooled[rows] = means
    assert pooled is not None  # placed_batches refuses an empty list
    return finite(pooled, texts)


@contextmanager
def _watching(model: PreTrainedModel, paths: Sequence[str], batch: Batch) -> Iterator[dict[str, Tensor]]:
    """Inside, a forward pass of `batch` leaves each module's pooled output magnitudes in the yielded dict."""
    seen: dict[str, Tensor] = {}

    def watch(path: str):
        def hook(_module: Any, _given: Any, output: Any) -> None:
            seen[path] = masked_mean(_positions_first(path, output, batch), batch.lengths, absolute=True)

        return hook

    handles = [model.get_submodule(path).register_forward_hook(watch(path)) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _positions_first(path: str, output: Any, batch: Batch) -> Tensor:
    """A module's output as [B, T, out]; of [B, heads, T, out] or [B, T, heads, out] the mean magnitude over heads."""
    length = batch.ids.shape[1]
    if isinstance(output, Tensor) and output.ndim == 3:
        return output
    if isinstance(output, Tensor) and output.ndim == 4:
        places = [axis for axis in (1, 2) if output.shape[axis] == length]
        if len(places) == 1:
            return output.abs().mean(dim=3 - places[0])
    met = f"{path}: {tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__}"
    raise UnsupportedError("A module's output has no known place for its nodes.", met=met, mend="use another node map than per_module")


def _told_apart(model: PreTrainedModel, batch: Batch) -> Batch:
    """Pad until the number of positions is no number of heads, so that the two axes cannot be taken for one another."""
    config = model.config.get_text_config()
    heads = {getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    length = batch.ids.shape[1]
    wider = next(size for size in range(length, length + 3) if size not in heads)
    if wider == length or wider > (getattr(config, "max_position_embeddings", None) or wider):
        return batch
    return dataclasses.replace(batch, ids=pad(batch.ids, (0, wider - length)))
