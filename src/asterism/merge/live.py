"""A live model put together parameter by parameter, from what the specialists hold for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from asterism.core.errors import DataError
from asterism.core.progress import track
from asterism.models.deltas import held, original
from asterism.models.library import Library
from asterism.models.loading import build
from asterism.models.types import PreTrainedModel

Rule = Callable[[str, Mapping[str, Tensor]], Tensor]
"""(parameter, specialist -> its tensor) -> the merged tensor, all float32 or wider."""


def mean_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """The mean of tensors of one shape; equal ones stay what they are."""
    first, *others = tensors.values()
    result = first.clone()
    for tensor in others:
        result += (tensor - first) / len(tensors)
    return result


def merged(library: Library, names: Sequence[str], rule: Rule) -> PreTrainedModel:
    """The model whose parameters are rule's; one that none of `names` changes is the generalist's. See `assembled`.

    A parameter of every specialist is in memory at a time, in alphabetical order of their names: the library's changes nothing.
    DataError for no names.
    """
    if not names:
        raise DataError("There is nothing to merge.", met="a library without specialists", mend="train or add specialists")

    def entry(parameter: str) -> Tensor | None:
        own = {name: held(library, name, parameter) for name in sorted(names)}
        if all(tensor is None for tensor in own.values()):
            return None
        base = original(library, parameter)
        return rule(parameter, {name: base if tensor is None else tensor for name, tensor in own.items()})

    return assembled(library, entry)


@torch.no_grad()
def assembled(library: Library, entry: Callable[[str], Tensor | None]) -> PreTrainedModel:
    """A model of its own whose parameters are `entry(parameter)`, rounded once; the generalist's where that is None.

    DataError where a result does not fit the library's dtype.
    """
    tensors = {}
    for parameter in track(list(library.anatomy.shapes), "merging"):
        wide = entry(parameter)
        tensor = (library.tensor(parameter) if wide is None else wide).to(library.dtype, copy=True)
        if not bool(tensor.isfinite().all()):
            mend = "open the library in a wider dtype"
            raise DataError(f"A merged weight does not fit in {library.dtype}.", met=parameter, mend=mend)
        tensors[parameter] = tensor
    return build(library.config, tensors, library.dtype, folder=library.folder()).requires_grad_(True)
