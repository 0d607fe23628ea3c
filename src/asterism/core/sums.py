"""Sums whose every rounding is fixed: the same bits on one thread or many, in the C kernel and in torch.

Elements are dealt to chunks of 65536, these to tiles of 512, these to 16 rows of 32 lanes. Rows are added in order, then tiles, then
the 32 lanes by halves, then chunks: short chains that vectorise, and little error.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK, TILE, LANES = 1 << 16, 512, 32
_ROWS = TILE // LANES


def chunk_sums(x: Tensor) -> Tensor:
    """[..., n] float64 -> [..., chunks] float64: the sum of each chunk of 65536, the last one shorter."""
    n = x.shape[-1]
    multiple = TILE if n < CHUNK else CHUNK
    x = torch.nn.functional.pad(x, (0, -n % multiple)).unflatten(-1, (-1, min(multiple * -(-n // multiple), CHUNK)))
    tiles = _in_order(x.unflatten(-1, (-1, _ROWS, LANES)), -2)  # [..., chunks, tiles, lanes]
    lanes = _in_order(tiles, -2)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def total(chunks: Tensor) -> Tensor:
    """[..., chunks] -> [...]: chunk sums added in order."""
    return _in_order(chunks, -1)


def _in_order(x: Tensor, axis: int) -> Tensor:
    parts = x.unbind(axis)
    result = torch.zeros_like(parts[0])
    for part in parts:
        result += part
    return result
