"""Weighted sums of whole tensors in one pass over memory: out <- sum_i w_i * theta_i, a weight for each output node.

Composing is bound by memory, so what counts is to read every tensor once and write the result once. A small C kernel does that
(`_mix.c`, built at installation where there is a compiler); without it, or on other devices and layouts, a cache-blocked torch
path does it in one to three times the time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from asterism.core.errors import MismatchError, UnsupportedError
from asterism.core.kernels import kernel

_kernel = kernel("_mix")

_LEVEL = len(_kernel.levels()) - 1 if _kernel else 0  # the best that this processor runs
_ACCUMULATORS = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
_KERNEL_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_CHUNK_BYTES = 1 << 20  # of `out`, what a thread takes at a time
_STREAM_BYTES = 1 << 20  # of `out`, from which the result bypasses the cache: it would not stay there
_BLOCK = 1 << 18  # elements a thread, of the torch path's blocks: operators are called rarely enough, accumulators stay in cache
_DEVICE_BLOCK = 1 << 22  # elements, on accelerators: bounds the float32 temporaries


def backend() -> Literal["native", "torch"]:
    """Which path CPU tensors take: the C kernel, or torch operators (no kernel was built, or ASTERISM_KERNEL=torch)."""
    wish = os.environ.get("ASTERISM_KERNEL") or ("torch" if _kernel is None else "native")
    if wish not in ("native", "torch"):
        raise UnsupportedError("ASTERISM_KERNEL names no kernel.", met=repr(wish), mend="native or torch, or leave it unset")
    if wish == "native" and _kernel is None:
        raise UnsupportedError(
            "The native kernel was not built.", met="ASTERISM_KERNEL=native", mend="install with a C compiler, or leave it unset"
        )
    return wish


def mix_into(out: Tensor, tensors: Sequence[Tensor], weights: Sequence[Tensor], axis: int) -> None:
    """out <- sum_i weights_i * tensors_i, each weight broadcast along `axis`: 0 for a Linear's [out, in], 1 for a Conv1D's [in, out].

    out and tensors_i: one shape, dtype (float16, bfloat16, float32, float64) and device; weights_i: [size of that axis] or [1].
    Sums run in the order given, in float32 (float64 for float64), and are rounded once to out's dtype, to nearest even; NaN and
    Inf propagate. No gradient. Temporaries are of cache size. With the
    kernel, neither threads nor the processor change a bit.
    Raises MismatchError (counts, shapes, dtypes, devices, lengths, `out` overlapping a tensor), UnsupportedError (dtype).
    """
    tensors, weights = tuple(tensors), tuple(weights)
    _check(out, tensors, weights, axis)
    if out.numel() == 0:
        return
    weights = tuple(weight.to(out.device, _ACCUMULATORS[out.dtype]) for weight in weights)
    plain = out.is_cpu and out.dtype in _KERNEL_DTYPES and out.is_contiguous() and all(tensor.is_contiguous() for tensor in tensors)
    if plain and backend() == "native":
        mix_native(out, tensors, weights, axis)
    else:
        with torch.no_grad():
            mix_torch(out, tensors, weights, axis)


def _check(out: Tensor, tensors: tuple[Tensor, ...], weights: tuple[Tensor, ...], axis: int) -> None:
    shape, dtype, device = out.shape, out.dtype, out.device
    if not tensors or len(tensors) != len(weights):
        met = f"{len(tensors)} tensors, {len(weights)} weights"
        raise MismatchError("Mixing takes one weight vector a tensor, and at least one tensor.", met=met, mend="give as many of each")
    if dtype not in _ACCUMULATORS:
        raise UnsupportedError("Tensors of this dtype cannot be mixed.", met=dtype, mend="one of " + ", ".join(map(str, _ACCUMULATORS)))
    begin, end = _extent(out)
    for index, tensor in enumerate(tensors):
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
            met = f"tensor {index} is {_kind(tensor)}, out is {_kind(out)}"
            raise MismatchError("Tensors to mix differ in shape, dtype or device.", met=met, mend="convert them to out's first")
        other_begin, other_end = _extent(tensor)
        if begin < other_end and other_begin < end and not out.is_meta:
            raise MismatchError("out overlaps a tensor to mix.", met=f"tensor {index}", mend="give out memory of its own")
    for index, weight in enumerate(weights):
        if weight.shape == (1,):
            continue
        if not -len(shape) <= axis < len(shape):
            raise MismatchError("No such axis to mix along.", met=f"axis {axis} of {_kind(out)}", mend="0 for [out, in], 1 for [in, out]")
        if weight.shape != (shape[axis],):
            met = f"weights {index} are {list(weight.shape)}, axis {axis} of {_kind(out)}"
            raise MismatchError(
                "A weight vector does not fit its axis.", met=met, mend="a vector with one weight for each node, or one for all"
            )


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Addresses from the first element to past the last; of interleaved views, all that lies between."""
    begin = tensor.data_ptr()
    if tensor.is_contiguous() or tensor.numel() == 0:
        return begin, begin + tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return begin, begin + (last + 1) * tensor.itemsize


# The two paths. Both take weights in the accumulator's dtype on out's device, and trust `_check`.


def mix_torch(out: Tensor, tensors: tuple[Tensor, ...], weights: tuple[Tensor, ...], axis: int) -> None:
    """Any device and strides: blocks of leading rows whose accumulator stays in cache, a few operators each."""
    factors = [weight.reshape(_broadcast(weight.numel(), axis, out.ndim)) for weight in weights]
    rows = max(1, _block(out) // max(1, prod(out.shape[1:])))
    cut = [factor.split(rows) if out.ndim and len(factor) > 1 else None for factor in factors]
    pieces = zip(*(t.split(rows) if out.ndim else (t,) for t in (out, *tensors)), strict=True)
    buffers: tuple[Tensor, ...] = ()
    for index, (piece, *parts) in enumerate(pieces):
        by = [factor if slices is None else slices[index] for factor, slices in zip(factors, cut, strict=True)]
        if piece.dtype == weights[0].dtype:  # the result's place is accumulator enough
            torch.mul(parts[0], by[0], out=piece)
            for part, factor in zip(parts[1:], by[1:], strict=True):
                piece.addcmul_(part, factor)
            continue
        if not buffers or buffers[0].shape != piece.shape:
            buffers = tuple(torch.empty(piece.shape, dtype=weights[0].dtype, device=out.device) for _ in range(2))
        total, wide = buffers
        total.copy_(parts[0]).mul_(by[0])
        for part, factor in zip(parts[1:], by[1:], strict=True):
            total.addcmul_(wide.copy_(part), factor)
        piece.copy_(total)


def _broadcast(size: int, axis: int, ndim: int) -> list[int]:
    shape = [1] * ndim
    if size > 1:
        shape[axis] = size
    return shape


def _block(out: Tensor) -> int:
    """Elements a block: both float32 buffers together never outgrow a half-precision tensor, unless that is small."""
    return min(_BLOCK * torch.get_num_threads() if out.is_cpu else _DEVICE_BLOCK, max(_BLOCK, out.numel() // 4))


def mix_native(
    out: Tensor,
    tensors: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    axis: int,
    *,
    level: int = _LEVEL,
    stream: bool | None = None,
    chunk: int = _CHUNK_BYTES,
) -> None:
    """Contiguous CPU tensors: one pass of the C kernel; torch's threads take chunks of `chunk` bytes until none is left.

    level: index into the kernel's `levels()`, by default the best; stream: whether the result bypasses the cache, by default by size.
    """
    columns, period, by_column = _layout(out.shape, axis, uniform=all(weight.numel() == 1 for weight in weights))
    length = columns if by_column else period
    weights = tuple((weight if weight.numel() == length else weight.expand(length)).contiguous() for weight in weights)
    stream = out.nbytes >= _STREAM_BYTES if stream is None else stream
    addresses = out.data_ptr(), tuple(t.data_ptr() for t in tensors), tuple(w.data_ptr() for w in weights)
    step, dtype = max(1, chunk // out.itemsize), _KERNEL_DTYPES[out.dtype]
    _kernel.mix(level, dtype, *addresses, columns, period, by_column, stream, out.numel(), step, torch.get_num_threads())
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _layout(shape: Sequence[int], axis: int, *, uniform: bool) -> tuple[int, int, bool]:
    """Contiguous memory as rows for the kernel: (columns, period, by_column), row r weighed by column or by weight r % period."""
    if uniform:
        return prod(shape), 1, False
    inner = prod(shape[axis:][1:])
    return (shape[axis], 1, True) if inner == 1 else (inner, shape[axis], False)
