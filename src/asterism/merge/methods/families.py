"""The three ways to carry a method out: weighted sums, sparse sums, and functions of every entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asterism.core.errors import MismatchError
from asterism.core.gram import accumulator, gram, not_finite
from asterism.core.mixing import mix_into
from asterism.core.sifting import SparseSum, finite, sparse_sum
from asterism.merge.methods.combinations import Split
from asterism.merge.methods.method import Method, Parameter, arguments_for, parameters_of

_BLOCK = 1 << 20  # entries at a time, of what is merged entry by entry


@dataclass(frozen=True)
class Combination(Method):
    """function(gram [..., K, K], **parameters) -> coefficients [..., K]."""

    split: Callable[..., Split] | None = None
    """function(**parameters of its own) -> what is merged by itself."""

    def coefficients(self, gram: Tensor, bound: Mapping[str, Any]) -> Tensor:
        """[..., K, K] -> [..., K] float64."""
        return self.function(gram, **arguments_for(self.function, bound))

    def keeps(self, count: int, bound: Mapping[str, Any], *, based: bool) -> bool:
        alike = torch.ones(count, count, dtype=torch.float64)
        return based or abs(float(self.coefficients(alike, bound).sum()) - 1) < 1e-9

    def _own_parameters(self) -> dict[str, Parameter]:
        return super()._own_parameters() | (parameters_of(self.split) if self.split else {})

    def _try(self, count: int, bound: Mapping[str, Any]) -> None:
        self.coefficients(torch.eye(count, dtype=torch.float64), bound)

    def _into(
        self, out: Tensor, tensors: tuple[Tensor, ...], base: Tensor | None, bound: Mapping[str, Any], keys: tuple[int, ...], name: str
    ) -> None:
        split = self.split(**arguments_for(self.split, bound)) if self.split and out.ndim > 1 else "whole"
        flat = [_vectors(tensor, split) for tensor in tensors]
        origin = None if base is None else _vectors(base, split)
        if self.blind:
            products = torch.eye(len(flat), dtype=torch.float64)
        elif split == "columns":
            products = gram([x.T for x in flat], None if origin is None else origin.T, by_row=True, name=name)
        else:
            products = gram(flat, origin, by_row=split == "rows", name=name)
        weights = self.coefficients(products, bound).reshape(-1, len(flat))  # [1 or vectors, K]
        if origin is not None:
            flat, weights = [origin, *flat], torch.cat([1 - weights.sum(-1, keepdim=True), weights], dim=-1)
        _mix(out.view(flat[0].shape), flat, weights, axis=1 if split == "columns" else 0)


def _vectors(tensor: Tensor, split: Split) -> Tensor:
    """As a matrix whose rows (or columns) are merged by themselves."""
    if split == "whole":
        return tensor.reshape(1, -1)
    return tensor.reshape(-1, tensor.shape[-1]) if split == "rows" else tensor.reshape(tensor.shape[0], -1)


def _mix(out: Tensor, tensors: Sequence[Tensor], weights: Tensor, axis: int) -> None:
    """mix_into, also for inputs of several dtypes: these are widened first."""
    columns = weights.unbind(-1)
    if all(tensor.dtype == out.dtype for tensor in tensors):
        mix_into(out, tensors, columns, axis)
        return
    wide = torch.empty_like(out, dtype=accumulator(out, *tensors))
    mix_into(wide, [tensor.to(wide.dtype) for tensor in tensors], columns, axis)
    out.copy_(wide)


@dataclass(frozen=True)
class Sparse(Method):
    """function(K, keys= where it draws, **parameters) -> SparseSum."""

    @property
    def draws(self) -> bool:
        """Whether it needs a `stream_key` for each model."""
        return "keys" in self.function.__annotations__

    def how(self, count: int, bound: Mapping[str, Any], keys: Sequence[int] = ()) -> SparseSum:
        """The sum that `core.sifting.sparse_sum` carries out. Raises MismatchError without a key for each model, if it draws."""
        if not self.draws:
            return self.function(count, **arguments_for(self.function, bound))
        if len(keys) != count:
            met = f"{len(keys)} keys, {count} models"
            raise MismatchError(
                f"{self.name} draws what it keeps: it takes a key a model.", met=met, mend="keys=[stream_key(seed, tensor, model), ...]"
            )
        return self.function(count, keys=keys, **arguments_for(self.function, bound))

    def _try(self, count: int, bound: Mapping[str, Any]) -> None:
        self.how(count, bound, range(count))

    def _into(
        self, out: Tensor, tensors: tuple[Tensor, ...], base: Tensor | None, bound: Mapping[str, Any], keys: tuple[int, ...], name: str
    ) -> None:
        origin = torch.zeros_like(tensors[0]) if base is None else base
        sparse_sum(origin, tensors, self.how(len(tensors), bound, keys), out, name=name)


@dataclass(frozen=True)
class Elementwise(Method):
    """function(stack [K, *shape] float32 or float64, **parameters) -> [*shape]."""

    pointwise: bool = False
    """Each entry is merged by itself, so blocks of a tensor can be."""

    def _into(
        self,
        out: Tensor,
        tensors: tuple[Tensor, ...],
        base: Tensor | None,
        bound: Mapping[str, Any],
        keys: tuple[int, ...],
        name: str,
    ) -> None:
        arguments = arguments_for(self.function, bound)
        sources = tensors if base is None else (*tensors, base)
        dtype = accumulator(*sources)
        if not self.pointwise:
            self._part(out, sources, base is not None, dtype, arguments, name)
            return
        for part, *pieces in zip(*(tensor.view(-1).split(_BLOCK) for tensor in (out, *sources)), strict=True):
            self._part(part, pieces, base is not None, dtype, arguments, name)

    def _part(
        self, out: Tensor, sources: Sequence[Tensor], based: bool, dtype: torch.dtype, arguments: Mapping[str, Any], name: str
    ) -> None:
        count = len(sources) - based
        stack = torch.empty(count, *out.shape, dtype=dtype, device=out.device)
        for place, tensor in zip(stack, sources[:count], strict=True):
            place.copy_(tensor)
            if based:
                place -= sources[-1]
        if not finite(stack):
            raise not_finite(name)
        merged = self.function(stack, **arguments)
        out.copy_(merged + sources[-1] if based else merged)
