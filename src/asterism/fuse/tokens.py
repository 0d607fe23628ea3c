"""What a transfer net reads of one function: the blocks of the target's and the sources' factors in every layer, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asterism.core.lowrank import Factors
from asterism.fuse.blocks import balanced, to_blocks


@dataclass(frozen=True, eq=False)
class Tokens:
    """L layers (target slots) of one function; the tokens of each are the target's T, then the sources' S, padded to the longest."""

    blocks: Tensor
    """[L, T + S, height * rank] float32, rows of a block one after the other."""
    values: Tensor
    """[L, T + S, rank] float32: each block's singular values, descending."""
    absent: Tensor
    """[L, T + S] bool: padding."""
    owners: Tensor
    """[L, S] int64: which source a token is of; -1 for padding."""
    height: int
    rank: int
    target_downs: int
    """How many of the T target tokens are blocks of A^T; they come first."""
    target: int
    """T."""


def tokens_of(targets: Sequence[Factors], sources: Sequence[Sequence[tuple[int, Factors]]], block: int) -> Tokens:
    """Tokens of one function: targets[l] is the target's (B [out, r], A [r, in]) in its own basis, sources[l] (source, (up, down)) of its
    partners, which are brought into `balanced` form.

    A module's tokens are the blocks of A^T, then those of B; the sources' follow one another. A block has `block` rows, or as many as the
    longest factor where that is shorter; its rank is the largest there is.
    """
    canonical = [[(source, balanced(*factors)) for source, factors in layer] for layer in sources]
    factors = [*targets, *(each for layer in canonical for _, each in layer)]
    height = min(block, max(max(up.shape[0], down.shape[1]) for up, down in factors))
    rank = max(up.shape[1] for up, _ in factors)

    def cut(factor: Tensor) -> Tensor:
        return to_blocks(factor.float(), height, rank)

    downs, ups = [cut(down.mT) for _, down in targets], [cut(up) for up, _ in targets]
    others, owners = [], []
    for layer in canonical:
        cuts = [(source, cut(each)) for source, (up, down) in layer for each in (down.mT, up)]
        others.append(torch.cat([blocks for _, blocks in cuts]))
        owners.append(torch.cat([torch.full((len(blocks),), source) for source, blocks in cuts]))
    parts = [_stacked(each) for each in (downs, ups, others)]
    whole = torch.cat([blocks for blocks, _ in parts], dim=1)  # [L, T + S, height, rank]
    values = torch.zeros(*whole.shape[:2], rank)
    values[..., : min(height, rank)] = torch.linalg.svdvals(whole)
    return Tokens(
        blocks=whole.flatten(2),
        values=values,
        absent=torch.cat([absent for _, absent in parts], dim=1),
        owners=torch.nn.utils.rnn.pad_sequence(owners, batch_first=True, padding_value=-1),
        height=height,
        rank=rank,
        target_downs=parts[0][0].shape[1],
        target=parts[0][0].shape[1] + parts[1][0].shape[1],
    )


def shuffled(factors: Factors, generator: torch.Generator) -> Factors:
    """The rows of `up` and, apart from them, the columns of `down` in random order: both keep their singular values."""
    up, down = factors
    return up[torch.randperm(len(up), generator=generator)], down[:, torch.randperm(down.shape[1], generator=generator)]


def _stacked(layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[n_l, height, rank] of L layers -> [L, max n, height, rank] with zeros, and [L, max n] bool: which of them are padding."""
    padded = torch.nn.utils.rnn.pad_sequence(list(layers), batch_first=True)
    counts = torch.tensor([len(layer) for layer in layers])
    return padded, torch.arange(padded.shape[1]) >= counts[:, None]
