"""Where a specialist's change sits: how much of it lies in the embeddings, the blocks, the norms and the head."""

from __future__ import annotations

from math import prod
from typing import Any

from asterism.models.changes import Dense
from asterism.models.library import Library


def change_shares(library: Library) -> list[dict[str, Any]]:
    """One row a part of the model, means over the specialists.

    `share`: of the squared norm of the whole delta; `parameters`: of the parameters; `relative`: norm of the delta over the
    generalist's own.
    """
    sizes: dict[str, float] = {}
    deltas: dict[str, list[float]] = {}
    own: dict[str, float] = {}
    anatomy = library.anatomy
    for name, shape in anatomy.shapes.items():
        part = part_of(anatomy, name)
        sizes[part] = sizes.get(part, 0) + prod(shape)
        tensor = library.tensor(name).double()
        own[part] = own.get(part, 0.0) + float(tensor.square().sum())
        for place, specialist in enumerate(library.names):
            change = library.change(specialist, name)
            if change is None:
                continue
            delta = change.tensor.double() - tensor if isinstance(change, Dense) else change.delta(anatomy.output_axes[name]).double()
            deltas.setdefault(part, [0.0] * len(library.names))[place] += float(delta.square().sum())
    wholes = [sum(part[place] for part in deltas.values()) for place in range(len(library.names))]
    return [
        {
            "part": part,
            "share": sum(value / whole for value, whole in zip(values, wholes, strict=True)) / len(wholes),
            "parameters": sizes[part] / sum(sizes.values()),
            "relative": sum((value / own[part]) ** 0.5 for value in values) / len(values),
        }
        for part, values in deltas.items()
    ]


def part_of(anatomy: Any, name: str) -> str:
    """`first blocks`, `last blocks` (halves), or the role of what lies outside the blocks."""
    block = anatomy.block_of(name)
    if block is None:
        return anatomy.role_of(name)
    return "first half of the blocks" if block < anatomy.n_blocks / 2 else "second half of the blocks"
