"""What a text asks of the library, told layer by layer: who holds the most nodes of each block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.weights import entropy_bits
from asterism.models.library import Library


def explain(library: Library, constellation: Constellation, text: str, settings: MixtureSettings | None = None) -> dict[str, Any]:
    """Coefficients of all domains (Eq. 5), shares of the mixture, its entropy in bits (Eq. 11), and holders by block.

    `nodes`: each specialist's part of the hidden nodes at which it weighs most. `layers`: the same over all module outputs of a
    block, from signatures taken at every module. JSON-able.
    """
    wanted = (settings or MixtureSettings()).changed(per_module=True)
    mixture = constellation.mixture(text, wanted)
    entropy = entropy_bits(mixture.weights)
    return {
        "text": text,
        "coefficients": dict(zip(constellation.domains, constellation.coefficients(text).tolist(), strict=True)),
        "specialists": list(mixture.specialists),
        "shares": mixture.shares,
        "entropy": float(entropy.mean()),
        "largest_entropy": float(torch.tensor(float(len(mixture.specialists))).log2()),
        "nodes": held(mixture.specialists, [mixture.weights]),
        "layers": [_layer(library, mixture, block) for block in range(library.anatomy.n_blocks)],
        "settings": wanted.model_dump(mode="json"),
    }


def held(names: Sequence[str], weights: Sequence[Tensor]) -> dict[str, float]:
    """Part of the nodes at which each specialist weighs most; weights are [K, out] each, all nodes count alike."""
    first = torch.cat([rows.argmax(dim=0) for rows in weights])  # [nodes]
    return {name: float((first == i).float().mean()) for i, name in enumerate(names)}


def _layer(library: Library, mixture: Mixture, block: int) -> dict[str, Any]:
    path = library.anatomy.block_path(block)
    own = {name.removeprefix(f"{path}."): rows for name, rows in mixture.modules.items() if name == path or name.startswith(f"{path}.")}
    parts = held(mixture.specialists, list(own.values()))
    modules = {name: max(found := held(mixture.specialists, [rows]), key=found.__getitem__) for name, rows in own.items()}
    return {"layer": block, "most": max(parts, key=parts.__getitem__), "held": parts, "modules": modules}
