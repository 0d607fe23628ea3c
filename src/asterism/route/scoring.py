"""Losses of texts, whole and by halves: what is chosen on the first halves can be scored on the second without hindsight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.core.errors import DataError
from asterism.models.likelihood import losses_by_token
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TextLosses:
    """Mean loss of each text in nats a token, float64 on the CPU; leading axes are models."""

    whole: Tensor
    """[..., n]"""
    first: Tensor
    """[..., n] over the first half of the tokens predicted."""
    second: Tensor
    """[..., n] over the rest."""

    def __getitem__(self, place: int) -> TextLosses:
        return TextLosses(self.whole[place], self.first[place], self.second[place])

    @classmethod
    def stack(cls, models: Sequence[TextLosses]) -> TextLosses:
        """One more leading axis: the models."""
        return cls(*(torch.stack([getattr(own, part) for own in models]) for part in ("whole", "first", "second")))


def text_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int = 256, max_tokens: int = 4096
) -> TextLosses:
    """What a model loses on each of n texts, cut at `max_length` tokens.

    Raises DataError for no list of texts, a text of fewer than three tokens (it has no halves), or a loss that is not finite.
    """
    found = [own.double() for own in losses_by_token(model, tokenizer, texts, max_length=max_length, max_tokens=max_tokens)]
    for row, own in enumerate(found):
        if len(own) < 2:
            mend = "leave it out, or give it more words"
            raise DataError("A text is too short to be halved.", met=f"text {row}: {texts[row][:60]!r}", mend=mend)
    halves = [own.split([len(own) // 2, len(own) - len(own) // 2]) for own in found]
    return TextLosses(_means(found), _means([half[0] for half in halves]), _means([half[1] for half in halves]))


def _means(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.mean() for part in parts])
