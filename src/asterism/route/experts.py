"""What a routed model is put together from: each model's MLPs, and the one attention, norms and embeddings that they share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal, get_args

from torch import Tensor

from asterism.core.errors import MismatchError, UnknownName
from asterism.core.progress import track
from asterism.models.changes import applied
from asterism.models.deltas import held, original
from asterism.models.library import Library

Attention = Literal["refuse", "generalist", "mean"]
"""What is done where specialists differ in more than their MLPs: refused, the generalist's taken, or the specialists' mean."""
GENERALIST = "generalist"
"""The generalist's name among the experts."""


def check_experts(library: Library, names: Sequence[str], attention: Attention = "refuse") -> None:
    """MismatchError naming the first parameters in which a specialist differs from the generalist outside the MLPs, under `refuse`.

    Every such parameter of every specialist named is read. Raises UnknownName for another word than those of `Attention`.
    """
    if attention not in get_args(Attention):
        raise UnknownName("way to treat attention", attention, get_args(Attention))
    if attention != "refuse":
        return
    shared = [parameter for parameter, role in library.anatomy.roles.items() if role != "mlp"]
    for name in track(names, "comparing attention"):
        if first := list(islice((parameter for parameter in shared if library.change(name, parameter) is not None), 3)):
            met = f"{name} changes {', '.join(first)}" + (", ..." if len(first) == 3 else "")
            mend = 'fine-tune the MLPs alone (method "mlp"), or choose attention="generalist" or attention="mean" for all other parameters'
            raise MismatchError("Experts share everything but their MLPs; this specialist does not.", met=met, mend=mend)


def expert_tensor(library: Library, name: str, parameter: str) -> Tensor:
    """A model's own value of a parameter, in the library's dtype and in memory of its own; low-rank changes are made dense."""
    change = None if name == GENERALIST else library.change(name, parameter)
    return applied(library.tensor(parameter), change, library.anatomy.output_axes[parameter]).clone()  # what is read lies in a mapped file


def shared_tensor(library: Library, parameter: str, names: Sequence[str], attention: Attention = "refuse") -> Tensor:
    """The one value of a parameter outside the MLPs: the generalist's, or with `mean` the mean over the specialists named.

    The mean is taken in float32 or wider and rounded once.
    """
    changed = [own for own in (held(library, name, parameter) for name in names) if own is not None] if attention == "mean" else []
    if not changed:
        return library.tensor(parameter).clone()
    base = original(library, parameter)
    mean = base.clone()
    for own in changed:
        mean += (own - base) / len(names)
    return mean.to(library.dtype)
