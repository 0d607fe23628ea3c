"""Answer texts: each with the model that it needs. One text runs on a built model, several run mixed in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.refining import refined
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import DataError
from asterism.models.batching import pad_id, tokenise
from asterism.models.library import Library


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
    renew: int = 0,
) -> list[Answer]:
    """Continue every text under its own mixture; temperature 0 is greedy. Answers do not depend on their neighbours when greedy.

    `refine`: gradient steps of each mixture on its text, each about three forward passes. `renew`: make the mixture again, after every so
    many new tokens (0: never), from as much of the end of text and answer as the index reads; keys and values are then computed again.
    Raises DataError when a text leaves no room for new tokens within the model's positions.
    """
    composition = composition or CompositionSettings()
    settings = mixture or _asked(constellation, composition)
    composer = Composer(library, composition)
    rows = _tokens(library, texts, max_new_tokens)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    asked: dict[str, Any] = dict(pad_token_id=pad_id(library.tokenizer), **sampling)
    torch.manual_seed(seed)

    def mixtures(read: Sequence[str], ids: Sequence[list[int]]) -> list[Mixture]:
        found = constellation.mixtures(read, settings)
        return [refined(composer, one, own, steps=refine) for one, own in zip(found, ids, strict=True)] if refine else found

    if renew:
        window = constellation.settings.max_length
        return [
            _renewed(composer, text, ids, mixtures, asked, max_new_tokens, renew, window) for text, ids in zip(texts, rows, strict=True)
        ]
    made = mixtures(texts, rows)
    ids, mask = _left_padded(library, rows)
    asked |= dict(input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens)
    if len(texts) == 1:
        written = _continued(composer.materialise(made[0]), asked)
    else:
        with composer.mixed(made) as model:
            written = _continued(model, asked)
    new = library.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    return [Answer(query, text, one) for query, text, one in zip(texts, new, made, strict=True)]


def _renewed(
    composer: Composer, text: str, ids: list[int], mixtures: Any, asked: dict[str, Any], room: int, every: int, window: int
) -> Answer:
    """One text, its mixture made again, from the last `window` tokens, after every `every` new ones."""
    tokenizer, end = composer.library.tokenizer, composer.library.tokenizer.eos_token_id
    written, made = list(ids), mixtures([text], [ids])[0]
    while (left := len(ids) + room - len(written)) > 0:
        whole = torch.tensor([written], device=composer.library.device)
        given = dict(input_ids=whole, attention_mask=torch.ones_like(whole), max_new_tokens=min(every, left))
        written = _continued(composer.materialise(made), asked | given)[0].tolist()
        if written[-1] == end or len(written) >= len(ids) + room:
            break
        last = written[-window:]
        made = mixtures([tokenizer.decode(last, skip_special_tokens=True)], [last])[0]
    return Answer(text, tokenizer.decode(written[len(ids) :], skip_special_tokens=True), made)


def _asked(constellation: Constellation, composition: CompositionSettings) -> MixtureSettings:
    """The default mixture, of at most the domains there are; weights per node where the node map asks for them."""
    k = min(MixtureSettings().top_k, len(constellation.domains))
    per_module = composition.node_map == "per_module"
    return MixtureSettings(top_k=k, mode="nodes", per_module=True) if per_module else MixtureSettings(top_k=k)


def _continued(model: Any, asked: dict[str, Any]) -> Tensor:
    """`generate`, whose type transformers leaves open: token ids [B, T + new]."""
    return model.generate(**asked)


def _tokens(library: Library, texts: Sequence[str], room: int) -> list[list[int]]:
    """Token ids of every text; DataError where an answer of `room` tokens does not fit behind one."""
    positions = getattr(library.config, "max_position_embeddings", None)
    tokens = tokenise(library.tokenizer, texts, max_length=2**31 - 1)
    longest = max(map(len, tokens))
    if positions and longest + room > positions:
        mend = f"shorten the text or ask for fewer new tokens: the model has {positions} positions"
        raise DataError("A text leaves no room for its answer.", met=f"{longest} tokens + {room} new ones", mend=mend)
    return tokens


def _left_padded(library: Library, tokens: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [B, T], padded on the left so that every row's next token is its answer's first."""
    longest = max(map(len, tokens))
    ids = torch.full((len(tokens), longest), pad_id(library.tokenizer))
    mask = torch.zeros_like(ids)
    for row, own in enumerate(tokens):
        ids[row, longest - len(own) :] = torch.tensor(own)
        mask[row, longest - len(own) :] = 1
    return ids.to(library.device), mask.to(library.device)
