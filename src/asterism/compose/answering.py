"""Answer texts: each with the model that it needs. One text runs on a built model, several run mixed in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asterism.compose.composer import Composer
from asterism.compose.refining import refined
from asterism.compose.settings import RENEW, CompositionSettings, mixture_settings
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import DataError
from asterism.models.batching import left_padded, pad_id, tokenise
from asterism.models.library import Library
from asterism.models.responses import ending_tokens


@dataclass(frozen=True)
class Answer:
    """A query, what the composed model wrote after it, and the mixture that wrote it (the last one, where it was renewed)."""

    query: str
    text: str
    mixture: Mixture


def answer(
    library: Library,
    constellation: Constellation,
    texts: Sequence[str],
    *,
    mixture: MixtureSettings | None = None,
    composition: CompositionSettings | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 42,
    refine: int = 0,
    renew: int = RENEW,
) -> list[Answer]:
    """Continue every text under its own mixture; temperature 0 is greedy. Answers do not depend on their neighbours when greedy.

    `refine`: gradient steps of each mixture on its text, each about three forward passes. `renew`: make the mixture again, after every so
    many new tokens (0: never), from as much of the end of text and answer as the index reads; keys and values are kept.
    Raises DataError when a text leaves no room for new tokens within the model's positions.
    """
    composition = composition or CompositionSettings()
    settings, window = mixture or mixture_settings(len(constellation.domains), composition), constellation.settings.max_length
    composer, tokenizer = Composer(library, composition), library.tokenizer
    rows = _tokens(library, texts, max_new_tokens)
    ids, mask = (each.to(library.device) for each in left_padded(rows, pad_id(tokenizer)))
    asked: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    asked |= dict(pad_token_id=pad_id(tokenizer), return_dict_in_generate=True)
    torch.manual_seed(seed)

    def mixtures(read: Sequence[str], tokens: Sequence[Sequence[int]]) -> list[Mixture]:
        found = constellation.mixtures(read, settings)
        return [refined(composer, one, own, steps=refine) for one, own in zip(found, tokens, strict=True)] if refine else found

    made, cache, width, ends = mixtures(texts, rows), None, ids.shape[1], ending_tokens(composer.model, tokenizer)
    while True:
        left = max_new_tokens - (ids.shape[1] - width)
        given = dict(input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=min(renew or left, left))
        written = _continued(composer, made, asked | given)
        ids, cache = written.sequences, written.past_key_values
        mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], dim=1)
        new = [_until(own, ends) for own in ids[:, width:].tolist()]
        if ids.shape[1] - width >= max_new_tokens or all(own[-1] in ends for own in new):
            break
        last = [[*own, *more][-window:] for own, more in zip(rows, new, strict=True)]
        made = mixtures([tokenizer.decode(own, skip_special_tokens=True) or text for own, text in zip(last, texts, strict=True)], last)
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [Answer(query, text, one) for query, text, one in zip(texts, answers, made, strict=True)]


def _continued(composer: Composer, mixtures: Sequence[Mixture], asked: dict[str, Any]) -> Any:
    """`generate`, whose type transformers leaves open: one text on a built model, several mixed."""
    if len(mixtures) == 1:
        model: Any = composer.materialise(mixtures[0])
        return model.generate(**asked)
    with composer.mixed(mixtures) as model:
        return model.generate(**asked)


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first that ends the answer, that one included."""
    return next((tokens[: place + 1] for place, token in enumerate(tokens) if token in ends), tokens)


def _tokens(library: Library, texts: Sequence[str], room: int) -> list[list[int]]:
    """Token ids of every text; DataError where an answer of `room` tokens does not fit behind one."""
    positions = getattr(library.config, "max_position_embeddings", None)
    tokens = tokenise(library.tokenizer, texts, max_length=2**31 - 1)
    longest = max(map(len, tokens))
    if positions and longest + room > positions:
        mend = f"shorten the text or ask for fewer new tokens: the model has {positions} positions"
        raise DataError("A text leaves no room for its answer.", met=f"{longest} tokens + {room} new ones", mend=mend)
    return tokens
