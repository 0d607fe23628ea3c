"""What a text asks of the library, told layer by layer: who holds the most nodes of each block."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from torch import Tensor

from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.models.library import Library


def explain(library: Library, constellation: Constellation, text: str, settings: MixtureSettings | None = None) -> dict[str, Any]:
    """Coefficients of all domains (Eq. 5), the evidence, shares of the mixture, its entropy in bits (Eq. 11), and holders by block.

    `losses`: the query's mean loss in nats a token under each candidate that read it, the generalist under `generalist`. `nodes` and
    `layers`: which of the chosen is most active where (Eq. 7): each one's part of the hidden nodes at which it weighs most, and the
    same over all module outputs of a block, from signatures taken at every module. JSON-able.
    """
    settings = settings or MixtureSettings()
    per_node = settings if settings.mode == "nodes" else MixtureSettings.paper(top_k=settings.top_k)
    active = constellation.mixture(text, per_node, per_module=True)
    mixture = active if settings.mode == "nodes" else constellation.mixture(text, settings)
    candidates = len(mixture.specialists) + bool(mixture.generalist)
    return {
        "text": text,
        "mode": settings.mode,
        "coefficients": dict(zip(constellation.domains, constellation.coefficients(text).tolist(), strict=True)),
        "specialists": list(mixture.specialists),
        "losses": mixture.evidence,
        "shares": mixture.shares,
        "generalist": mixture.generalist,
        "scale": mixture.scale,
        "entropy": mixture.entropy,
        "largest_entropy": log2(candidates),
        "nodes": held(active.specialists, [active.weights]),
        "layers": [_layer(library, active, block) for block in range(library.anatomy.n_blocks)],
        "settings": settings.model_dump(mode="json"),
        "calibration": constellation.calibration.model_dump(mode="json", exclude={"probes", "specialists"}),
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
