"""Which execution of many mixtures is cheaper: one mixed batch, or one built model after another.

Per sequence of T tokens, P parameters of which a share s is composed from K specialists:
mixed runs the composed share K times, (1 + (K - 1) s) 2 P T operations; materialised moves (K + 1) s P values once and
then runs 2 P T operations on a batch of one, paying the launch overhead of every module again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asterism.compose.plan import composed_parameters
from asterism.compose.settings import CompositionSettings
from asterism.models.anatomy import Anatomy


@dataclass(frozen=True)
class Machine:
    """Rough speeds of a kind of device; only their ratios matter."""

    operations: float
    """Multiply-adds and adds a second in a large matrix product."""
    bandwidth: float
    """Bytes a second moved by materialising."""
    overhead: float
    """Seconds a module call costs beside its arithmetic."""


MACHINES = {
    "cpu": Machine(operations=1e11, bandwidth=2.5e10, overhead=3e-5),
    "cuda": Machine(operations=1e14, bandwidth=1.5e12, overhead=2e-5),
}
MODULES_A_BLOCK = 8


def cheaper(
    anatomy: Anatomy, settings: CompositionSettings, *, k: int, tokens: float, rows: int, device: str
) -> Literal["mixed", "materialised"]:
    """The cheaper execution for sequences of `tokens` tokens that run `rows` a batch, each with its own mixture of `k` specialists."""
    machine = MACHINES.get(device.split(":")[0], MACHINES["cpu"])
    sizes = {name: _numel(shape) for name, shape in anatomy.shapes.items()}
    total = sum(sizes.values())
    share = sum(sizes[name] for name in composed_parameters(anatomy, settings)) / total
    forward = 2 * total * tokens / machine.operations
    calls = machine.overhead * MODULES_A_BLOCK * anatomy.n_blocks
    mixed = (1 + (k - 1) * share) * (forward + calls / rows)
    built = forward + 2 * calls + 4 * (k + 1) * share * total / machine.bandwidth
    return "mixed" if mixed <= built else "materialised"


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
