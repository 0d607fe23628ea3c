"""The transformers types that upper layers speak of; they import them from here, so that `transformers` is imported in `models` alone."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

__all__ = ["Conv1D", "PreTrainedConfig", "PreTrainedModel", "PreTrainedTokenizerBase"]
