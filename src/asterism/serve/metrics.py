"""Figures for Prometheus: vLLM's names where it has them, so that dashboards made for it work; ours begin with `asterism:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from asterism.serve.jobs import Stats

FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
COMPOSING = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the histograms' buckets, in seconds."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABEL = "model_name"

GAUGES = {
    "vllm:num_requests_running": ("Answers being written now.", "running"),
    "vllm:num_requests_waiting": ("Answers and readings that wait for a place.", "waiting"),
    "vllm:kv_cache_usage_perc": ("Part of the places for keys and values in use, 0 to 1.", "cache_share"),
    "asterism:live_mixtures": ("Different compositions among the running answers.", "live_mixtures"),
}
TOTALS = {
    "vllm:prompt_tokens": ("Tokens of prompts.", "prompt_tokens_total"),
    "vllm:generation_tokens": ("Tokens written.", "generation_tokens_total"),
    "asterism:composed_cache_hits": ("Compositions whose tail was built already.", "composed_cache_hits_total"),
    "asterism:composed_cache_misses": ("Compositions whose tail was built or mixed.", "composed_cache_misses_total"),
}


class Meter:
    """The server's figures, in a registry of their own."""

    def __init__(self, name: str, stats: Callable[[], Stats]) -> None:
        """`stats`: the engine's counters now. Nobody else may ask it: what it tells of the time since the last call is told once."""
        self._name, self._stats, self._registry, self._now = name, stats, CollectorRegistry(), Stats()
        given: dict[str, Any] = dict(labelnames=[LABEL], registry=self._registry)
        first = "Seconds from a request's arrival to the first token of an answer."
        self._first = Histogram("vllm:time_to_first_token_seconds", first, buckets=FIRST, **given).labels(name)
        whole = "Seconds from a request's arrival to an answer's end."
        self._whole = Histogram("vllm:e2e_request_latency_seconds", whole, buckets=WHOLE, **given).labels(name)
        composing = "Seconds that choosing or building one composition took."
        self._composing = Histogram("asterism:compose_seconds", composing, buckets=COMPOSING, **given).labels(name)
        given["labelnames"] = [LABEL, "finished_reason"]
        self._ended = Counter("vllm:request_success", "Answers that ended, by reason; abort: the client went away.", **given)
        for reason in ("stop", "length", "abort"):
            self._ended.labels(name, reason)
        given["labelnames"] = [LABEL, "code"]
        self._errors = Counter("asterism:request_errors", "Requests that were answered with an error, by status.", **given)
        self._registry.register(_OfEngine(self))

    def first(self, seconds: float) -> None:
        """The first token of an answer has come."""
        self._first.observe(seconds)

    def ended(self, reason: str, seconds: float) -> None:
        """An answer has ended: `stop`, `length` or `abort`."""
        self._ended.labels(self._name, reason).inc()
        self._whole.observe(seconds)

    def error(self, status: int) -> None:
        """A request was answered with an error."""
        self._errors.labels(self._name, str(status)).inc()

    def stats(self) -> Stats:
        """The engine's counters now; what composing took goes to its histogram."""
        found = self._stats()
        for seconds in found.compose_seconds:
            self._composing.observe(seconds)
        return found

    def page(self) -> bytes:
        """All of it, as Prometheus reads it. The engine is asked first: what it tells goes to histograms as well."""
        self._now = self.stats()
        return generate_latest(self._registry)

    def families(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The engine's part."""
        now = self._now
        for name, (told, field) in GAUGES.items():
            yield _filled(GaugeMetricFamily(name, told, labels=[LABEL]), [self._name], getattr(now, field))
        for name, (told, field) in TOTALS.items():
            yield _filled(CounterMetricFamily(name, told, labels=[LABEL]), [self._name], getattr(now, field))
        told = "Times a specialist had weight in a choice."
        chosen = CounterMetricFamily("asterism:specialist_selected", told, labels=[LABEL, "specialist"])
        for specialist, times in sorted(now.selected.items()):
            _filled(chosen, [self._name, specialist], times)
        yield chosen


class _OfEngine:
    """A collector that asks the engine when Prometheus asks the server, and not when it is registered."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        return self._meter.families()


def _filled(family: Any, labels: list[str], value: float) -> Any:
    family.add_metric(labels, value)
    return family
