"""How a vLLM model is made to mix: its layers keep their own forward, kernels and collectives.

A linear layer's product is asked of its `quant_method`, before bias, reduction and gathering; that object is replaced, so a sharded layer
mixes its shard and reduces once, as it would anyway. A norm runs with a weight of one and is multiplied by each token's own vector.
"""

# pyright: reportMissingImports=false
# vLLM is no dependency: users bring the build for their machine.
from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, LayerNorm, RMSNorm
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod, VocabParallelEmbedding

from asterism.core.errors import SettingsError, UnsupportedError
from asterism.models.anatomy import Anatomy
from asterism.models.changes import Change, LowRank
from asterism.serve.vllm import ops
from asterism.serve.vllm.cuts import Cut
from asterism.serve.vllm.mixing import Coefficients, Product
from asterism.serve.vllm.sites import Head, Matrix, Parameter, Step, Vectors, local_tail, looked_up

NORMS = (RMSNorm, GemmaRMSNorm, LayerNorm, nn.LayerNorm, nn.RMSNorm)
Owners = Mapping[str, Sequence[tuple[str, str]]]
"""Parameter -> (module, its name there) of all modules that hold it."""


def owners_of(model: nn.Module) -> dict[str, list[tuple[str, str]]]:
    """Who holds each parameter; to be asked before weights are packed away."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, list[tuple[str, str]]] = {}
    for path, module in model.named_modules():
        for local, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(names[id(parameter)], []).append((path, local))
    return found


class Patched:
    """A loaded model whose tokens each run under their own mixture: what its specialists changed, and the places where it acts."""

    def __init__(
        self, model: nn.Module, cuts: Mapping[str, Cut], owners: Owners, anatomy: Anatomy, coefficients: Coefficients, *, dtype: torch.dtype
    ) -> None:
        self.model, self.cuts, self.owners, self.anatomy, self.coefficients = model, cuts, owners, anatomy, coefficients
        self.dtype, self.step, self.fixed = dtype, Step(), False
        """`fixed`: the model has been compiled or captured, so that no new place can begin to mix."""
        self.parameters: dict[str, Parameter] = {}
        self._matrices: list[Matrix] = []
        self._vectors: list[Vectors] = []
        self._begun: set[str] = set()

    def add(self, specialists: Mapping[str, Mapping[str, Change]], generalist: Callable[[str], Tensor]) -> None:
        """Hold what specialists change, by name and the library's parameters; places that they are the first to change begin to mix.

        SettingsError for specialists that come when the model is fixed, UnsupportedError for a layer that cannot mix.
        """
        if self.fixed and specialists:
            mend = "start with enforce_eager=True, or start again"
            raise SettingsError("A compiled model takes no more specialists.", met=", ".join(specialists), mend=mend)
        for name, changes in specialists.items():
            tails = self._tails(changes, generalist)
            for parameter in tails.keys() - self.parameters.keys():
                self._check(parameter)
            slot = next(slot for slot in range(1, len(self.coefficients.places) + 2) if slot not in self.coefficients.places.values())
            self.coefficients.places[name] = slot
            for parameter, tail in tails.items():
                self.parameters.setdefault(parameter, Parameter(self.cuts[parameter])).tails[slot] = tail
        self._bind()

    def drop(self, name: str) -> None:
        """Forget a specialist that no request runs with. Its memory stays in use where graphs hold it."""
        slot = self.coefficients.places[name]
        if self.fixed:
            return
        for parameter in self.parameters.values():
            parameter.tails.pop(slot, None)
        for matrix in self._matrices:
            matrix.products.pop(slot, None)
        del self.coefficients.places[name]
        self._bind()

    def nbytes(self) -> dict[str, int]:
        """Specialist -> bytes of what it changes on this worker."""

        def size(tail: Tensor | LowRank) -> int:
            return tail.nbytes if isinstance(tail, Tensor) else tail.up.nbytes + tail.down.nbytes

        places = self.coefficients.places
        return {
            name: sum(size(each.tails[slot]) for each in self.parameters.values() if slot in each.tails) for name, slot in places.items()
        }

    def lay(self, keys: Sequence[str | None], counts: Sequence[int]) -> None:
        """The next forward runs requests under these compositions, with so many tokens each."""
        self.step.even = self.coefficients.lay(keys, counts)
        self.step.tokens, self.step.requests = sum(counts), len(counts)

    def rest(self) -> None:
        """The next forward runs the generalist."""
        self.coefficients.rest()
        self.step.even, self.step.tokens, self.step.requests = True, None, 0

    def _tails(self, changes: Mapping[str, Change], generalist: Callable[[str], Tensor]) -> dict[str, Tensor | LowRank]:
        found = {}
        for name, cut in self.cuts.items():
            tail = local_tail(cut, changes, generalist, self.anatomy.output_axes)
            if isinstance(tail, LowRank):
                found[name] = LowRank(self._placed(tail.up), self._placed(tail.down))
            elif tail is not None:
                found[name] = self._placed(tail)
        return found

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.coefficients.device, self.dtype)

    def _bind(self) -> None:
        self.coefficients.forget_layouts()
        self.coefficients.banks.clear()
        for parameter in self.parameters.values():
            parameter.bound(self.coefficients)
        for name in list(self.parameters):
            for path, _ in self.owners[name]:
                self._begin(path)
        for vectors in self._vectors:
            vectors.made(self.coefficients.slots)
        for matrix in self._matrices:
            matrix.made()
        self.rest()

    # ---- places

    def _check(self, name: str) -> None:
        for path, _ in self.owners[name]:
            module = self.model.get_submodule(path)
            method = getattr(module, "quant_method", None)
            linear = isinstance(module, LinearBase) and isinstance(method, UnquantizedLinearMethod | _Mixed)
            table = isinstance(module, VocabParallelEmbedding) and isinstance(method, UnquantizedEmbeddingMethod | _Mixed)
            if not (linear or table or isinstance(module, NORMS) or type(module) is nn.Embedding):
                met = f"{type(module).__name__} at {path}" + ("" if method is None else f" with {type(method).__name__}")
                mend = "serve this model with the local engine, or without quantisation"
                raise UnsupportedError("A layer of vLLM's model cannot mix.", met=met, mend=mend)

    def _begin(self, path: str) -> None:
        """Make a module mix, once for all its parameters."""
        if path in self._begun:
            return
        self._begun.add(path)
        module = self.model.get_submodule(path)
        if isinstance(module, NORMS):
            self._norm(path, module)
        elif isinstance(module, VocabParallelEmbedding):
            self._table(path, module)
        elif isinstance(module, nn.Embedding):
            self._plain_table(path, module)
        else:
            self._linear(path, module)

    def _held(self, path: str) -> dict[str, str]:
        """Of a module's parameters that are the library's: its own name for each -> the model's."""
        return {local: name for name, held in self.owners.items() for where, local in held if where == path and name in self.cuts}

    def _parameter(self, name: str) -> Parameter:
        if name not in self.parameters:
            self.parameters[name] = Parameter(self.cuts[name])
            self.parameters[name].bound(self.coefficients)
        return self.parameters[name]

    def _vector(self, name: str, own: Tensor) -> Vectors:
        self._vectors.append(Vectors(self._parameter(name), self.step, own.detach()))
        return self._vectors[-1]

    def _linear(self, path: str, module: Any) -> None:
        held, inner = self._held(path), module.quant_method
        bias = self._vector(held["bias"], module.bias) if "bias" in held and module.bias is not None else None
        own = lambda x, bias: inner.apply(module, x, bias)  # noqa: E731
        matrix = Matrix(self._parameter(held["weight"]), self.step, own, lambda tail: _product(module, inner, tail), bias)
        self._matrices.append(matrix)
        module.quant_method = _Mixed(inner, matrix, None)

    def _table(self, path: str, module: Any) -> None:
        """An embedding, a head, or both in one."""
        inner, parameter = module.quant_method, self._parameter(self._held(path)["weight"])
        head = table = None
        if isinstance(module, ParallelLMHead) or getattr(self.model, "lm_head", None) is module:
            head = Head(parameter, self.step, lambda x, bias: inner.apply(module, x, bias), lambda tail: _product(module, inner, tail))
        if not isinstance(module, ParallelLMHead):
            table = Matrix(parameter, self.step, lambda ids, _: inner.embedding(module, ids), looked_up)
            module.use_fused_embedding = False  # it would not ask the quant_method
        self._matrices += [each for each in (head, table) if each is not None]
        module.quant_method = _Mixed(inner, head, table)

    def _plain_table(self, path: str, module: Any) -> None:
        original = module.forward
        table = Matrix(self._parameter(self._held(path)["weight"]), self.step, lambda ids, _: original(ids), looked_up)
        width, dtype = module.weight.shape[1], module.weight.dtype
        place = ops.placed(table.run, lambda ids: ids.new_empty(*ids.shape, width, dtype=dtype))
        module.forward = lambda ids: ops.run(place, ids)
        self._matrices.append(table)

    def _norm(self, path: str, module: Any) -> None:
        held = self._held(path)
        weight = self._vector(held["weight"], module.weight)
        bias = self._vector(held["bias"], module.bias) if "bias" in held and module.bias is not None else None
        plus = 1.0 if isinstance(module, GemmaRMSNorm) else 0.0
        unit, original = _unit(module, plus), module.forward

        def scaled(y: Tensor, _: Tensor | None = None) -> Tensor:
            factor = weight.at(y)
            factor = (weight.table[:1] if factor is None else factor) + plus
            found = y.float() * _beside(factor, y)
            if bias is not None:
                added = bias.at(y)
                found = found + _beside(bias.table[:1] if added is None else added, y)
            return found.to(y.dtype)

        place = ops.placed(scaled, torch.empty_like)

        def forward(x: Tensor, *rest: Any) -> Any:
            if not torch.compiler.is_compiling() and weight.idle(x) and (bias is None or bias.idle(x)):
                return original(x, *rest)
            y = unit(x, *rest)
            return (ops.run(place, y[0]), *y[1:]) if isinstance(y, tuple) else ops.run(place, y)

        module.forward = forward


class _Mixed:
    """Stands in for a layer's `quant_method`."""

    def __init__(self, inner: Any, matrix: Matrix | None, table: Matrix | None) -> None:
        self._inner = inner
        if matrix is not None:
            width = len(matrix.parameter.cut.rows)
            self._matrix = ops.placed(matrix.run, lambda x: x.new_empty(x.shape[0], width))
        if table is not None:
            dtype, size = _dtype_of(table.parameter), len(table.parameter.cut.rows)
            self._table = ops.placed(table.run, lambda ids: ids.new_empty(ids.shape[0], size, dtype=dtype))

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's outputs, each token under its own mixture."""
        return ops.run(self._matrix, x, bias)

    def embedding(self, layer: nn.Module, input_: Tensor) -> Tensor:
        """What the layer looks up, each token under its own mixture."""
        return ops.run(self._table, input_)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _dtype_of(parameter: Parameter) -> torch.dtype:
    tail = next(iter(parameter.tails.values()))
    return tail.dtype if isinstance(tail, Tensor) else tail.up.dtype


def _beside(vectors: Tensor, y: Tensor) -> Tensor:
    """[tokens or 1, n] beside y [tokens, ..., n]; padded tokens get nothing."""
    if 1 < len(vectors) < y.shape[0]:
        vectors = torch.cat([vectors, vectors.new_zeros(y.shape[0] - len(vectors), vectors.shape[1])])
    return vectors.view(len(vectors), *[1] * (y.ndim - 2), -1)


def _product(module: Any, inner: Any, tail: Tensor) -> Product:
    """A specialist's matrix under the layer's own kernels: a copy of the layer, packed as the layer itself was."""
    shadow = copy.copy(module)
    shadow.__dict__ = dict(module.__dict__)
    shadow._parameters = {"weight": nn.Parameter(tail, requires_grad=False), "bias": None}
    shadow.__dict__.pop("cpu_linear", None)
    inner.process_weights_after_loading(shadow)
    return lambda x: inner.apply(shadow, x, None)


def _unit(module: Any, plus: float) -> Any:
    """The norm itself, with a weight of one and no bias."""
    shadow = copy.copy(module)
    shadow.__dict__ = dict(module.__dict__)
    shadow._parameters = dict(module._parameters)
    for local, parameter in shadow._parameters.items():
        if parameter is not None:
            neutral = torch.full_like(parameter.data, 1 - plus) if local == "weight" else torch.zeros_like(parameter.data)
            shadow._parameters[local] = nn.Parameter(neutral, requires_grad=False)
    shadow.__dict__.pop("forward", None)
    if hasattr(shadow, "_forward_method"):
        shadow._forward_method = shadow.dispatch_forward(compile_native=False)
    return shadow
