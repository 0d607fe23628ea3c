"""Routing in one block beside its limit: the experts' own MLPs, run by themselves on the same tokens, and one gate.

    python benchmarks/route.py [--quick]

dense: every expert on every token. top 1: each token's strongest expert, so the limit is one MLP. two layers: the experts of this block
and the next. training: forward, and backward to the gate's weights and to the block's input, as the gates below need it; its limit
goes back to the input alone. Random weights; speed does not depend on them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from common import interleaved, options, ratio, report
from torch import Tensor, nn
from transformers import GPT2Config

from asterism.models.routed import RoutedConfig, RoutedForCausalLM, RoutedMLP

EXPERTS = ("medical", "legal", "code", "science")


def block(width: int, **settings: int) -> RoutedMLP:
    """What stands for the MLP in the first of two blocks."""
    shape = GPT2Config(vocab_size=8, n_embd=width, n_layer=2, n_head=4, n_positions=8, resid_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    model = RoutedForCausalLM(RoutedConfig(shape, EXPERTS, **settings)).eval().requires_grad_(False)
    return model.routed[0]


def apart(mlp: RoutedMLP, experts: Sequence[nn.Module], x: Tensor) -> Callable[[], object]:
    """The limit: one gate, and some experts by themselves."""
    return lambda: (mlp.gate(x), [expert(x) for expert in experts])


def backward(mlp: RoutedMLP, x: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of training through the routed block, and through its experts by themselves."""
    weights, inputs, ones = list(mlp.gate.parameters()), x.clone().requires_grad_(True), torch.ones_like(x)

    def routed() -> None:
        with torch.enable_grad():
            torch.autograd.grad(mlp(inputs), [*weights, inputs], ones)

    def limit() -> None:
        with torch.enable_grad():
            mlp.gate(inputs)
            for expert in mlp.reach:
                torch.autograd.grad(expert(inputs), inputs, ones)

    for weight in weights:
        weight.requires_grad_(True)
    return routed, limit


@torch.no_grad()
def main() -> None:
    """Measure, compare, print."""
    quick = options(__doc__).parse_args().quick
    width, tokens, rounds = (64, 64, 3) if quick else (512, 1024, 15)
    x = torch.randn(4, tokens // 4, width, generator=torch.Generator().manual_seed(0))
    dense, top, deep = block(width), block(width, num_experts_per_tok=1), block(width, depth=2)
    step, step_limit = backward(block(width), x)
    pairs = {
        "dense": ("dense, 4 experts", lambda: dense(x), apart(dense, dense.reach, x)),
        "top1": ("top 1 of 4 experts", lambda: top(x), apart(top, top.reach[:1], x)),
        "depth2": ("two layers, 8 experts", lambda: deep(x), apart(deep, deep.reach, x)),
        "training": ("training, 4 experts", step, step_limit),
    }
    rivals = {f"{name}{kind}": each for name, (_, *two) in pairs.items() for kind, each in zip(("", "_limit"), two, strict=True)}
    seconds = interleaved(rivals, rounds)
    metrics: dict[str, float | None] = {f"{name}_ratio": ratio(seconds[f"{name}_limit"], seconds[name]) for name in pairs}
    rows = [
        [title, 1e3 * statistics.median(seconds[name]), 1e3 * statistics.median(seconds[f"{name}_limit"]), metrics[f"{name}_ratio"]]
        for name, (title, *_) in pairs.items()
    ]
    metrics["top1_speedup"] = ratio(seconds["dense"], seconds["top1"])
    title = f"One routed block of width {width}, {tokens} tokens, median of {rounds}"
    report("route", title, ["", "ms", "experts alone, ms", "of their throughput"], rows, metrics)


if __name__ == "__main__":
    main()
