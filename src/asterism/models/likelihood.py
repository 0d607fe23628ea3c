"""Forward passes with logits: how well a model predicts texts, and the states it goes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.core.errors import DataError
from asterism.models.anatomy import anatomy_of
from asterism.models.batching import finite, masked_mean, placed_batches
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

LOGITS_BUDGET = 2**28
"""Bytes of logits held at once."""


def logits_of(model: Any, ids: Tensor) -> Tensor:
    """Logits [B, T, V] of right-padded ids [B, T]; padded positions hold values without meaning and are never scored.

    Attention is causal, so padding on the right needs no mask; one of ones keeps transformers from advising one.
    """
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Loss in nats of every token but the first, given those before it: logits [B, T, V], ids [B, T] -> [B, T-1]."""
    flat = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return flat.view(ids.shape[0], ids.shape[1] - 1)


@contextmanager
def states_of(model: Any, module_path: str | None) -> Iterator[list[Tensor]]:
    """Collect, while the model runs, the final hidden state (what the head reads) or a module's output: [B, T, d] each."""
    seen: list[Tensor] = []
    if module_path is None:
        handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    else:
        first = lambda output: output if isinstance(output, Tensor) else output[0]  # noqa: E731
        handle = model.get_submodule(module_path).register_forward_hook(lambda module, inputs, output: seen.append(first(output)))
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    layer: int | str = "final",
    max_length: int = 256,
    max_tokens: int = 4096,
) -> tuple[Tensor, Tensor]:
    """One forward pass a text: (mean hidden states [n, d], mean loss [n] in nats a token), both float32 on the CPU.

    The states are those of `layer` (the fingerprint's, Eq. 4). A text of one token has no loss: NaN. Batches change no result and
    hold at most LOGITS_BUDGET bytes of logits. Raises DataError for no list of texts, a text without tokens, or states that are not finite.
    """
    anatomy = anatomy_of(model)
    path = None if layer == "final" else anatomy.block_path(int(layer))
    states, losses = torch.empty(len(texts), anatomy.hidden_size), torch.full((len(texts),), torch.nan)
    for batch, rows in placed_batches(model, tokenizer, texts, max_length, _fitting(model, max_tokens)):
        with states_of(model, path) as seen:
            logits = logits_of(model, batch.ids)
        states[rows] = masked_mean(seen[0], batch.lengths).float().cpu()
        losses[rows] = masked_mean(token_losses(logits, batch.ids)[..., None], batch.lengths - 1)[:, 0].cpu()
    return finite(states, texts), losses


@torch.no_grad()
def losses_by_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int = 256, max_tokens: int = 4096
) -> list[Tensor]:
    """Of each text, the loss in nats of every token but the first: [T - 1] float32 on the CPU. Batches as in `read`.

    Raises DataError for no list of texts, a text of fewer than two tokens, or a loss that is not finite.
    """
    found: dict[int, Tensor] = {}
    for batch, rows in placed_batches(model, tokenizer, texts, max_length, _fitting(model, max_tokens)):
        losses = token_losses(logits_of(model, batch.ids), batch.ids).cpu()
        for row, own, length in zip(rows, losses, batch.lengths.tolist(), strict=True):
            if length < 2:
                mend = "leave it out, or give it more words"
                raise DataError("A text of one token has nothing to predict.", met=f"text {row}: {texts[row][:60]!r}", mend=mend)
            found[row] = own[: length - 1].clone()
            if not bool(found[row].isfinite().all()):
                mend = "use a wider dtype (float32, bfloat16), or check the weights"
                raise DataError("A loss is not finite.", met=f"text {row}: {texts[row][:60]!r}", mend=mend)
    return [found[row] for row in range(len(texts))]


def _fitting(model: Any, max_tokens: int) -> int:
    """Tokens of a batch whose logits stay within the budget."""
    return max(1, min(max_tokens, LOGITS_BUDGET // (4 * model.get_output_embeddings().weight.shape[0])))
