"""Full specialists as what matters of their change: the leading singular directions of each matrix, and the rank that suffices.

A matrix of low rank is read almost for free beside the generalist's, so that a mixed batch runs about as fast as the generalist alone.
LoRA specialists are of low rank as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.core.lowrank import nearest_low_rank
from asterism.core.progress import track
from asterism.models.anatomy import Anatomy
from asterism.models.changes import Change, Dense, LowRank, applied
from asterism.models.library import Library
from asterism.models.likelihood import read

LADDER = (2, 4, 8, 16, 32, 64, 128)
"""Ranks that are tried."""
NATS = 0.01
"""How far a specialist's mean loss on held-out texts of its domain may move, in nats a token."""


def truncated(change: Change | None, parameter: str, own: Tensor, anatomy: Anatomy, rank: int) -> Change | None:
    """The nearest change of at most that rank, where that makes it smaller; vectors, embeddings and low-rank changes stay as they are.

    own: the generalist's tensor. Factors are in float32, or wider where it is.
    """
    if not isinstance(change, Dense) or not anatomy.is_linear(parameter) or rank * sum(own.shape) >= own.numel():
        return change
    wide = torch.promote_types(own.dtype, torch.float32)
    delta = change.tensor.to(wide) - own.to(wide)
    return LowRank(*nearest_low_rank(delta if anatomy.output_axes[parameter] == 0 else delta.mT.contiguous(), rank))


@dataclass(frozen=True)
class RankChoice:
    """The least rank that suffices, and what was measured."""

    rank: int | None
    """None: none of those tried is enough."""
    moved: Mapping[str, Mapping[int, float]]
    """Specialist -> rank -> how far its mean loss moved, in nats a token; ranks up to the first that is enough for it."""


@torch.no_grad()
def least_rank(
    library: Library, texts: Mapping[str, Sequence[str]], *, nats: float = NATS, ladder: Sequence[int] = LADDER, max_length: int = 256
) -> RankChoice:
    """The least rank of `ladder` at which no specialist's mean loss on its texts moves by more than `nats`.

    `texts`: held-out texts of each specialist's domain; specialists without are not judged. One specialist is held at a time.
    Raises UnknownName for a specialist that the library lacks, DataError where there are no texts, SettingsError for an empty ladder.
    """
    ladder = sorted(set(ladder))
    if not ladder or ladder[0] < 1:
        raise SettingsError("Ranks are whole numbers from 1 on.", met=list(ladder), mend="e.g. 4, 8, 16")
    if not texts:
        raise DataError("There is nothing to judge a rank by.", met="no texts", mend="give held-out texts of the specialists' domains")
    moved = {name: _moved(library, name, own, nats, ladder, max_length) for name, own in track(list(texts.items()), "ranks")}
    needed = [next((rank for rank, far in found.items() if far <= nats), None) for found in moved.values()]
    return RankChoice(None if None in needed else max(rank for rank in needed if rank is not None), moved)


def _moved(library: Library, name: str, texts: Sequence[str], nats: float, ladder: Sequence[int], max_length: int) -> dict[int, float]:
    """Rank -> distance from the specialist's own mean loss, up to the first rank that is near enough."""
    if name not in library.names:
        raise UnknownName("specialist", name, library.names)
    anatomy, model = library.anatomy, library.fresh_model()
    parameters = dict(model.named_parameters())
    exact = {parameter: library.change(name, parameter) for parameter in parameters}
    short = {parameter: truncated(change, parameter, library.tensor(parameter), anatomy, ladder[-1]) for parameter, change in exact.items()}

    def loss() -> float:
        return float(read(model, library.tokenizer, texts, max_length=max_length)[1].nanmean())

    for parameter, change in exact.items():
        parameters[parameter].copy_(applied(library.tensor(parameter), change, anatomy.output_axes[parameter]))
    whole, found = loss(), dict[int, float]()
    for rank in ladder:
        for parameter, change in short.items():
            own = library.tensor(parameter)
            if change is not exact[parameter]:
                assert isinstance(change, LowRank)
                cut = LowRank(change.up[:, :rank], change.down[:rank])  # leading directions come first
            else:
                cut = truncated(change, parameter, own, anatomy, rank)
            parameters[parameter].copy_(applied(own, cut, anatomy.output_axes[parameter]))
        found[rank] = abs(loss() - whole)
        if found[rank] <= nats:
            break
    return found
