"""Answer texts: each with the model that it needs. One text runs on a built model, several run mixed in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import DataError
from asterism.models.batching import pad_id, tokenise
from asterism.models.library import Library


@dataclass(frozen=True)
class Answer:
    """A query, what the composed model wrote after it, and the mixture that wrote it."""

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
) -> list[Answer]:
    """Continue every text under its own mixture; temperature 0 is greedy. Answers do not depend on their neighbours when greedy.

    Raises DataError when a text leaves no room for new tokens within the model's positions.
    """
    composition = composition or CompositionSettings()
    mixtures = constellation.mixtures(texts, mixture or _asked(constellation, composition))
    ids, mask = _left_padded(library, texts, max_new_tokens)
    composer = Composer(library, composition)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    torch.manual_seed(seed)
    asked: dict[str, Any] = dict(
        input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, pad_token_id=pad_id(library.tokenizer), **sampling
    )
    if len(texts) == 1:
        written = _continued(composer.materialise(mixtures[0]), asked)
    else:
        with composer.mixed(mixtures) as model:
            written = _continued(model, asked)
    new = library.tokenizer.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    return [Answer(query, text, made) for query, text, made in zip(texts, new, mixtures, strict=True)]


def _asked(constellation: Constellation, composition: CompositionSettings) -> MixtureSettings:
    """The default mixture, of at most the domains there are; weights per node where the node map asks for them."""
    k = min(MixtureSettings().top_k, len(constellation.domains))
    per_module = composition.node_map == "per_module"
    return MixtureSettings(top_k=k, mode="nodes", per_module=True) if per_module else MixtureSettings(top_k=k)


def _continued(model: Any, asked: dict[str, Any]) -> Tensor:
    """`generate`, whose type transformers leaves open: token ids [B, T + new]."""
    return model.generate(**asked)


def _left_padded(library: Library, texts: Sequence[str], room: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both [B, T], padded on the left so that every row's next token is its answer's first."""
    positions = getattr(library.config, "max_position_embeddings", None)
    tokens = tokenise(library.tokenizer, texts, max_length=2**31 - 1)
    longest = max(map(len, tokens))
    if positions and longest + room > positions:
        mend = f"shorten the text or ask for fewer new tokens: the model has {positions} positions"
        raise DataError("A text leaves no room for its answer.", met=f"{longest} tokens + {room} new ones", mend=mend)
    ids = torch.full((len(tokens), longest), pad_id(library.tokenizer))
    mask = torch.zeros_like(ids)
    for row, own in enumerate(tokens):
        ids[row, longest - len(own) :] = torch.tensor(own)
        mask[row, longest - len(own) :] = 1
    return ids.to(library.device), mask.to(library.device)
