"""Answer texts: each with the model that it needs. One text runs on a built model, several run mixed in one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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

Choose = Callable[[Sequence[str], Sequence[Sequence[int]]], list[Mixture]]
"""(texts, their tokens) -> a mixture each."""


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
    settings = mixture or mixture_settings(len(constellation.domains), composition)
    composer = Composer(library, composition)
    tokens = _tokens(library, texts, max_new_tokens)
    torch.manual_seed(seed)

    def choose(read: Sequence[str], own: Sequence[Sequence[int]]) -> list[Mixture]:
        found = constellation.mixtures(read, settings)
        return [refined(composer, one, ids, steps=refine) for one, ids in zip(found, own, strict=True)] if refine else found

    drawing = {"temperature": temperature} if temperature > 0 else {}
    window = constellation.settings.max_length
    return continued(composer, texts, tokens, choose, window=window, max_new_tokens=max_new_tokens, renew=renew, drawing=drawing)


def continued(
    composer: Composer,
    texts: Sequence[str],
    tokens: Sequence[Sequence[int]],
    choose: Choose,
    *,
    window: int,
    max_new_tokens: int,
    renew: int = RENEW,
    drawing: Mapping[str, float] | None = None,
    stop: Sequence[str] = (),
) -> list[Answer]:
    """Continue texts, given with their tokens, under the mixtures that `choose` makes of texts and tokens: of these, then again of their
    last `window` tokens after every `renew` new ones (0: never).

    `drawing`: temperature and top_p of a draw; without any the likeliest token is taken. An answer ends before a text of `stop`.
    """
    library, tokenizer = composer.library, composer.library.tokenizer
    ids, mask = (each.to(library.device) for each in left_padded(tokens, pad_id(tokenizer)))
    asked: dict[str, Any] = dict(pad_token_id=pad_id(tokenizer), return_dict_in_generate=True, do_sample=bool(drawing), **(drawing or {}))
    made, cache, width, ends = choose(texts, tokens), None, ids.shape[1], ending_tokens(composer.model, tokenizer)

    def ended(ids: Tensor, *scores: Any, **rest: Any) -> Tensor:
        written = tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
        return torch.tensor([_cut(text, stop) != text for text in written], device=ids.device)

    if stop:
        asked["stopping_criteria"] = [ended]
    while True:
        left = max_new_tokens - (ids.shape[1] - width)
        given = dict(input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=min(renew or left, left))
        written = _run(composer, made, asked | given)
        ids, cache = written.sequences, written.past_key_values
        mask = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], dim=1)
        new = [_until(own, ends) for own in ids[:, width:].tolist()]
        answers = tokenizer.batch_decode(new, skip_special_tokens=True)
        over = [own[-1] in ends or _cut(text, stop) != text for own, text in zip(new, answers, strict=True)]
        if ids.shape[1] - width >= max_new_tokens or all(over):
            break
        last = [[*own, *more][-window:] for own, more in zip(tokens, new, strict=True)]
        made = choose([tokenizer.decode(own, skip_special_tokens=True) or text for own, text in zip(last, texts, strict=True)], last)
    return [Answer(query, _cut(text, stop), one) for query, text, one in zip(texts, answers, made, strict=True)]


def _run(composer: Composer, mixtures: Sequence[Mixture], asked: dict[str, Any]) -> Any:
    """`generate`, whose type transformers leaves open: one mixture on a built model, several mixed."""
    if all(one is mixtures[0] for one in mixtures):
        model: Any = composer.materialise(mixtures[0])
        return model.generate(**asked)
    with composer.mixed(mixtures) as model:
        return model.generate(**asked)


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first place where a text of `stop` begins."""
    return text[: min((place for mark in stop if (place := text.find(mark)) >= 0), default=len(text))]


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
