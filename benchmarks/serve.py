"""The local engine under mixtures beside plain `generate` of the generalist, in one process, round by round.

    python benchmarks/serve.py [--quick] [--rounds N] [--dtype float32|bfloat16] [--rank N]

A Qwen2 shape of about 27 M parameters, four full specialists of the last half of its blocks, 64-token prompts, 64 new tokens. `plain`:
transformers' `generate` of the generalist alone, 16 prompts in one batch. `mixed`: 16 requests at once, each with its own mixture of
K = 3 specialists whose weights sum to 1. `evidence`: the same with a fifth of the weight on the generalist, as evidence mixtures have it:
K + 1 matrices. `LoRA`: mixtures of four adapters of rank 16 on the same blocks, exactly. `truncated`: the full specialists as their leading
`--rank` singular directions: 64 unless given, what `asterism.serve.local.lowrank.least_rank` found enough for full specialists of width 256
trained on prose (0.01 nats; random weights could not tell). The bound is `plain` divided by 1 + (K - 1) s, s being the mixed blocks' share
of a step's arithmetic. `one by one`: each request composed and generated after the other (4 of the 16, scaled up). One request alone, its
mixture chosen by evidence: tokens a second after the first beside `generate` of the generalist, and the time to the first token beside what
is allowed: the generalist's and K specialists' reading of the prompt and 1.3 times a copy of the composed tail. Memory: what the tenth
specialist costs beside what the second did, in anonymous resident memory. Random weights; speed does not depend on them. vLLM's engine
has a benchmark of its own, serve_vllm.py.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import interleaved, options, ratio, report
from libraries import random_texts
from merge import anonymous
from serve_vllm import NEW, PROMPT, K, mixed_share, prepare
from transformers.utils import logging

from asterism.compose.composer import Composer
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.core.progress import quiet
from asterism.models.library import Library
from asterism.serve.jobs import Composition, Finished, Job, Sampling, Tokens, Wish
from asterism.serve.local.engine import LocalEngine
from asterism.serve.local.execution import Executor
from asterism.serve.local.settings import LocalSettings

ROWS, ONE_BY_ONE, COPY = 16, 4, 1.3
TAILS_GB = 0.25
"""Few tails, so that a new one takes an old one's memory from the warm-up on, as in a server that has run for a while."""
SPECIALISTS = 10
"""Up to which memory is watched."""


class Bench:
    """The models and engines, all alive; each method is one rival's turn."""

    def __init__(self, libraries: dict[str, Library], rank: int, new: int) -> None:
        self.library, self.new = libraries["mixed"], new
        self.loop = asyncio.new_event_loop()
        self.plain: Any = self.library.model()
        self.composer = Composer(self.library)
        texts = {
            name: random_texts(self.library, 3, shortest=20, longest=30, seed=i) for i, name in enumerate((*self.library.names, "general"))
        }
        self.engines: dict[str, LocalEngine] = {}
        for name, library in libraries.items():
            settings = LocalSettings(rank=rank if name == "truncated" else None, tails_gb=TAILS_GB)
            self.engines[name] = LocalEngine(library, Constellation.build(library, texts), settings)
        self.engines["evidence"] = self.engines["mixed"]
        for engine in {id(engine): engine for engine in self.engines.values()}.values():
            self.loop.run_until_complete(engine.start())
        gc.collect()
        gc.freeze()  # what was loaded is searched for garbage in nobody's turn; `asterism` itself searches seldom
        self.drawn, self.number = random.Random(0), 0
        self.after: list[float] = []

    def close(self) -> None:
        """End the engines."""
        for engine in {id(engine): engine for engine in self.engines.values()}.values():
            self.loop.run_until_complete(engine.close())
        self.loop.close()

    def prompt(self) -> tuple[int, ...]:
        """Random tokens that no engine has seen."""
        return tuple(self.drawn.randrange(1, self.library.anatomy.vocabulary) for _ in range(PROMPT))

    def mixture(self, generalist: float = 0.0) -> Mixture:
        """K specialists at random."""
        parts = [self.drawn.random() + 0.1 for _ in range(K)]
        shares = [(1 - generalist) * part / sum(parts) for part in parts]
        names = self.drawn.sample(list(self.library.names), K)
        return Mixture.fixed(dict(zip(names, shares, strict=True)), self.library.anatomy.hidden_size, generalist=generalist)

    def generated(self, model: Any, rows: int, new: int) -> None:
        """transformers' `generate`, greedy, so many tokens exactly."""
        ids = torch.tensor([self.prompt() for _ in range(rows)])
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
            )

    def at_once(self, side: str) -> None:
        """16 requests, 16 mixtures."""
        generalist = 0.2 if side == "evidence" else 0.0
        jobs = [self.job(self.prompt(), Composition(self.mixture(generalist)), self.new) for _ in range(ROWS)]
        self.loop.run_until_complete(self._all(self.engines[side], jobs))

    def one_by_one(self) -> None:
        """Some of the 16, one after another."""
        for _ in range(ONE_BY_ONE):
            self.generated(self.composer.materialise(self.mixture()), 1, self.new)

    def first_token(self) -> None:
        """One request whose mixture is chosen, until its first token."""
        self.loop.run_until_complete(self._alone(1))

    def alone(self) -> None:
        """One request whose mixture is chosen; what its tokens after the first take is noted."""
        self.after.append(self.loop.run_until_complete(self._alone(self.new)))

    def readings(self) -> None:
        """The prompt in the generalist and in K specialists: the generalist's time K + 1 times."""
        ids = torch.tensor([self.prompt()])
        with torch.inference_mode():
            for _ in range(1 + K):
                self.plain(input_ids=ids, use_cache=True, logits_to_keep=1)

    def job(self, prompt: Sequence[int], composition: Composition, new: int) -> Job:
        """A request that runs to its full length."""
        self.number += 1
        return Job(str(self.number), tuple(prompt), Sampling(new), composition)

    async def _alone(self, new: int) -> float:
        engine, prompt = self.engines["mixed"], self.prompt()
        choice = await engine.choose(prompt, Wish())
        return await self._answered(engine, self.job(prompt, Composition(choice.mixture), new))

    async def _all(self, engine: LocalEngine, jobs: Sequence[Job]) -> None:
        await asyncio.gather(*[self._answered(engine, job) for job in jobs])

    async def _answered(self, engine: LocalEngine, job: Job) -> float:
        """Seconds that the tokens after the first took."""
        count, last = 0, None
        async for event in engine.submit(job):
            count += len(event.tokens) if isinstance(event, Tokens) else 0
            last = event
        assert isinstance(last, Finished), last
        assert count == job.sampling.max_tokens
        return last.decode_s


def copying(library: Library) -> Callable[[], None]:
    """A copy of the composed tail's matrices and vectors."""
    anatomy = library.anatomy
    names = anatomy.parameters_of(set(range(anatomy.n_blocks // 2, anatomy.n_blocks)))
    pairs = [(library.tensor(name).clone(), library.tensor(name)) for name in names]

    def copy() -> None:
        for to, of in pairs:
            to.copy_(of)

    return copy


def with_adapters(root: Path, generalist: Path, dtype: torch.dtype) -> Library:
    """The library of the adapters that `prepare` wrote beside the specialists."""
    names = {folder.name.removesuffix("-lora"): folder.resolve() for folder in sorted(generalist.parent.glob("*-lora"))}
    Library.create(root, generalist.resolve(), names)
    return Library.open(root, dtype=dtype)


def memory(root: Path, known: Library, quick: bool) -> float:
    """Memory that the last of SPECIALISTS costs beside the second's; small ones by what the executor counts."""
    sources = [str(known.folder(name).resolve()) for name in known.names]
    library, cost = Library.create(root, str(known.folder().resolve()), {"0": sources[0]}), dict[int, int]()
    library = Library.open(root, dtype=known.dtype)
    executor = Executor(library)

    def held() -> int:
        gc.collect()
        return (0 if quick else anonymous(os.getpid())) or executor.bytes()["specialists"]

    for number in range(1, SPECIALISTS):
        before = held()
        library.add(str(number), sources[number % len(sources)])
        executor.add(str(number))
        cost[number] = held() - before
    return cost[SPECIALISTS - 1] / cost[1]


def measured(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Seconds of every rival, an entry a round."""
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: bench.generated(bench.plain, ROWS, bench.new),
        **{side: lambda side=side: bench.at_once(side) for side in ("mixed", "evidence", "LoRA", "truncated")},
        "one by one": bench.one_by_one,
        "plain, one": lambda: bench.generated(bench.plain, 1, bench.new),
        "plain, one, first": lambda: bench.generated(bench.plain, 1, 1),
        "alone": bench.alone,
        "first token": bench.first_token,
        "readings": bench.readings,
        "copy": copying(bench.library),
    }
    seconds = interleaved(ways, rounds)
    seconds["alone, after"] = bench.after[-rounds:]
    seconds["plain, after"] = [whole - first for whole, first in zip(seconds["plain, one"], seconds["plain, one, first"], strict=True)]
    seconds["one by one"] = [ROWS / ONE_BY_ONE * each for each in seconds["one by one"]]
    seconds["allowed"] = [reading + COPY * copy for reading, copy in zip(seconds["readings"], seconds["copy"], strict=True)]
    return seconds


def told(bench: Bench, seconds: dict[str, list[float]], given: argparse.Namespace, more: dict[str, float]) -> None:
    """The table, the formula and the metrics."""
    share = mixed_share(bench.library)
    slower, with_generalist = 1 + (K - 1) * share, 1 + K * share
    batch = ("plain", "mixed", "evidence", "LoRA", "truncated", "one by one")
    rows: list[list[object]] = [[name, ROWS * bench.new / statistics.median(seconds[name])] for name in batch]
    rows.insert(1, ["plain / bound", ROWS * bench.new / statistics.median(seconds["plain"]) / slower])
    rows += [[f"one request: {name}", (bench.new - 1) / statistics.median(seconds[f"{name}, after"])] for name in ("plain", "alone")]
    metrics: dict[str, float] = {
        "batch16_bound_ratio": ratio(seconds["plain"], seconds["mixed"]) * slower,
        "batch16_evidence_bound_ratio": ratio(seconds["plain"], seconds["evidence"]) * with_generalist,
        "batch16_lowrank_ratio": ratio(seconds["plain"], seconds["LoRA"]),
        "batch16_truncated_ratio": ratio(seconds["plain"], seconds["truncated"]),
        "one_by_one_speedup": ratio(seconds["one by one"], seconds["mixed"]),
        "batch1_ratio": ratio(seconds["plain, after"], seconds["alone, after"]),
        "first_token_ratio": ratio(seconds["first token"], seconds["allowed"]),
        **more,
    }
    size = sum(torch.Size(shape).numel() for shape in bench.library.anatomy.shapes.values()) / 1e6
    middle = {name: 1000 * statistics.median(seconds[name]) for name in ("first token", "allowed", "copy")}
    notes = [
        f"{size:.1f} M parameters, {given.dtype}; s = mixed blocks' matrices / (all blocks' + head + attention) = {share:.3f}",
        f"bound = plain / (1 + (K - 1) s) = plain / {slower:.3f}; evidence: plain / (1 + K s) = plain / {with_generalist:.3f}",
        "one request: " + ", ".join(f"{name} {took:.1f} ms" for name, took in middle.items()),
    ]
    title = f"{ROWS} requests at once, {PROMPT}-token prompts, {bench.new} new tokens"
    report("serve", title, ["", "tokens/s"], rows, metrics, notes=notes)


def main() -> None:
    """Measure, compare, print."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rank", type=int, default=64, help="of the truncated specialists")
    given = parser.parse_args()
    logging.disable_progress_bar()
    shape = dict(hidden=64, blocks=2, vocabulary=512) if given.quick else dict(hidden=512, blocks=8, vocabulary=8192)
    dtype = getattr(torch, given.dtype)
    with tempfile.TemporaryDirectory() as folder, quiet():
        root = Path(folder)
        prepare(root / "full", **shape)
        library = Library.open(root / "full", dtype=dtype)
        libraries = {"mixed": library, "LoRA": with_adapters(root / "lora", library.folder(), dtype), "truncated": library}
        more = {"memory_10th_ratio": memory(root / "ten", library, given.quick)}
        bench = Bench(libraries, given.rank, 8 if given.quick else NEW)
        try:
            seconds = measured(bench, 1 if given.quick else given.rounds)
        finally:
            bench.close()
        told(bench, seconds, given, more)


if __name__ == "__main__":
    main()
