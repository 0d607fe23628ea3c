"""What the modules of a model read, as a mean over texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from asterism.core.errors import DataError, UnknownName
from asterism.models.batching import Batch, hidden_states, masked_mean, placed_batches
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def mean_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    modules: Sequence[str],
    *,
    pool: Literal["mean", "last"] = "mean",
    max_length: int = 256,
    max_tokens: int = 4096,
) -> Tensor:
    """[modules, d] float64 on the CPU: the mean over texts of what each module reads, at a text's last position or on average over all.

    modules: paths in the model. One forward pass; nothing is kept but the sums. Raises DataError for no texts, an empty one, or inputs
    that are not finite.
    """
    if pool not in ("mean", "last"):
        raise UnknownName("way to pool", pool, ("mean", "last"))
    sums: dict[str, Tensor] = {}

    def adding(path: str, batch: Batch) -> Any:
        def add(_module: Any, inputs: tuple[Tensor, ...]) -> None:
            own = masked_mean(inputs[0], batch.lengths) if pool == "mean" else inputs[0][range(len(batch.rows)), batch.lengths - 1]
            sums[path] = sums.get(path, 0) + own.double().sum(dim=0).cpu()

        return add

    for batch, _ in placed_batches(model, tokenizer, texts, max_length, max_tokens):
        handles = [model.get_submodule(path).register_forward_pre_hook(adding(path, batch)) for path in modules]
        try:
            hidden_states(model, batch)
        finally:
            for handle in handles:
                handle.remove()
    means = torch.stack([sums[path] for path in modules]) / len(texts)
    if not bool(means.isfinite().all()):
        mend = "use a wider dtype (float32, bfloat16), or check the weights"
        raise DataError("What a model's modules read is not finite.", met=f"{len(texts)} texts, the first {texts[0][:60]!r}", mend=mend)
    return means
