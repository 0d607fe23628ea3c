"""The transfer net: the target's blocks ask, the sources' blocks answer, and what comes back is a change of the target's blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from asterism.fuse.settings import FusionSettings
from asterism.fuse.tokens import Tokens


class Transfer(NamedTuple):
    """What a net gives for L layers at once."""

    delta: Tensor
    """[L, asking, height, rank]: the predicted change of the target's blocks that asked, alpha taken in."""
    embeddings: Tensor
    """[L, T + S, width]: every token as the encoder sees it, positions not added."""


class TransferNet(nn.Module):
    """One net for all layers of one function (HeteroFusion). height, rank: of a block; places: tokens a layer, target's and sources'.

    Encoder: LayerNorm of the block; Linear and GELU of its rows one after the other, and of its columns, added; times the gate
    clamp(relu(MLP(singular values) + mu_gate), 0, 1), the SVD-guided denoising; LayerNorm. Transfer: learned positions are added, and
    target tokens attend to source tokens (several heads, padding masked, no residual path: what is predicted comes from the sources).
    Decoder: Linear, GELU, Linear, the last zero at first, times alpha, which is learned. The paper does not give the MLP's
    activation (GELU here) nor whether there is a residual path.
    """

    def __init__(self, height: int, rank: int, width: int, places: int, settings: FusionSettings) -> None:
        super().__init__()
        size = height * rank
        self.height, self.rank, self.mu_gate = height, rank, settings.mu_gate
        self.norm = nn.LayerNorm(size)
        self.by_rows, self.by_columns = nn.Linear(size, width), nn.Linear(size, width)
        hidden = max(width // 4, 1)
        self.gate = nn.Sequential(nn.Linear(rank, hidden), nn.GELU(), nn.Linear(hidden, width)) if settings.gate else None
        self.after = nn.LayerNorm(width)
        self.places = nn.Parameter(0.02 * torch.randn(places, width))
        self.attention = nn.MultiheadAttention(width, settings.heads, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, size))
        self.alpha = nn.Parameter(torch.tensor(settings.alpha))
        last = self.decoder[2]
        nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, blocks: Tensor, values: Tensor, absent: Tensor, *, target: int, first: int) -> Transfer:
        """blocks, values and absent [L, T + S, ...] as in `Tokens`; target: T, of which those from `first` ask."""
        embeddings = self.encoded(blocks, values)
        placed = embeddings + self.places
        asking, answers = placed[:, first:target], placed[:, target:]
        heard, _ = self.attention(asking, answers, answers, key_padding_mask=absent[:, target:], need_weights=False)
        delta = self.alpha * self.decoder(heard)
        return Transfer(delta.unflatten(2, (self.height, self.rank)), embeddings)

    def encoded(self, blocks: Tensor, values: Tensor) -> Tensor:
        """[..., height * rank], [..., rank] -> [..., width]."""
        rows = self.norm(blocks)
        columns = rows.unflatten(-1, (self.height, self.rank)).transpose(-1, -2).flatten(-2)
        seen = gelu(self.by_rows(rows)) + gelu(self.by_columns(columns))
        return self.after(seen if self.gate is None else seen * self.openings(values))

    def openings(self, values: Tensor) -> Tensor:
        """Singular values [..., rank] -> how far each entry's gate stands open, [..., width] in [0, 1]; ones where there is no gate."""
        if self.gate is None:
            return values.new_ones(*values.shape[:-1], len(self.after.weight))
        return (self.gate(values) + self.mu_gate).clamp(0, 1)


def net_for(tokens: Tokens, width: int, settings: FusionSettings, seed: int) -> TransferNet:
    """A net for one function's tokens, its first weights drawn from the seed; the process's own random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TransferNet(tokens.height, tokens.rank, width, tokens.blocks.shape[1], settings)
