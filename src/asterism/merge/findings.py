"""What a merge finds out on its way: what its sources hold, and how far from each of them it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, cast

import torch
import xxhash
from torch import Tensor

from asterism.core.storage import digest_of
from asterism.merge.plan import Piece
from asterism.merge.sources import Opened

SAMPLE, BLOCK = 1 << 14, 1 << 10
"""Entries of a tensor that distances are measured on, and how many of them lie side by side."""


def content_digest(tensor: Tensor) -> str:
    """XXH3 (128 bits) of a tensor's dtype, shape and bytes: tells whether two files hold the same, at the speed of memory."""
    found = xxhash.xxh3_128(f"{tensor.dtype} {list(tensor.shape)}".encode())
    found.update(memoryview(cast("Any", tensor.contiguous().reshape(-1).view(torch.uint8).numpy())))
    return found.hexdigest()


def model_digest(digests: Mapping[str, str]) -> str:
    """One digest of a model from those of its tensors by name: whatever files they lie in, in whatever order they were read."""
    return digest_of(sorted(digests.items()))


def distances(merged: Tensor, sources: Sequence[Tensor]) -> list[list[float]]:
    """[|merged - source|^2, |source|^2] for each source of the same shape, estimated on evenly spread blocks; [] for another shape."""
    mine = _sample(merged)
    factor = merged.numel() / max(1, len(mine))
    found = []
    for source in sources:
        theirs = _sample(source) if source.shape == merged.shape else None
        found.append([] if theirs is None else [factor * float((mine - theirs).square().sum()), factor * float(theirs.square().sum())])
    return found


def summary(notes: Sequence[Mapping[str, Any]], pieces: Sequence[Piece], models: Sequence[Opened]) -> list[dict[str, Any]]:
    """For each model: how many of its tensors went in, one digest of them all, and the merge's relative distance from them."""
    content: list[dict[str, str]] = [{} for _ in models]
    apart, size = [0.0] * len(models), [0.0] * len(models)
    for note, piece in zip(notes, pieces, strict=True):
        for source, digest, measured in zip(piece.sources, note["digests"], note["distances"], strict=True):
            content[source.model][source.name] = digest
            if measured:
                apart[source.model] += measured[0]
                size[source.model] += measured[1]
    return [
        {
            "model": str(model.reference),
            "tensors": len(content[number]),
            "digest": model_digest(content[number]),
            "distance": sqrt(apart[number] / size[number]) if size[number] else None,
        }
        for number, model in enumerate(models)
    ]


def _sample(tensor: Tensor) -> Tensor:
    """At most SAMPLE entries, float64: all of a small tensor, else blocks at even distances."""
    flat = tensor.reshape(-1)
    if len(flat) <= SAMPLE:
        return flat.double()
    count = SAMPLE // BLOCK
    starts = [place * (len(flat) - BLOCK) // (count - 1) for place in range(count)]
    return torch.cat([flat[start : start + BLOCK] for start in starts]).double()
