"""Training text as windows of equal length."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from asterism.core.errors import DataError

AT_ONCE = 1000
"""Texts tokenised in one call."""


class Windows(torch.utils.data.Dataset):
    """Texts joined by the end token and cut into windows of `max_length` tokens; the rest is dropped."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], max_length: int) -> None:
        end = tokenizer.eos_token_id
        stream = array("i")
        remaining = iter(texts)
        while some := list(islice(remaining, AT_ONCE)):
            for ids in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
                stream.extend(ids)  # pyright: ignore[reportArgumentType]
                if end is not None:
                    stream.append(int(end))  # pyright: ignore[reportArgumentType]
        count = len(stream) // max_length
        if count == 0:
            mend = f"give at least one window of {max_length} tokens"
            raise DataError("Too little text to train on.", met=f"{len(stream)} tokens", mend=mend)
        self.windows = torch.frombuffer(stream, dtype=torch.int32)[: count * max_length].view(count, max_length)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.windows[index].long()
        return {"input_ids": window, "labels": window}
