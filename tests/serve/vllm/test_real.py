"""The engine on a real vLLM; skipped where it is not installed (no dependency: docs/guide/serve-with-vllm.md tells how to get one)."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from asterism.compose.build import compose
from asterism.compose.export import save_adapter, save_checkpoint
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.models.library import Library
from asterism.serve.jobs import Composition, Failed, Finished, Job, Sampling, Tokens, Wish
from asterism.serve.vllm.engine import VllmEngine
from asterism.serve.vllm.settings import VllmSettings
from tests import tiny

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),
]
SHAPE: dict[str, Any] = dict(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, intermediate_size=96)
"""vLLM's attention on a CPU wants heads of 32."""
SMALL: dict[str, Any] = dict(enforce_eager=True, max_num_seqs=16, max_model_len=64, kv_cache_gb=0.25, arguments={"block_size": 32})
"""Blocks so small that a short prompt's keys are kept."""


def made(folder, kind: str) -> Library:
    """A library of full specialists and LoRA ones, or of LoRA ones alone."""
    generalist = tiny.tiny_model("qwen2", 0, **SHAPE)
    tiny.save(generalist, folder / "generalist")
    for number, name in enumerate(tiny.DOMAINS):
        if kind == "lora" or number % 2:
            tiny.save_lora(generalist, folder / name, 1000 + number, rank=2 + number, base=str(folder / "generalist"))
        else:
            tiny.save(tiny.perturbed(generalist, 1000 + number, 0.15), folder / name)
    return Library.create(folder, str(folder / "generalist"), {name: folder / name for name in tiny.DOMAINS})


def compositions(width: int) -> dict[str, Composition | None]:
    weights = torch.rand(3, width, generator=torch.Generator().manual_seed(1))
    weights = weights / weights.sum(0)
    return {
        "generalist": None,
        "full alone": Composition(Mixture.fixed({"medical": 1.0}, width)),
        "lora alone": Composition(Mixture.fixed({"legal": 1.0}, width)),
        "two": Composition(Mixture.fixed({"medical": 0.3, "legal": 0.7}, width)),
        "three": Composition(Mixture.fixed({"medical": 0.3, "code": 0.2, "science": 0.3}, width, generalist=0.2)),
        "last": Composition(Mixture.fixed({"medical": 0.5, "code": 0.5}, width, scale=1.3), CompositionSettings(layers=1)),
        "nodes": Composition(Mixture(("medical", "legal", "code"), weights, weights.mean(1))),
    }


async def whole(events: AsyncIterator) -> tuple[list, Finished]:
    tokens: list = []
    async for event in events:
        assert not isinstance(event, Failed)
        if isinstance(event, Tokens):
            tokens += event.tokens
        elif isinstance(event, Finished):
            return tokens, event
    raise AssertionError("no end")


def job(name: str, tokens, composition=None, **sampling) -> Job:
    return Job(name, tuple(tokens), Sampling(**{"max_tokens": 8, **sampling}), composition)


def log_probabilities(library, composition, tokens) -> torch.Tensor:
    model = library.model() if composition is None else compose(library, composition.mixture, composition.settings)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([list(tokens)])).logits[0].double(), -1)


def test_the_engine_on_a_real_vllm(tmp_path):
    """One test: vLLM takes long to start."""
    library = made(tmp_path / "library", "mixed")
    constellation = Constellation.build(library, tiny.tiny_probes())
    constellation.save()
    engine = VllmEngine(library, constellation, VllmSettings(**SMALL))

    async def all_of_it() -> None:
        await engine.start()
        try:
            assert engine.facts.specialists == tiny.DOMAINS
            assert engine.facts.room == 64
            await many_at_once(engine, library)
            await keys_are_kept_apart(engine, library)
            await draws_are_each_rows_own(engine)
            await it_chooses(engine, constellation)
            await it_refuses(engine)
            await a_cancelled_answer_ends(engine)
            await specialists_come_and_go(engine, library, tmp_path)
            assert engine.stats().running == 0
            assert engine.stats().generation_tokens_total > 100
        finally:
            await engine.close()

    asyncio.run(all_of_it())


async def many_at_once(engine, library) -> None:
    """Every row's answer is its composition's own, whatever runs beside it."""
    asked = compositions(64)
    prompts = {name: range(5 + place, 17 + 2 * place) for place, name in enumerate(asked)}
    jobs = [job(name, prompts[name], asked[name], logprobs=3) for name in asked]
    found = await asyncio.gather(*[whole(engine.submit(each)) for each in jobs])
    for (name, composition), (tokens, end) in zip(asked.items(), found, strict=True):
        ids = [*prompts[name], *[token.id for token in tokens]]
        known, start = log_probabilities(library, composition, ids), len(prompts[name]) - 1
        assert (end.reason, end.prompt_tokens, end.completion_tokens) == ("length", start + 1, 8)
        for place, token in enumerate(tokens, start):
            assert token.logprob == pytest.approx(known[place, token.id].item(), abs=1e-4), name
            assert known[place, token.id] > known[place].max() - 1e-4, name
            best = known[place].topk(3)
            assert [other for other, _ in token.top] == best.indices.tolist(), name
            assert [each for _, each in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def keys_are_kept_apart(engine, library) -> None:
    """vLLM's prefix cache serves one mixture's keys to that mixture, and to no other."""
    prompt = [7, 8, 9] * 12
    for again in (False, True):
        for name, composition in compositions(64).items():
            tokens, end = await whole(engine.submit(job("kept", prompt, composition, logprobs=0)))
            assert end.cached_tokens == (32 if again else 0), name
            known = log_probabilities(library, composition, [*prompt, *[token.id for token in tokens]])
            for place, token in enumerate(tokens, len(prompt) - 1):
                assert token.logprob == pytest.approx(known[place, token.id].item(), abs=1e-4), name


async def draws_are_each_rows_own(engine) -> None:
    """A sampled answer is the same alone and among others."""
    asked = compositions(64)
    drawn = {name: dict(temperature=0.9, top_p=0.9, seed=3 + place) for place, name in enumerate(asked)}
    alone = {name: (await whole(engine.submit(job(name, range(3, 20), asked[name], **drawn[name]))))[0] for name in asked}
    again = await asyncio.gather(*[whole(engine.submit(job(name, range(3, 20), asked[name], **drawn[name]))) for name in asked])
    assert [[token.id for token in tokens] for tokens, _ in again] == [[token.id for token in alone[name]] for name in asked]


async def it_chooses(engine, constellation) -> None:
    text = tiny.PROBES["medical"][0]
    tokens = engine.library.tokenizer(text)["input_ids"]
    choice = await engine.choose(tokens, Wish())
    want = constellation.mixture(text)
    assert choice.mixture.shares == pytest.approx(want.shares, abs=1e-5)
    assert (await engine.explain(text, None))["specialists"] == list(want.specialists)
    await whole(engine.submit(job("chosen", tokens, Composition(choice.mixture))))


async def it_refuses(engine) -> None:
    asked = compositions(64)["two"]
    with pytest.raises(UnknownName):
        engine.submit(job("a", [1], Composition(Mixture.fixed({"medicine": 1.0}, 64))))
    with pytest.raises(DataError, match="room"):
        engine.submit(job("a", range(1, 60), asked))
    with pytest.raises(DataError, match="nothing"):
        engine.submit(job("a", [], asked))
    with pytest.raises(SettingsError, match="temperature"):
        engine.submit(job("a", [1], asked, temperature=0.001))
    with pytest.raises(SettingsError, match="renew"):
        engine.submit(Job("a", (1,), Sampling(4), asked, renew=2))


async def a_cancelled_answer_ends(engine) -> None:
    events = engine.submit(job("long", [5, 6], compositions(64)["two"], max_tokens=60))
    await anext(events)
    engine.cancel("long")
    _, end = await whole(events)
    assert end.reason == "cancelled"
    left = engine.submit(job("left", [5, 6], compositions(64)["two"], max_tokens=60))
    await anext(left)
    await left.aclose()
    while engine.stats().running:
        await asyncio.sleep(0.01)


async def specialists_come_and_go(engine, library, tmp_path) -> None:
    """A specialist leaves while an answer runs with it; another comes under its name."""
    going = compositions(64)["full alone"]
    held = engine.submit(job("going", [5, 6, 7], going, max_tokens=40, logprobs=0))
    first = await anext(held)
    want = log_probabilities(library, going, [5, 6, 7, *[(token.id) for token in first.tokens]])
    await engine.remove("medical")
    with pytest.raises(UnknownName):
        engine.submit(job("late", [5, 6, 7], going))
    tokens, end = await whole(held)
    assert end.reason == "length"
    assert first.tokens[0].logprob == pytest.approx(want[2, first.tokens[0].id].item(), abs=1e-4)
    tiny.save(tiny.perturbed(library.model(), 77, 0.3), tmp_path / "another")
    await engine.add("medical", str(tmp_path / "another"), tiny.PROBES["medical"])
    assert set(engine.facts.specialists) == set(tiny.DOMAINS)
    tokens, _ = await whole(engine.submit(job("anew", [5, 6, 7], going, logprobs=0)))
    known = log_probabilities(Library.open(library.root), going, [5, 6, 7, *[token.id for token in tokens]])
    for place, token in enumerate(tokens, 2):
        assert token.logprob == pytest.approx(known[place, token.id].item(), abs=1e-4)
    assert known[2].argmax() == tokens[0].id
    other = Library.open(library.root)  # another process takes one out, and puts another in its place
    index = Constellation.load(library.root / "constellation", other)
    index.without_domain("legal").save()
    other.remove("legal")
    await engine.follow()
    assert "legal" not in engine.facts.specialists
    other.add("legal", tmp_path / "another")
    index.without_domain("legal").with_domain("legal", tiny.PROBES["legal"]).save()
    await engine.follow()
    alone = Composition(Mixture.fixed({"legal": 1.0}, 64))
    tokens, _ = await whole(engine.submit(job("followed", [5, 6, 7], alone, logprobs=0)))
    known = log_probabilities(other, alone, [5, 6, 7])
    assert tokens[0].logprob == pytest.approx(known[2, tokens[0].id].item(), abs=1e-4)


def test_composed_adapters_and_checkpoints_run_on_an_unmodified_vllm(tmp_path):
    """A mixture of LoRA specialists is an adapter, any mixture a checkpoint, as files."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    library = made(tmp_path / "library", "lora")
    mixture = Mixture.fixed({"medical": 0.5, "legal": 0.3}, 64, generalist=0.2)
    save_adapter(library, mixture, tmp_path / "adapter")
    save_checkpoint(library, mixture, tmp_path / "checkpoint")
    common: dict[str, Any] = dict(dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, disable_log_stats=True)
    common |= dict(kv_cache_memory_bytes=2**27, max_num_seqs=4)
    adapter = LoRARequest("mix", 1, str(tmp_path / "adapter"))
    sides: dict[str, tuple[dict[str, Any], Any]] = {
        "adapter": (dict(model=str(tmp_path / "library" / "generalist"), enable_lora=True, max_lora_rank=16), adapter),
        "checkpoint": (dict(model=str(tmp_path / "checkpoint")), None),
    }
    known = log_probabilities(library, Composition(mixture), [5, 6, 7])[2]
    assert known.topk(3).indices.tolist() != log_probabilities(library, None, [5, 6, 7])[2].topk(3).indices.tolist()

    async def answered() -> None:
        for name, (own, request) in sides.items():
            llm = await asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs(**common, **own))
            try:
                params = SamplingParams(max_tokens=1, temperature=0, logprobs=3, detokenize=False)
                async for last in llm.generate({"prompt_token_ids": [5, 6, 7]}, params, name, lora_request=request):
                    found = last.outputs[0].logprobs[0]
                for token, each in found.items():
                    assert each.logprob == pytest.approx(known[token].item(), abs=1e-4), name
            finally:
                llm.shutdown()

    asyncio.run(answered())
