"""Texts to right-padded, length-bucketed batches, and the hidden states and masked means of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asterism.core.errors import DataError, SettingsError
from asterism.core.progress import counting, is_quiet, quiet
from asterism.models.anatomy import anatomy_of

Layer = int | Literal["final"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows of a list of texts, padded on the right to the longest of them."""

    rows: tuple[int, ...]
    """Index of each row in the list that was batched."""
    ids: Tensor
    """[B, T] int64."""
    lengths: Tensor
    """[B] int64: tokens of each row before the padding."""

    @property
    def mask(self) -> Tensor:
        """[B, T] bool: True at a row's own tokens."""
        return own_positions(self.lengths, self.ids.shape[1])

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding left out."""
        return int(self.lengths.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.rows, self.ids.to(device), self.lengths.to(device))


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, the tokenizer's special tokens included, cut at `max_length`.

    Raises DataError with the index of a text that has no tokens or is not Unicode text.
    """
    if not texts:
        return []
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            raise DataError("A text is empty.", met=f"text {index}: {text!r}", mend="leave it out or give it some words")
        if not _is_unicode(text):
            raise DataError("A text is not valid Unicode.", met=f"text {index}", mend="remove its lone surrogate (\\ud800-\\udfff)")
    lists = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False, verbose=False)["input_ids"]
    for index, ids in enumerate(lists):  # pyright: ignore[reportArgumentType]
        if not ids:
            raise DataError("A text has no tokens.", met=f"text {index}: {texts[index][:40]!r}", mend="leave it out or give it some words")
    return lists  # pyright: ignore[reportReturnType]


def batches(token_lists: Sequence[Sequence[int]], *, max_tokens: int = 4096, pad: int) -> list[Batch]:
    """Batches of texts of like length, longest first: B * T <= max_tokens, or a single row."""
    order = sorted(range(len(token_lists)), key=lambda row: -len(token_lists[row]))
    groups: list[list[int]] = []
    for row in order:
        widest = len(token_lists[groups[-1][0]]) if groups else 0
        if groups and (len(groups[-1]) + 1) * widest <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_padded(token_lists, group, pad) for group in groups]


def left_padded(token_lists: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [B, T] int64, padded on the left so that every row's next token is its answer's first."""
    longest = max(map(len, token_lists))
    ids = torch.full((len(token_lists), longest), pad)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(token_lists):
        ids[row, longest - len(own) :] = torch.tensor(own)
        mask[row, longest - len(own) :] = 1
    return ids, mask


def placed_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int, max_tokens: int
) -> Iterator[tuple[Batch, list[int]]]:
    """Batches of texts on the model's device with the rows they fill; a progress bar where there are several.

    Texts are cut at `max_length` tokens, or at the model's positions where those are fewer. DataError for no list of texts.
    """
    if isinstance(texts, str) or not len(texts):
        raise DataError("A model reads a list of texts, at least one.", met=repr(texts), mend='e.g. ["one text"]')
    made = batches(tokenise(tokenizer, texts, room_of(model, max_length)), max_tokens=max_tokens, pad=pad_id(tokenizer))
    with quiet(is_quiet() or len(made) == 1), counting("texts", len(texts)) as advance:
        for batch in made:
            yield batch.to(model.device), list(batch.rows)
            advance(len(batch.rows))


def room_of(model: Any, most: int) -> int:
    """Tokens that a model, or any model of a library, reads of one text: `most`, or as many as it has positions."""
    return min(most, getattr(model.config, "max_position_embeddings", None) or most)


def finite(pooled: Tensor, texts: Sequence[str]) -> Tensor:
    """What was pooled of each text, [n, d]; DataError naming the first text where it is NaN or infinite."""
    if not bool(pooled.isfinite().all()):
        row = int((~pooled.isfinite()).any(dim=1).nonzero()[0])
        mend = "use a wider dtype (float32, bfloat16), or check the weights"
        raise DataError("A model's hidden states are not finite.", met=f"text {row}: {texts[row][:60]!r}", mend=mend)
    return pooled


def hidden_states(model: PreTrainedModel, batch: Batch, layer: Layer = "final") -> Tensor:
    """[B, T, d] hidden states: after the last norm (`final`), or the output of block `layer`, counted from 0.

    The base model alone runs, so no logits are made, and nothing above block `layer`. Positions beyond a row's length
    hold values without meaning. Raises SettingsError for a block that does not exist or texts longer than the model's positions.
    """
    limit, width = getattr(model.config, "max_position_embeddings", None), batch.ids.shape[1]
    if limit is not None and width > limit:
        raise SettingsError("Texts are longer than the model's positions.", met=f"{width} tokens", mend=f"max_length of at most {limit}")
    with torch.no_grad():
        if layer == "final":
            return _forward(model, batch).last_hidden_state
        return _block_output(model, batch, layer)


def masked_mean(hidden: Tensor, lengths: Tensor, *, absolute: bool = False) -> Tensor:
    """[B, d] mean of each row's own positions of `hidden` [B, T, d] (Eq. 1); of their absolute values with `absolute` (Eq. 6).

    Summed in float32, or float64 for float64.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    lengths = lengths.to(hidden.device)
    own = own_positions(lengths, hidden.shape[1])[..., None]  # [B, T, 1]
    values = (hidden.abs() if absolute else hidden).masked_fill(~own, 0)
    return values.sum(dim=1, dtype=wide) / lengths[:, None].to(wide)


def own_positions(lengths: Tensor, width: int) -> Tensor:
    """[B, width] bool: True at the first `lengths[b]` positions of row b."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the tokenizer's pad, else its end token, else 0; causal attention never looks at it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at the block that was asked for."""


def _forward(model: PreTrainedModel, batch: Batch):
    # No padding mask: attention is causal and padding stands on the right, so no row's own token ever sees a padded one.
    # A mask of ones says just that, and keeps transformers from advising a mask whenever it meets a pad token.
    ids = batch.ids.to(model.device)
    return model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def _block_output(model: PreTrainedModel, batch: Batch, layer: int) -> Tensor:
    anatomy = anatomy_of(model)
    if not 0 <= layer < anatomy.n_blocks:
        raise SettingsError("The model has no such block.", met=f"layer {layer}", mend=f"0 to {anatomy.n_blocks - 1}, or 'final'")
    found: list[Tensor] = []

    def take(_module, _inputs, output) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    handle = model.get_submodule(anatomy.block_path(layer)).register_forward_hook(take)
    try:
        _forward(model, batch)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


def _padded(token_lists: Sequence[Sequence[int]], group: list[int], pad: int) -> Batch:
    lengths = torch.tensor([len(token_lists[row]) for row in group])
    ids = torch.full((len(group), int(lengths.max())), pad)
    for place, row in enumerate(group):
        ids[place, : lengths[place]] = torch.as_tensor(token_lists[row])
    return Batch(tuple(group), ids, lengths)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
