"""The engine around vLLM, with a scripted vLLM in its place: what is asked of it, and what becomes of its answers and faults."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.core.errors import AsterismError, SettingsError, UnknownName, UnsupportedError
from asterism.serve.errors import Away
from asterism.serve.jobs import Composition, Failed, Finished, Job, Sampling, Token, Tokens
from asterism.serve.vllm import engine as module
from asterism.serve.vllm.engine import VllmEngine
from asterism.serve.vllm.settings import VllmSettings
from tests import tiny


class FakeLLM:
    """As vLLM's AsyncLLM: tells one token at a time, 10, 11, ..., until max_tokens."""

    def __init__(self, eager: bool = True) -> None:
        mode = SimpleNamespace(name="NONE" if eager else "VLLM_COMPILE")
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=32),
            device_config=SimpleNamespace(device_type="cpu"),
            compilation_config=SimpleNamespace(mode=mode, cudagraph_mode=SimpleNamespace(name="NONE")),
        )
        self.errored, self.asked, self.called, self.aborted = False, [], [], set()
        self.breaks = self.held = False

    async def generate(self, prompt, params, request_id):
        self.asked.append((prompt, params))
        for place in range(params.max_tokens):
            while self.held and request_id not in self.aborted:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            if self.breaks:
                raise RuntimeError("a step failed at /secret/place")
            over = request_id in self.aborted or place + 1 == params.max_tokens
            reason = None if not over else "abort" if request_id in self.aborted else "length"
            known = {10 + place: SimpleNamespace(logprob=-0.5, rank=2), 3: SimpleNamespace(logprob=-0.4, rank=1)}
            one = SimpleNamespace(token_ids=[10 + place], logprobs=[known] if params.logprobs else None, finish_reason=reason)
            yield SimpleNamespace(outputs=[one], num_cached_tokens=2, metrics=None)
            if over:
                return

    async def abort(self, request_id):
        self.aborted.add(request_id)

    async def collective_rpc(self, method, args=()):
        self.called.append((method, *args))

    def shutdown(self):
        self.called.append(("shutdown",))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """`asked(work, **switches)`: run `work(engine, vllm)` on a started engine."""
    library = tiny.tiny_library(tmp_path / "library", "qwen2", kind="mlp")
    constellation = Constellation.build(library, tiny.tiny_probes())
    constellation.save()
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta"))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=lambda **given: SimpleNamespace(**given)))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", kinds)
    monkeypatch.setattr(module.guard, "install", lambda: None)

    def run(work, **switches):
        engine, vllm = VllmEngine(library, constellation, VllmSettings()), FakeLLM(**switches)
        monkeypatch.setattr(engine, "_made", lambda: vllm)

        async def whole():
            with pytest.raises(Away):
                engine.submit(job())
            await engine.start()
            try:
                return await work(engine, vllm)
            finally:
                await engine.close()

        return asyncio.run(whole())

    return run


def alone(name: str) -> Composition:
    return Composition(Mixture.fixed({name: 1.0}, tiny.HIDDEN))


def job(name: str = "one", composition: Composition | None = None, **sampling) -> Job:
    return Job(name, (5, 6, 7), Sampling(**{"max_tokens": 3, **sampling}), composition)


async def told(events) -> list:
    return [event async for event in events]


def test_an_answer_is_told_token_by_token(asked):
    async def work(engine, vllm):
        events = await told(engine.submit(job(composition=alone("legal"), logprobs=1, seed=4, ends=frozenset({9, 8}))))
        assert events[0] == Tokens((Token(10, -0.5, ((3, -0.4),)),))
        assert events[-1] == Finished("length", 3, 3, 2)
        prompt, params = vllm.asked[0]
        assert prompt == {"prompt_token_ids": [5, 6, 7]}
        assert (params.seed, params.stop_token_ids, params.ignore_eos, params.detokenize) == (4, [8, 9], True, False)
        assert json.loads(params.extra_args["asterism"])["specialists"] == ["legal"]
        assert await told(engine.submit(job("two"))) == [*[Tokens((Token(10 + place),)) for place in range(3)], Finished("length", 3, 3, 2)]
        assert vllm.asked[1][1].extra_args is None
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.prompt_tokens_total, stats.generation_tokens_total) == (0, 0, 6, 6)

    asked(work)


def test_a_fault_of_vllm_fails_its_answer_and_tells_no_path(asked, caplog):
    async def work(engine, vllm):
        vllm.breaks = True
        events = await told(engine.submit(job()))
        assert isinstance(events[-1], Failed)
        assert "secret" not in str(events[-1].error)
        vllm.breaks = False
        assert isinstance((await told(engine.submit(job())))[-1], Finished)
        vllm.errored = True
        assert not engine.stats().alive

    asked(work)
    assert "a step failed" in caplog.text


def test_answers_are_cancelled_by_id_by_closing_and_by_being_forgotten(asked):
    async def work(engine, vllm):
        vllm.held = True
        events = [engine.submit(job(name, alone("legal"), max_tokens=9)) for name in ("a", "b", "c")]
        await asyncio.sleep(0.01)
        engine.cancel("a")
        engine.cancel("nobody")
        assert (await told(events[0]))[-1].reason == "cancelled"
        await events[1].aclose()
        events.clear()
        while engine.stats().running + engine.stats().waiting:
            await asyncio.sleep(0.001)
        assert vllm.aborted == {"a", "b", "c"}

    asked(work)


def test_one_cancelled_before_vllm_knows_it_ends_too(asked):
    async def work(engine, vllm):
        events = engine.submit(job(max_tokens=9))
        engine.cancel("one")
        assert (await told(events))[-1].reason == "cancelled"

    asked(work)


def test_a_specialist_leaves_when_its_last_answer_has_ended(asked):
    async def work(engine, vllm):
        vllm.held = True
        events = engine.submit(job(composition=alone("legal")))
        await engine.remove("legal")
        with pytest.raises(UnknownName):
            engine.submit(job("two", alone("legal")))
        await asyncio.sleep(0.01)
        assert not vllm.called
        vllm.held = False
        assert (await told(events))[-1].reason == "length"
        await asyncio.sleep(0.01)
        assert vllm.called == [("asterism_drop", "legal")]
        await engine.add("legal", str(engine.library.root / "legal"), tiny.PROBES["legal"])
        assert vllm.called[1:] == [("asterism_add", "legal#1", "legal")]
        await told(engine.submit(job("three", alone("legal"))))
        assert json.loads(vllm.asked[-1][1].extra_args["asterism"])["specialists"] == ["legal#1"]

    asked(work)


def test_what_vllm_cannot_take_leaves_the_library_as_it_was(asked):
    async def work(engine, vllm):
        async def fails(method, args=()):
            raise RuntimeError("no memory")

        vllm.collective_rpc = fails
        with pytest.raises(AsterismError, match="could not take"):
            await engine.add("more", str(engine.library.root / "legal"), tiny.PROBES["general"])
        assert "more" not in engine.library.names
        assert "more" not in engine.facts.specialists

    asked(work)


def test_a_compiled_vllm_takes_no_more_specialists(asked):
    async def work(engine, vllm):
        with pytest.raises(SettingsError, match="compiled"):
            await engine.add("more", str(engine.library.root / "legal"), tiny.PROBES["legal"])
        assert "more" not in engine.library.names

    asked(work, eager=False)


def test_draining_lets_answers_end_and_takes_no_more(asked):
    async def work(engine, vllm):
        vllm.held = True
        events = engine.submit(job())
        draining = asyncio.ensure_future(engine.drain(5))
        await asyncio.sleep(0.01)
        with pytest.raises(Away):
            engine.submit(job("two"))
        vllm.held = False
        await draining
        assert (await told(events))[-1].reason == "length"

    asked(work)


def test_settings_of_ours_are_not_vllms_to_set():
    with pytest.raises(SettingsError, match="worker_cls"):
        VllmSettings(arguments={"worker_cls": "x"})
    with pytest.raises(SettingsError, match="dtype"):
        VllmSettings(arguments={"dtype": "float32"})
    assert VllmSettings(arguments={"swap_space": 1}).arguments == {"swap_space": 1}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_is_told_where_to_get_it(tmp_path, monkeypatch, capsys):
    with pytest.raises(UnsupportedError, match="pip install vllm"):
        VllmEngine(tiny.tiny_library(tmp_path, "qwen2"), None)  # type: ignore[arg-type]
    benchmarks = Path(__file__).parents[3] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    monkeypatch.setattr(sys, "argv", ["serve_vllm.py", "--quick"])
    runpy.run_path(str(benchmarks / "serve_vllm.py"), run_name="__main__")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]["vllm_bound_ratio"] is None
