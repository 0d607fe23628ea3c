"""Arrow: an expert's gate is the input direction that its training changed most; no data is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asterism.core.errors import UnsupportedError
from asterism.core.lowrank import nearest_low_rank, shortened
from asterism.core.progress import track
from asterism.models.adapters import with_arrow
from asterism.models.anatomy import Anatomy
from asterism.models.changes import LowRank
from asterism.models.deltas import delta_of
from asterism.models.library import Library
from asterism.route.experts import GENERALIST
from asterism.route.untrained import Gates, scale_of


@torch.no_grad()
def arrow_gates(library: Library, *, with_generalist: bool = False, temperature: float = 1.0) -> Gates:
    """Arrow for whole MLPs: softmax of |v x| / temperature, v the input direction that the expert's training changed most in the MLP.

    v is the top right singular vector of the changes of the MLP's input projections (gate and up), one on top of the other. An MLP that
    is the generalist's own has no such direction: v = 0, the least weight that Arrow gives. With fewer than all experts a token, Arrow
    makes their weights sum to 1 (`normalise`). Source: Ostapenko et al. 2024 (arXiv:2405.11157).
    """
    scale = scale_of(temperature)
    blocks = [_reading(library.anatomy, block) for block in range(library.anatomy.n_blocks)]
    experts = (*library.names, *([GENERALIST] if with_generalist else []))
    weights = torch.zeros(len(blocks), len(experts), library.anatomy.hidden_size)
    for place, name in enumerate(track(library.names, "Arrow")):
        for block, parameters in enumerate(blocks):
            weights[block, place] = _direction(library, name, parameters)
    return Gates(weights, experts, "absolute", scale)


def arrow_model(library: Library, *, top_k: int | None = None, temperature: float = 1.0, seed: int = 0) -> Any:
    """PEFT's Arrow over a library of LoRA specialists: a PeftModel that routes in every adapted module, not in MLPs alone.

    A token is answered by its `top_k` adapters, all by default (see `models.adapters.with_arrow`).
    Raises UnsupportedError for a specialist that is no adapter, MismatchError for adapters of different ranks or modules, SettingsError.
    """
    folders = {name: library.folder(name) for name in library.names}
    for name, folder in folders.items():
        if not (folder / "adapter_config.json").is_file():
            mend = "extract a LoRA from it (asterism extract-lora), or take arrow_gates"
            raise UnsupportedError("PEFT's Arrow routes between adapters.", met=f"{name} is a whole checkpoint", mend=mend)
    return with_arrow(library.fresh_model(), folders, top_k=top_k, temperature=temperature, seed=seed)


def _reading(anatomy: Anatomy, block: int) -> list[str]:
    """The weights of a block's MLP that read its input: all linear ones but the last, which writes its output."""
    inside = [name for name in anatomy.parameters_of({block}) if anatomy.role_of(name) == "mlp" and anatomy.is_linear(name)]
    return inside[:-1]


def _direction(library: Library, name: str, parameters: Sequence[str]) -> Tensor:
    """[d]: the top right singular vector of the stacked changes, zero where there are none."""
    changes = {parameter: change for parameter in parameters if (change := library.change(name, parameter)) is not None}
    if not changes:
        return torch.zeros(library.anatomy.hidden_size)
    if all(isinstance(change, LowRank) for change in changes.values()):
        up = torch.block_diag(*(change.up for change in changes.values()))  # pyright: ignore[reportAttributeAccessIssue]
        down = torch.cat([change.down for change in changes.values()])  # pyright: ignore[reportAttributeAccessIssue]
        return F.normalize(shortened(up, down, 1)[1][0], dim=0).cpu()
    deltas = [delta_of(library, change, parameter) for parameter, change in changes.items()]
    axes = [library.anatomy.output_axes[parameter] for parameter in changes]
    stacked = torch.cat([delta if axis == 0 else delta.mT for delta, axis in zip(deltas, axes, strict=True)])  # [out, d]
    return F.normalize(nearest_low_rank(stacked, 1)[1][0], dim=0).cpu()
