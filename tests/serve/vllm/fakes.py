"""A model as vLLM lays it out, in plain torch: projections packed, sharded over workers, a vocabulary padded, a matrix turned."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from asterism.models.anatomy import Anatomy

PACKED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
ROWS, TURNED = ("o_proj", "down_proj"), ("o_proj",)
"""Cut along inputs; held as [in, out]."""


def piece(tensor: Tensor, dim: int, rank: int, size: int) -> Tensor:
    """A worker's part of a tensor."""
    return tensor.chunk(size, dim)[rank]


class FakeShard(nn.Module):
    """One worker's parameters of a Qwen2 library, filled by a loader of its own."""

    def __init__(self, anatomy: Anatomy, rank: int, size: int, padding: int = 5) -> None:
        super().__init__()
        self.rank, self.size, self.padding = rank, size, padding
        self.held = nn.ParameterDict()
        whole = {name: torch.zeros(shape) for name, shape in anatomy.shapes.items()}
        for name, tensor in self._laid(whole).items():
            self.held[name] = nn.Parameter(torch.empty_like(tensor), requires_grad=False)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """As vLLM's: names and layouts of the library in, packed shards out."""
        for name, tensor in self._laid({name: tensor.float() for name, tensor in weights}).items():
            self.held[name].data.copy_(tensor)

    def _laid(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in whole.items():
            path, _, local = name.rpartition(".")
            block, _, own = path.rpartition(".")
            packed = next((each for each, parts in PACKED.items() if own in parts), None)
            if packed is not None:
                parts = [piece(whole[f"{block}.{part}.{local}"], 0, self.rank, self.size) for part in PACKED[packed]]
                found[self._key(f"{block}.{packed}.{local}")] = torch.cat(parts)
            elif own in ROWS:
                cut = piece(tensor, 1, self.rank, self.size)
                found[self._key(name)] = cut.T.contiguous() if own in TURNED else cut
            elif own == "embed_tokens":
                padded = torch.cat([tensor, tensor.new_zeros(self.padding, tensor.shape[1])])
                rows = -(-len(padded) // self.size)
                padded = torch.cat([padded, padded.new_zeros(rows * self.size - len(padded), tensor.shape[1])])
                found[self._key(name)] = padded[self.rank * rows : (self.rank + 1) * rows]
            elif own == "lm_head":
                found[self._key(name)] = piece(tensor, 0, self.rank, self.size)
            else:
                found[self._key(name)] = tensor
        return found

    @staticmethod
    def _key(name: str) -> str:
        return name.replace(".", "/")
