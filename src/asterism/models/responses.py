"""What a model makes of examples: the loss of each response, and the answer that it writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig

from asterism.core.errors import DataError, SettingsError
from asterism.core.progress import counting, is_quiet, quiet
from asterism.models.batching import Batch, batches, left_padded, pad_id, room_of
from asterism.models.examples import Example, encoded, prompt_ids, shortened
from asterism.models.likelihood import logits_of, token_losses
from asterism.models.spelling import vocabulary_of
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def response_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_length: int = 1024,
    max_tokens: int = 4096,
    chat: bool = True,
) -> list[Tensor]:
    """Of each example, the loss in nats of every token of its response, what ends it included: [T] float32 on the CPU.

    The first token of a response without a prompt has none. Batches change no result. Raises DataError for no examples, a response that is
    longer than `max_length` or the model's positions (see `asterism.models.examples.encoded`), or a loss that is not finite.
    """
    limit = room_of(model, max_length)
    rows = [encoded(tokenizer, example, limit, chat=chat) for example in _some(examples)]
    found: dict[int, Tensor] = {}
    for batch in _shown(batches([ids for ids, _ in rows], max_tokens=max_tokens, pad=pad_id(tokenizer)), "losses"):
        placed = batch.to(model.device)
        losses = token_losses(logits_of(model, placed.ids), placed.ids).cpu()
        for row, own, length in zip(batch.rows, losses, batch.lengths.tolist(), strict=True):
            found[row] = own[max(rows[row][1] - 1, 0) : length - 1].clone()
            if not bool(found[row].isfinite().all()):
                mend = "use a wider dtype (float32, bfloat16), or check the weights"
                raise DataError("A loss is not finite.", met=f"example {row}: {examples[row].response[:60]!r}", mend=mend)
    return [found[row] for row in range(len(rows))]


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    max_new_tokens: int = 64,
    stop: str | None = "\n",
    max_length: int = 1024,
    max_tokens: int = 4096,
    chat: bool = True,
) -> list[str]:
    """What the model writes behind the prompt of each example, greedily: up to `max_new_tokens` tokens, the end token or `stop`.

    Prompts are batched, padded on the left; batches change no result. A prompt that leaves less than `max_new_tokens` of `max_length` (or
    of the model's positions) loses its beginning. Raises DataError for no examples or a prompt without tokens, SettingsError where no room
    is left for any prompt.
    """
    limit = room_of(model, max_length)
    prompts = [prompt_of(tokenizer, example, limit - max_new_tokens, chat=chat) for example in _some(examples)]
    ends = ending_tokens(model, tokenizer, stop)
    generator: Any = model
    found: dict[int, str] = {}
    for batch in _shown(batches(prompts, max_tokens=max_tokens, pad=pad_id(tokenizer)), "answers"):
        ids, mask = left_padded([prompts[row] for row in batch.rows], pad_id(tokenizer))
        asked = dict(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=max_new_tokens, do_sample=False)
        written = generator.generate(**asked, pad_token_id=pad_id(tokenizer), eos_token_id=sorted(ends) or None)
        for row, own in zip(batch.rows, written[:, ids.shape[1] :].tolist(), strict=True):
            last = next((place for place, token in enumerate(own) if token in ends), len(own))
            text = str(tokenizer.decode(own[: last + 1], skip_special_tokens=True))
            found[row] = text.split(stop)[0] if stop else text
    return [found[row] for row in range(len(prompts))]


def prompt_of(tokenizer: PreTrainedTokenizerBase, example: Example, room: int, *, chat: bool = True) -> list[int]:
    """The tokens that an answer is asked with; of more than `room` the last ones, a begin token kept."""
    prompt = prompt_ids(tokenizer, example, chat=chat)
    if not prompt:
        raise DataError("There is nothing before the answer.", met="an example without a prompt", mend="give every example a prompt")
    if room < 1:
        raise SettingsError("There is no room for a prompt.", met=f"{room} tokens", mend="ask for fewer new tokens, or raise max_length")
    return shortened(tokenizer, prompt, room)


def ending_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop: str | None = None) -> set[int]:
    """Tokens that end an answer: the tokenizer's end, those of the model's generation settings, and those that hold `stop`."""
    ends = ends_of(model.generation_config, tokenizer)
    if not stop:
        return ends
    return ends | {token for token, text in enumerate(vocabulary_of(tokenizer).texts) if text and stop.encode() in text}


def ends_of(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokenizer's end, and those of generation settings."""
    known = getattr(generation, "eos_token_id", None)
    return {end for end in (tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])) if isinstance(end, int)}


def generation_settings(folder: Path, config: PreTrainedConfig) -> GenerationConfig:
    """The generation settings of a checkpoint folder, as its model would have them; no weight is read."""
    own = (folder / "generation_config.json").is_file()
    return GenerationConfig.from_pretrained(folder) if own else GenerationConfig.from_model_config(config)


def _shown(made: Sequence[Batch], what: str):
    with quiet(is_quiet() or len(made) == 1), counting(what, sum(len(batch.rows) for batch in made)) as advance:
        for batch in made:
            yield batch
            advance(len(batch.rows))


def _some(examples: Sequence[Example]) -> Sequence[Example]:
    if not examples:
        raise DataError("There are no examples.", met="an empty list", mend="give rows with a prompt and a response")
    return examples
