"""What vLLM tells of answers and of itself, in the words of `asterism.serve.jobs`."""

# pyright: reportMissingImports=false
# vLLM is no dependency: users bring the build for their machine.
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asterism.serve.errors import internal
from asterism.serve.jobs import Event, Failed, Finished, Job, Token


@dataclass
class Counted:
    """What vLLM last told of its scheduler."""

    cache_share: float = 0.0


def tokens_of(one: Any, wanted: int | None) -> tuple[Token, ...]:
    """vLLM's new tokens of one output; the likeliest are told best first."""
    if wanted is None:
        return tuple(Token(token) for token in one.token_ids)
    found = []
    for token, known in zip(one.token_ids, one.logprobs, strict=True):
        best = sorted((each.rank, other, each.logprob) for other, each in known.items() if each.rank is not None)
        found.append(Token(token, known[token].logprob, tuple((other, logprob) for _, other, logprob in best[:wanted])))
    return tuple(found)


def ended(last: Any, job: Job, written: int, cached: int) -> Event:
    """The last event of a job whose last output from vLLM is `last`; None: vLLM told nothing of it."""
    reason = "abort" if last is None else last.outputs[0].finish_reason or "abort"
    if reason not in ("stop", "length", "abort"):
        return Failed(internal())
    times = last.metrics if last is not None else None
    spent = (0.0, 0.0, 0.0)
    if times is not None and times.first_token_ts:
        spent = (
            times.scheduled_ts - times.queued_ts,
            times.first_token_ts - times.scheduled_ts,
            times.last_token_ts - times.first_token_ts,
        )
    told: Any = "cancelled" if reason == "abort" else reason
    return Finished(told, len(job.tokens), written, cached, *(max(0.0, each) for each in spent))


def counting(config: Any, index: int, told: Counted) -> Any:
    """A logger of vLLM's statistics that keeps the last numbers."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Counting(StatLoggerBase):
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            if scheduler_stats is not None:
                told.cache_share = scheduler_stats.kv_cache_usage

        def log_engine_initialized(self) -> None:
            pass

    return Counting(config, index)
