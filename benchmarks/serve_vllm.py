"""vLLM under mixtures beside vLLM alone and beside vLLM's own LoRA, in one process, round by round; to be run where vLLM is installed.

    python benchmarks/serve_vllm.py [--quick] [--rounds N] [--eager]

A Qwen2 shape of about 27 M parameters in float32, four full specialists of the last half of its blocks, 64-token prompts, 64 new tokens,
16 and 64 requests at a time. `plain`: vLLM with the generalist alone. `mixed`: every request its own mixture of three specialists.
`single`: every request the same one specialist, as a mixture of weight 1. `LoRA`: four adapters of rank 16 on the linear modules of the
same blocks, a request each in turn. The bound is `plain` divided by 1 + (K - 1) s, s being the mixed blocks' share of a step's arithmetic.
Random weights; speed does not depend on them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import options, report
from libraries import NAMES, random_tokenizer

from asterism.models.adapters import write_adapter
from asterism.models.anatomy import anatomy_of
from asterism.models.changes import LowRank
from asterism.models.library import Library
from asterism.models.scratch import new_model

K, PROMPT, NEW = 3, 64, 64
LOADS = (16, 64)
SIDES = ("plain", "mixed", "single", "LoRA")
RANK = 16


def prepare(root: Path, *, hidden: int, blocks: int, vocabulary: int) -> Library:
    """A generalist, four specialists of its last half and four adapters of the same blocks beside it."""
    tokenizer = random_tokenizer(vocabulary)
    model = new_model("qwen2", tokenizer, hidden=hidden, blocks=blocks)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    anatomy = anatomy_of(model)
    upper = anatomy.parameters_of(set(range(blocks // 2, blocks)))
    for seed, name in enumerate(("generalist", *NAMES)):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in upper if seed else ():
                model.get_parameter(parameter).add_(0.01 * torch.randn(anatomy.shapes[parameter], generator=generator))
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        model.load_state_dict(kept)
        if seed:
            drawn = {each: _random_pair(anatomy.shapes[each], generator) for each in upper if anatomy.is_linear(each)}
            write_adapter(root / f"{name}-lora", drawn, str((root / "generalist").resolve()), anatomy)
    return Library.create(root, "generalist", {name: name for name in NAMES})


def _random_pair(shape: Sequence[int], generator: torch.Generator) -> LowRank:
    up, down = torch.randn(shape[0], RANK, generator=generator), torch.randn(RANK, shape[1], generator=generator)
    return LowRank(0.02 * up, 0.02 * down)


def mixed_share(library: Library) -> float:
    """s: of a new token's multiply-adds (matrices, head, attention at mid-answer), those in the composed matrices."""
    anatomy, config = library.anatomy, library.config
    sizes = {name: shape[0] * shape[1] for name, shape in anatomy.shapes.items() if len(shape) == 2}
    head = anatomy.vocabulary * anatomy.hidden_size
    blocks = {name: size for name, size in sizes.items() if anatomy.block_of(name) is not None}
    attention = (
        2 * (PROMPT + NEW // 2) * config.num_attention_heads * (anatomy.hidden_size // config.num_attention_heads) * anatomy.n_blocks
    )
    composed = anatomy.parameters_of(set(range(anatomy.n_blocks // 2, anatomy.n_blocks)))
    upper = sum(blocks.get(name, 0) for name in composed)
    return upper / (sum(blocks.values()) + head + attention)


class Bench:
    """The engines, all alive, one measured at a time."""

    def __init__(self, library: Library, eager: bool) -> None:
        self.library, self.eager = library, eager
        self.engines: dict[str, Any] = {}
        self._number = 0

    async def start(self) -> None:
        """vLLM three times: alone, with our worker, with LoRA."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from asterism.serve.vllm import guard
        from asterism.serve.vllm.engine import WORKER

        guard.install()
        root = self.library.root.resolve()
        common: dict[str, Any] = dict(
            model=str(root / "generalist"), dtype="float32", skip_tokenizer_init=True, max_num_seqs=max(LOADS), max_model_len=PROMPT + NEW,
            enable_prefix_caching=False, kv_cache_memory_bytes=2**29, enforce_eager=self.eager, disable_log_stats=True,
        )  # fmt: skip
        own: dict[str, dict[str, Any]] = {
            "plain": {},
            "mixed": {"worker_cls": WORKER, "additional_config": {guard.CONFIG: {"library": str(root)}}},
            "LoRA": {"enable_lora": True, "max_loras": 4, "max_lora_rank": RANK},
        }
        made = [asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs(**common, **more)) for more in own.values()]
        self.engines.update(zip(own, await asyncio.gather(*made), strict=True))
        self.engines["single"] = self.engines["mixed"]

    def stop(self) -> None:
        """All of them."""
        for engine in {id(engine): engine for engine in self.engines.values()}.values():
            engine.shutdown()
        self.engines.clear()

    async def rate(self, side: str, load: int) -> float:
        """Tokens a second of `load` requests at once."""
        drawn = random.Random(self._number)
        prompts = [[drawn.randrange(1, self.library.anatomy.vocabulary) for _ in range(PROMPT)] for _ in range(load)]
        asked = [self._asked(side, place, drawn) for place in range(load)]
        start = time.perf_counter()
        written = await asyncio.gather(*[self._answer(side, *each) for each in zip(prompts, asked, strict=True)])
        assert sum(written) == load * NEW
        return load * NEW / (time.perf_counter() - start)

    def _asked(self, side: str, place: int, drawn: random.Random) -> tuple[dict[str, Any], Any]:
        from asterism.constellation.mixture import Mixture
        from asterism.serve.jobs import Composition
        from asterism.serve.vllm.payload import FIELD, payload_of

        names = list(self.library.names)
        if side == "LoRA":
            from vllm.lora.request import LoRARequest

            name = names[place % len(names)]
            return {}, LoRARequest(name, 1 + place % len(names), str(self.library.root.resolve() / f"{name}-lora"))
        if side == "plain":
            return {}, None
        parts = [drawn.random() + 0.1 for _ in range(K)]
        shares = (
            {names[0]: 1.0} if side == "single" else dict(zip(drawn.sample(names, K), (part / sum(parts) for part in parts), strict=True))
        )
        return {FIELD: payload_of(Composition(Mixture.fixed(shares, self.library.anatomy.hidden_size)))}, None

    async def _answer(self, side: str, prompt: list[int], asked: tuple[dict[str, Any], Any]) -> int:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        extra, adapter = asked
        self._number += 1
        params = SamplingParams(
            max_tokens=NEW, temperature=0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA, extra_args=extra or None
        )
        events = self.engines[side].generate({"prompt_token_ids": prompt}, params, str(self._number), lora_request=adapter)
        return sum([len(event.outputs[0].token_ids) async for event in events])


async def measured(bench: Bench, rounds: int) -> dict[tuple[str, int], list[float]]:
    """Tokens a second by side and load, a number a round; a round before them, of the smaller load, is thrown away."""
    await bench.start()
    found: dict[tuple[str, int], list[float]] = {(side, load): [] for side in SIDES for load in LOADS}
    try:
        for round_ in range(-1, rounds):
            for load in LOADS if round_ >= 0 else LOADS[:1]:
                for side in SIDES:
                    rate = await bench.rate(side, load)
                    print(f"{side} at {load}: {rate:.0f} tokens/s" + (" (warming up)" if round_ < 0 else ""), file=sys.stderr, flush=True)
                    if round_ >= 0:
                        found[side, load].append(rate)
    finally:
        bench.stop()
    return found


def main() -> None:
    """Measure, or say that there is no vLLM."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    given = parser.parse_args()
    if importlib.util.find_spec("vllm") is None:
        metrics: dict[str, float | None] = dict.fromkeys(
            ("vllm_bound_ratio", "vllm_bound_ratio_16", "vllm_lora_ratio", "vllm_lora_ratio_16", "vllm_single_cost")
        )
        report("serve_vllm", "vLLM under mixtures", ("", "tokens/s"), [], metrics, notes=["vLLM is not installed here"])
        return
    with tempfile.TemporaryDirectory() as place:
        shape = dict(hidden=64, blocks=2, vocabulary=512) if given.quick else dict(hidden=512, blocks=8, vocabulary=8192)
        library = prepare(Path(place), **shape)
        found = asyncio.run(measured(Bench(library, given.eager), 1 if given.quick else given.rounds))
    share = mixed_share(library)
    slower = 1 + (K - 1) * share

    def ratio(side: str, other: str, load: int) -> float:
        return statistics.median(mine / theirs for mine, theirs in zip(found[side, load], found[other, load], strict=True))

    metrics = {
        "vllm_bound_ratio": ratio("mixed", "plain", 64) * slower,
        "vllm_bound_ratio_16": ratio("mixed", "plain", 16) * slower,
        "vllm_lora_ratio": ratio("mixed", "LoRA", 64),
        "vllm_lora_ratio_16": ratio("mixed", "LoRA", 16),
        "vllm_single_cost": 1 / ratio("single", "plain", 64),
        "vllm_single_cost_16": 1 / ratio("single", "plain", 16),
    }
    rows = [(side, *(statistics.median(found[side, load]) for load in LOADS)) for side in SIDES]
    rows.append(("bound", *(statistics.median(found["plain", load]) / slower for load in LOADS)))
    size = sum(torch.Size(shape).numel() for shape in library.anatomy.shapes.values()) / 1e6
    notes = [f"{size:.1f} M parameters; s = {share:.3f}, so the bound is plain / {slower:.3f}; {'eager' if given.eager else 'compiled'}"]
    columns = ("tokens/s", *(f"{load} at once" for load in LOADS))
    report("serve_vllm", "vLLM under mixtures", columns, rows, metrics, notes=notes)


if __name__ == "__main__":
    main()
