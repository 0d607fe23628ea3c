"""A fusion step beside a plain LoRA fine-tuning step of the same model, batch and accumulation: seconds in one process, memory in two.

    python benchmarks/fuse.py [--quick] [--rounds N]

Target: Llama shape of 71 M parameters (hidden 512, 12 blocks, 32,000 tokens) with a LoRA of rank 8 on every linear module; sources:
adapters of rank 8 and 4 on a GPT-2 shape (768, 12 blocks) and a Qwen2 shape (896, 24 blocks), of which there are configs alone. A step is
the paper's: 8 micro-batches of one text, here of 256 tokens, then clipping and AdamW. The nets are those of the default settings for a
target of this size (block 512, width 128: the paper's 4096 and 1024 at its hidden size of 4096). Memory is the largest anonymous resident
memory of a process that makes the model and takes two steps. Then the same fusion with sources of twice the blocks and vocabulary, and of
twice the width, where the sources' adapters themselves are twice as large. Random weights; speed does not depend on them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import interleaved, options, ratio, report
from merge import run
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from asterism.fuse.alignment import align
from asterism.fuse.experts import open_expert
from asterism.fuse.fusing import FusedForTraining
from asterism.fuse.prediction import Predictor
from asterism.fuse.settings import FusionSettings
from asterism.models.adapters import with_adapter, write_adapter
from asterism.models.anatomy import anatomy_of, skeleton
from asterism.models.changes import LowRank

SIDES = ("plain", "fused", "deep", "wide")
"""LoRA fine-tuning; fusion; fusion with sources of twice the blocks and vocabulary; of twice the width."""


def shapes(quick: bool) -> dict[str, tuple[PreTrainedConfig, int]]:
    """Target and the sources of each side: config and rank."""
    tenth = 8 if quick else 1
    llama = AutoConfig.for_model(
        "llama", hidden_size=512 // tenth, intermediate_size=1408 // tenth, num_hidden_layers=12 if not quick else 3,
        num_attention_heads=8, vocab_size=32000 // tenth, max_position_embeddings=512,
    )  # fmt: skip
    found = {"target": (llama, 8)}
    for side, deeper, wider in (("fused", 1, 1), ("deep", 2, 1), ("wide", 1, 2)):
        gpt2 = AutoConfig.for_model(
            "gpt2", n_embd=768 // tenth * wider, n_layer=12 * deeper, n_head=12, vocab_size=50257 * deeper, n_positions=1024
        )
        qwen2 = AutoConfig.for_model(
            "qwen2", hidden_size=896 // tenth * wider, intermediate_size=4864 // tenth * wider, num_hidden_layers=24 * deeper,
            num_attention_heads=14, num_key_value_heads=2, vocab_size=151936 * deeper,
        )  # fmt: skip
        found |= {f"{side}-gpt2": (gpt2, 8), f"{side}-qwen2": (qwen2, 4)}
    return found


def prepare(place: Path, quick: bool) -> None:
    """Every config, and an adapter of random factors on all linear weights of its blocks."""
    for number, (name, (config, rank)) in enumerate(shapes(quick).items()):
        config.save_pretrained(place / name)
        anatomy = anatomy_of(skeleton(config))
        generator = torch.Generator().manual_seed(number)
        changes = {}
        for parameter, shape in anatomy.shapes.items():
            if anatomy.block_of(parameter) is not None and len(shape) == 2:
                outputs, inputs = shape if anatomy.output_axes[parameter] == 0 else shape[::-1]
                up = 0.02 * torch.randn(outputs, rank, generator=generator)
                changes[parameter] = LowRank(up, torch.randn(rank, inputs, generator=generator) * inputs**-0.5)
        write_adapter(place / f"{name}-adapter", changes, str(place / name), anatomy)


def target_model(place: Path) -> Any:
    """The target with its adapter, in training mode."""
    torch.manual_seed(0)
    return with_adapter(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place / "target")), place / "target-adapter").train()


def fused(place: Path, side: str, model: Any) -> FusedForTraining:
    """The target under fusion with the sources of one side."""
    settings = FusionSettings()
    target = open_expert(place / "target", place / "target-adapter", "target", is_target=True)
    sources = {name: open_expert(place / f"{side}-{name}", place / f"{side}-{name}-adapter", name) for name in ("gpt2", "qwen2")}
    return FusedForTraining(model, Predictor(target, sources, align(target, sources, settings), settings)).train()


def stepper(module: Any, batches: Sequence[torch.Tensor]) -> Callable[[], None]:
    """One optimiser step over all batches."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=5e-5, fused=True)
    carry_back = getattr(module, "carry_back", None)

    def step() -> None:
        for ids in batches:
            (module(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)["loss"] / len(batches)).backward()
        if carry_back:
            carry_back()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return step


def texts(place: Path, quick: bool) -> list[torch.Tensor]:
    """Micro-batches [1, T] of random tokens."""
    count, length = (2, 32) if quick else (8, 256)
    vocabulary = AutoConfig.from_pretrained(place / "target").vocab_size
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (1, length), generator=generator) for _ in range(count)]


def worker(side: str, place: Path, quick: bool) -> None:
    """Two steps of one side, in a process of its own."""
    model = target_model(place)
    step = stepper(model if side == "plain" else fused(place, side, model), texts(place, quick))
    step()
    step()


def main() -> None:
    """Measure, compare, print."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--worker", nargs=2, metavar=("SIDE", "PLACE"), help="for this program's own use")
    given = parser.parse_args()
    if given.worker:
        return worker(given.worker[0], Path(given.worker[1]), given.quick)
    rounds, flags = (2, ["--quick"]) if given.quick else (given.rounds, [])
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        prepare(place, given.quick)
        peaks = {side: run([sys.executable, __file__, "--worker", side, folder, *flags])[1] for side in SIDES}
        batches, frozen = texts(place, given.quick), target_model(place)
        modules = {"plain": target_model(place), **{side: fused(place, side, frozen) for side in SIDES[1:]}}
        sizes = {side: sum(each.numel() for each in module.parameters() if each.requires_grad) for side, module in modules.items()}
        seconds = interleaved({side: stepper(module, batches) for side, module in modules.items()}, rounds)
    metrics: dict[str, float | None] = {
        "step_ratio": ratio(seconds["fused"], seconds["plain"]),
        "memory_ratio": peaks["fused"] / peaks["plain"],
    }
    for side in ("deep", "wide"):
        metrics |= {f"{side}_step_ratio": ratio(seconds[side], seconds["fused"]), f"{side}_memory_ratio": peaks[side] / peaks["fused"]}
    names = ("LoRA fine-tuning", "fusion", "fusion, sources of twice the blocks and vocabulary", "fusion, sources of twice the width")
    rows = [
        [name, statistics.median(seconds[side]), ratio(seconds[side], seconds["plain"]), peaks[side] / 1e9, peaks[side] / peaks["plain"],
         sizes[side] / 1e6]
        for name, side in zip(names, SIDES, strict=True)
    ]  # fmt: skip
    columns = ["", "s a step", "of LoRA's", "peak GB", "of LoRA's", "parameters trained, M"]
    whole = sum(parameter.numel() for parameter in frozen.parameters()) / 1e6
    title = f"One step over {len(batches)} x {batches[0].shape[1]} tokens, target of {whole:.0f} M parameters, median of {rounds}"
    report("fuse", title, columns, rows, metrics)


if __name__ == "__main__":
    main()
