"""Materialising a composition: K = 3 specialists into 4 layers of about 15 M parameters, beside the speed of the memory itself.

The limit is `torch.Tensor.copy_` over the same tensors (bytes read + written in its time; ours reads K tensors and writes one).
The rival is the sum of products that one writes first: a composed state, then loaded into the model's parameters. All memory is
touched before timing, and a dtype's tensors together are larger than the caches.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from common import interleaved, options, ratio, report
from torch import Tensor

from asterism.core.mixing import backend, mix_into

K = 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Parameter(NamedTuple):
    out: Tensor
    tensors: list[Tensor]
    weights: list[Tensor]
    axis: int

    def factors(self) -> list[Tensor]:
        """The weights shaped to broadcast, as the rivals need them."""
        return [weight[:, None] if self.out.ndim == 2 and self.axis == 0 else weight for weight in self.weights]


def shapes(width: int, *, conv1d: bool) -> Iterator[tuple[tuple[int, ...], int]]:
    """Parameters of a GPT-2 block, 12 width^2 of them and its vectors: (shape, output axis)."""
    for inputs, outputs in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        yield ((inputs, outputs), 1) if conv1d else ((outputs, inputs), 0)
        yield (outputs,), 0
    for _ in range(4):  # gains and biases of two norms
        yield (width,), 0


def tail(width: int, layers: int, dtype: torch.dtype) -> list[Parameter]:
    """Every parameter of the mixed layers; half the layers stored as Conv1D, half as Linear."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for layer in range(layers):
        for shape, axis in shapes(width, conv1d=layer % 2 == 0):
            tensors = [torch.randn(shape, generator=generator).to(dtype) for _ in range(K)]
            weights = list(torch.rand(K, shape[axis], generator=generator).softmax(0))
            parameters.append(Parameter(torch.zeros(shape, dtype=dtype), tensors, weights, axis))
    return parameters


def rivals(parameters: list[Parameter], dtype: torch.dtype, default: str) -> dict[str, Callable[[], object]]:
    factors = [parameter.factors() for parameter in parameters]

    def ours(kernel: str) -> None:
        os.environ["ASTERISM_KERNEL"] = kernel
        for parameter in parameters:
            mix_into(*parameter)

    def copy() -> None:
        for parameter in parameters:
            parameter.out.copy_(parameter.tensors[0])

    def naive() -> None:
        composed = [sum(w * t for w, t in zip(by, p.tensors, strict=True)) for by, p in zip(factors, parameters, strict=True)]
        for parameter, tensor in zip(parameters, composed, strict=True):
            parameter.out.copy_(tensor)  # type: ignore[arg-type]

    def products() -> None:
        for (a, b, c), parameter in zip(factors, parameters, strict=True):
            x, y, z = parameter.tensors
            (a * x + b * y + c * z).to(dtype)

    return {"copy": copy, "ours": lambda: ours(default), "torch": lambda: ours("torch"), "naive": naive, "products": products}


NAMES = {
    "copy": "copy_, the limit",
    "ours": "mix_into, {} kernel",
    "torch": "mix_into, torch path",
    "naive": "sum(w * t), then copy_",
    "products": "a*x + b*y + c*z",
}


@torch.no_grad()
def main() -> None:
    quick = options(__doc__).parse_args().quick
    width, layers, repetitions = (256, 2, 3) if quick else (1120, 4, 15)
    rows: list[list[object]] = []
    metrics: dict[str, float | None] = {}
    default = backend()
    for short, dtype in DTYPES.items():
        parameters = tail(width, layers, dtype)
        size = sum(parameter.out.nbytes for parameter in parameters)
        seconds = interleaved(rivals(parameters, dtype, default), repetitions)
        for name, times in seconds.items():
            moved = (2 if name == "copy" else K + 1) * size
            speed = moved / statistics.median(times) / 1e9
            of_copy, of_naive = ratio(seconds["copy"], times) * moved / (2 * size), ratio(seconds["naive"], times)
            rows.append([NAMES[name].format(default), short, 1e3 * statistics.median(times), speed, of_copy, of_naive])
            prefix = "" if name == "ours" else f"{name}_"
            metrics[f"{prefix}gb_s_{short}"] = speed
            if name in ("ours", "torch"):
                metrics |= {f"{prefix}copy_ratio_{short}": of_copy, f"{prefix}naive_speedup_{short}": of_naive}
    count = sum(parameter.out.numel() for parameter in parameters) / layers / 1e6
    title = f"Materialising K = {K} into {layers} layers of {count:.1f} M parameters, median of {repetitions}"
    report("compose", title, ["", "dtype", "ms", "GB/s", "of copy_", "times naive"], rows, metrics)


if __name__ == "__main__":
    main()
