"""Untrained models of a few small shapes: generalists to be trained from nothing."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
)

from asterism.core.errors import SettingsError, UnknownName

SHAPES = ("gpt2", "llama", "qwen2")
HEAD_SIZE = 32


def new_config(
    shape: Literal["gpt2", "llama", "qwen2"], *, vocabulary: int, hidden: int, blocks: int, positions: int = 256, **ends: int | None
) -> PreTrainedConfig:
    """The config of a causal LM of `blocks` blocks of width `hidden`, tied embeddings, no dropout.

    Attention heads are 32 wide (64 from width 512 on); Llama and Qwen2 shapes share each key and value between two heads
    where the heads are even in number. `ends` are the special tokens' ids. Raises SettingsError when `hidden` is no multiple of the
    head size.
    """
    if shape not in SHAPES:
        raise UnknownName("shape", shape, SHAPES)
    size = HEAD_SIZE if hidden < 512 else 2 * HEAD_SIZE
    if hidden % size:
        raise SettingsError("The width is no multiple of the head size.", met=hidden, mend=f"a multiple of {size}")
    heads = hidden // size
    if shape == "gpt2":
        still: dict[str, Any] = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ends)
        return GPT2Config(vocab_size=vocabulary, n_embd=hidden, n_layer=blocks, n_head=heads, n_positions=positions, **still)
    shared = heads // 2 if heads % 2 == 0 else heads
    sizes: dict[str, Any] = dict(
        hidden_size=hidden, intermediate_size=8 * hidden // 3 // 8 * 8, num_hidden_layers=blocks, num_attention_heads=heads, **ends
    )
    make = LlamaConfig if shape == "llama" else Qwen2Config
    return make(vocab_size=vocabulary, num_key_value_heads=shared, max_position_embeddings=positions, tie_word_embeddings=True, **sizes)


def new_model(
    shape: Literal["gpt2", "llama", "qwen2"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden: int,
    blocks: int,
    positions: int = 256,
    seed: int = 0,
) -> PreTrainedModel:
    """A randomly initialised causal LM of `new_config`'s shape for a tokenizer."""
    ends: dict[str, Any] = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    config = new_config(shape, vocabulary=len(tokenizer), hidden=hidden, blocks=blocks, positions=positions, **ends)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)
