"""The vLLM engine: vLLM answers, in processes of its own; a local engine beside it reads prompts and chooses their mixtures."""

# pyright: reportMissingImports=false
# vLLM is no dependency: users bring the build for their machine.
from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import ref

from asterism.constellation.index import Constellation
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import AsterismError, SettingsError, UnknownName, UnsupportedError
from asterism.models.library import Library
from asterism.serve.admission import check_job, check_known
from asterism.serve.errors import Away, internal
from asterism.serve.jobs import Choice, Composition, Event, Facts, Failed, Finished, Job, Stats, Tokens, Wish
from asterism.serve.local.answer import Answer
from asterism.serve.local.engine import LocalEngine
from asterism.serve.local.settings import LocalSettings
from asterism.serve.vllm import guard
from asterism.serve.vllm.payload import FIELD, is_even, payload_of
from asterism.serve.vllm.settings import VllmSettings
from asterism.serve.vllm.telling import Counted, counting, ended, tokens_of

log = logging.getLogger("asterism.serve")
WORKER = "asterism.serve.vllm.worker.MixingWorker"
MOST_LOGPROBS = 20
COLDEST = 0.01
"""vLLM runs lower temperatures as this one; they are refused here."""


@dataclass(eq=False)
class Open:
    """A job that has not ended."""

    job: Job
    uses: frozenset[str]
    """Specialists, as the workers call them."""
    begun: bool = False
    cancelled: bool = False


class VllmEngine:
    """`asterism.serve.engine.Engine` on vLLM. Prompts are read where the given library's device is."""

    def __init__(self, library: Library, constellation: Constellation, settings: VllmSettings | None = None) -> None:
        """UnsupportedError where vLLM is not installed."""
        try:
            import vllm  # noqa: F401
        except ImportError:
            mend = "install vLLM into this environment (pip install vllm), or serve with the local engine"
            raise UnsupportedError("vLLM is not installed.", met="engine vllm", mend=mend) from None
        self.library, self.settings = library, settings or VllmSettings()
        self._reader = LocalEngine(library, constellation, LocalSettings(slots=1, trunks_gb=0.0))
        self._names = {name: name for name in library.names}
        """Specialist -> what the workers call it: a name that is used again means another."""
        self._given = Counter(self._names.keys())
        self._leaving: set[str] = set()
        self._digests: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._open: dict[str, Open] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._away: Away | None = Away("The engine has not started.", met="a request", after=1)
        self._llm: Any = None
        self._told, self._prompt_tokens, self._generation_tokens = Counted(), 0, 0

    # ---- what it is

    @property
    def facts(self) -> Facts:
        """Known after `start`."""
        config = None if self._llm is None else self._llm.vllm_config
        room = None if config is None else config.model_config.max_model_len
        device = "" if config is None else config.device_config.device_type
        return Facts("vllm", room, self.library.anatomy.vocabulary, device, self._dtype, tuple(self._names), renews=False)

    def stats(self) -> Stats:
        """Counters now."""
        read, running = self._reader.stats(), [each.job for each in self._open.values() if each.begun]
        return Stats(
            running=len(running),
            waiting=len(self._open) - len(running) + read.waiting,
            live_mixtures=len({None if job.composition is None else job.composition.key for job in running}),
            cache_share=self._told.cache_share,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
            compose_seconds=read.compose_seconds,
            selected=read.selected,
            alive=read.alive and not (self._llm is not None and self._llm.errored),
        )

    @property
    def _root(self) -> Path:
        return self.library.root.resolve()

    @property
    def _dtype(self) -> str:
        own = str(self.library.dtype).removeprefix("torch.")
        return own if self.settings.dtype == "auto" else self.settings.dtype

    # ---- its life

    async def start(self) -> None:
        """Start vLLM's processes and the reader."""
        await self._reader.start()
        self._digests = {name: self.library.digest(name) for name in self._names}
        guard.install()
        guard.KNOWN[self._root] = lambda: tuple(self._names.values())
        try:
            self._llm = await asyncio.to_thread(self._made)
        except AsterismError:
            raise
        except Exception as error:
            log.exception("vLLM did not start.")
            met = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            raise AsterismError("vLLM did not start.", met=met, mend="its log, above, tells why") from None
        self._away = None

    async def drain(self, seconds: float) -> None:
        """Take no more, and wait for what there is, so many seconds at most."""
        self._away = self._away or Away("The server is shutting down.", met="a new request")
        end = time.monotonic() + seconds
        while self._open and time.monotonic() < end and not self._llm.errored:
            await asyncio.sleep(0.01)
        for job in list(self._open):
            self.cancel(job)
        await self._reader.drain(max(0.0, end - time.monotonic()))

    async def close(self) -> None:
        """Drain at once, and end vLLM's processes."""
        await self.drain(0)
        await self._reader.close()
        if self._llm is not None:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            guard.KNOWN.pop(self._root, None)
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)

    def _made(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        own = self.settings
        space = own.kv_cache_gb or (1.0 if current_platform.is_cpu() else None)
        arguments = {
            "model": str(self.library.folder().resolve()),
            "dtype": self._dtype,
            "skip_tokenizer_init": True,
            "worker_cls": WORKER,
            "additional_config": {guard.CONFIG: {"library": str(self._root), "digests": self.library.digests()}},
            "max_num_seqs": own.max_num_seqs,
            "max_model_len": own.max_model_len,
            "gpu_memory_utilization": own.gpu_memory_utilization,
            "kv_cache_memory_bytes": None if space is None else int(space * 2**30),
            "tensor_parallel_size": own.tensor_parallel_size,
            "pipeline_parallel_size": own.pipeline_parallel_size,
            "enforce_eager": own.enforce_eager,
            "enable_prefix_caching": own.prefix_caching,
            "max_logprobs": MOST_LOGPROBS,
            "disable_log_stats": True,
        }
        unknown = own.arguments.keys() - AsyncEngineArgs.__dataclass_fields__.keys()
        if unknown:
            raise UnknownName("argument of vLLM", sorted(unknown)[0], AsyncEngineArgs.__dataclass_fields__)
        made = AsyncEngineArgs(**(arguments | own.arguments))
        return AsyncLLM.from_engine_args(made, stat_loggers=[lambda config, index: counting(config, index, self._told)])

    # ---- what is asked

    async def choose(self, tokens: Sequence[int], wish: Wish) -> Choice:
        """The mixture of a prompt; errors as `Engine.choose`."""
        self._refuse_away()
        return await self._reader.choose(tokens, wish)

    async def explain(self, text: str, settings: MixtureSettings | None) -> dict[str, Any]:
        """What a text asks of the library."""
        self._refuse_away()
        return await self._reader.explain(text, settings)

    def submit(self, job: Job) -> AsyncIterator[Event]:
        """The events of one job; errors as `Engine.submit`, SettingsError for what vLLM cannot do as it is asked."""
        self._refuse_away()
        self._check(job)
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(self.cancel, job.id)

        answer = Answer(cancel)
        told = ref(answer)
        held = self._open[job.id] = Open(job, frozenset(self._names[name] for name in _named(job.composition)))
        self._later(self._answer(held, self._params(job), told))
        return answer

    def cancel(self, job: str) -> None:
        """End a job by its id; nothing where it has ended."""
        held = self._open.get(job)
        if held is not None and not held.cancelled:
            held.cancelled = True
            self._later(self._llm.abort(job))

    # ---- changes of the library

    async def add(self, name: str, source: str, probes: Sequence[str]) -> None:
        """Add a specialist; on any error library, constellation and engine stay as they were."""
        async with self._changing:
            self._refuse_away()
            self._refuse_fixed((name,))
            await self._reader.add(name, source, probes)
            try:
                await self._take(name)
            except BaseException:
                await self._reader.remove(name)
                raise

    async def remove(self, name: str) -> None:
        """Take a specialist out; answers that run with it finish with it."""
        async with self._changing:
            self._refuse_away()
            check_known((name,), self._names)
            await self._reader.remove(name)
            self._leave(name)

    async def follow(self) -> None:
        """Take over what another process has changed in the library's files; a compiled vLLM follows no change that brings specialists."""
        async with self._changing:
            self._refuse_away()
            now = Library.open(self.library.root)
            other = [name for name in now.names if self._digests.get(name) != await asyncio.to_thread(now.digest, name)]
            self._refuse_fixed(other)
            try:
                await self._reader.follow()
            finally:
                there = self._reader.facts.specialists
                for name in [name for name in self._names if name not in there or name in other]:
                    self._leave(name)
                for name in [name for name in there if name not in self._names]:
                    await self._take(name)

    async def _take(self, name: str) -> None:
        """Have the workers hold a specialist that the library has."""
        called = f"{name}#{self._given[name]}" if self._given[name] else name
        self._given[name] += 1
        try:
            await self._llm.collective_rpc("asterism_add", args=(called, name))
        except Exception:
            log.exception("A specialist could not be added.")
            raise AsterismError("vLLM could not take the specialist.", met=repr(name), mend="its log tells why") from None
        self._digests[name] = await asyncio.to_thread(self.library.digest, name)
        self._names[name] = called

    def _leave(self, name: str) -> None:
        self._leaving.add(self._names.pop(name))
        self._let_go()

    def _let_go(self) -> None:
        """Have the workers forget specialists that have left and that no answer runs with."""
        for called in [called for called in self._leaving if not any(called in each.uses for each in self._open.values())]:
            self._leaving.discard(called)
            self._later(self._llm.collective_rpc("asterism_drop", args=(called,)))

    # ---- one answer

    async def _answer(self, held: Open, params: Any, told: Callable[[], Answer | None]) -> None:
        """Run one job, telling its answer as long as anybody holds it."""
        event: Event | None = None
        try:
            async for event in self._events(held, params):
                if (answer := told()) is not None:
                    answer.put(event)
                del answer
        except Exception:
            log.exception("vLLM failed an answer.")
            event = None
        finally:
            self._open.pop(held.job.id, None)
            self._prompt_tokens += len(held.job.tokens) if held.begun else 0
            if not isinstance(event, Finished | Failed) and (answer := told()) is not None:
                answer.put(Failed(internal()))
        self._let_go()

    async def _events(self, held: Open, params: Any) -> AsyncIterator[Event]:
        job, written, cached, last = held.job, 0, 0, None
        stream = self._llm.generate({"prompt_token_ids": list(job.tokens)}, params, job.id)
        try:
            async for last in stream:
                if held.cancelled and not held.begun:  # it was cancelled before vLLM knew of it
                    break
                one = last.outputs[0]
                held.begun, cached = True, last.num_cached_tokens or cached
                if one.token_ids:
                    written += len(one.token_ids)
                    self._generation_tokens += len(one.token_ids)
                    yield Tokens(tokens_of(one, job.sampling.logprobs))
        finally:
            await stream.aclose()
        yield ended(last, job, written, cached)

    def _params(self, job: Job) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        asked, made = job.sampling, job.composition
        return SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            seed=asked.seed,
            logprobs=asked.logprobs,
            stop_token_ids=sorted(asked.ends),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if made is None else {FIELD: payload_of(made, rename=self._names.__getitem__)},
        )

    def _check(self, job: Job) -> None:
        asked, made = job.sampling, job.composition
        check_job(job, self._names, self.facts.room, self._open)
        if job.renew:
            raise SettingsError("vLLM does not renew mixtures.", met=f"renew {job.renew}", mend="renew: 0, or the local engine")
        if 0 < asked.temperature < COLDEST:
            mend = f"0 takes the likeliest token, {COLDEST} is the least otherwise"
            raise SettingsError("vLLM takes no such low temperature.", met=asked.temperature, mend=mend)
        if (asked.logprobs or 0) > MOST_LOGPROBS:
            raise SettingsError("vLLM tells fewer of the likeliest tokens.", met=asked.logprobs, mend=f"at most {MOST_LOGPROBS}")
        if made is not None and guard.graphs(self._llm.vllm_config) and not is_even(made):
            mend = "start vLLM with enforce_eager, or ask for mode evidence or fast"
            raise SettingsError("Weights that differ by node do not go with vLLM's graphs.", met="such a mixture", mend=mend)

    def _refuse_fixed(self, names: Sequence[str]) -> None:
        if names and guard.compiled(self._llm.vllm_config):
            mend = "start vLLM with enforce_eager, or start again with the larger library"
            raise SettingsError("A compiled vLLM takes no more specialists.", met=", ".join(names), mend=mend)

    def _refuse_away(self) -> None:
        if self._away is not None:
            raise self._away

    def _later(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _named(composition: Composition | None) -> tuple[str, ...]:
    return () if composition is None else composition.mixture.specialists
