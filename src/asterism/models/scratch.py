"""Untrained models of a few small shapes: generalists to be trained from nothing."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config

from asterism.core.errors import SettingsError, UnknownName

SHAPES = ("gpt2", "llama", "qwen2")
HEAD_SIZE = 32


def new_model(
    shape: Literal["gpt2", "llama", "qwen2"],
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden: int,
    blocks: int,
    positions: int = 256,
    seed: int = 0,
) -> PreTrainedModel:
    """A randomly initialised causal LM of `blocks` blocks of width `hidden`, tied embeddings, no dropout.

    Attention heads are 32 wide (64 from width 512 on); Llama and Qwen2 shapes share each key and value between two heads
    where the heads are even in number. Raises SettingsError when `hidden` is no multiple of the head size.
    """
    if shape not in SHAPES:
        raise UnknownName("shape", shape, SHAPES)
    size = HEAD_SIZE if hidden < 512 else 2 * HEAD_SIZE
    if hidden % size:
        raise SettingsError("The width is no multiple of the head size.", met=hidden, mend=f"a multiple of {size}")
    heads = hidden // size
    ends: dict[str, Any] = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    if shape == "gpt2":
        still: dict[str, Any] = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=hidden, n_layer=blocks, n_head=heads, n_positions=positions, **still, **ends)
    else:
        shared = heads // 2 if heads % 2 == 0 else heads
        sizes: dict[str, Any] = dict(
            hidden_size=hidden, intermediate_size=8 * hidden // 3 // 8 * 8, num_hidden_layers=blocks, num_attention_heads=heads
        )
        make = LlamaConfig if shape == "llama" else Qwen2Config
        sizes |= dict(vocab_size=len(tokenizer), num_key_value_heads=shared, max_position_embeddings=positions)
        config = make(tie_word_embeddings=True, **sizes, **ends)
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config)
