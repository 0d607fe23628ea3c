"""Figures under vLLM's names, from the engine and from what was asked."""

from __future__ import annotations

import json
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serve.live import live

QUESTION = {"model": "tiny", "prompt": "The patient", "max_tokens": 32}


@pytest.fixture
def fresh(served, scripted):
    with live(scripted(), served) as running:
        yield running


def figures(server) -> dict[tuple[str, ...], float]:
    """(name, label values but the model's) -> value."""
    page = server.client.get("/metrics")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            assert sample.labels["model_name"] == "tiny"
            found[sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "model_name")] = sample.value
    return found


def test_the_engines_counters_are_told_under_vllms_names(fresh):
    fresh.client.post("/v1/completions", json=QUESTION)
    job = fresh.engine.jobs[0]
    now = figures(fresh)
    written = len(fresh.engine.answer(job))
    assert now["vllm:prompt_tokens_total",] == len(job.tokens)
    assert now["vllm:generation_tokens_total",] == written
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "asterism:live_mixtures"):
        assert now[name,] == 0
    assert now["asterism:specialist_selected_total", "medical"] == 1
    assert now["asterism:composed_cache_hits_total",] == 0


def test_running_answers_and_their_mixtures_are_counted(fresh):
    fresh.engine.endless, fresh.engine.pause = True, 0.01
    with fresh.client.stream("POST", "/v1/completions", json={**QUESTION, "n": 3, "max_tokens": 100, "stream": True}):
        fresh.until(lambda: len(fresh.engine.running) == 3)
        now = figures(fresh)
    assert (now["vllm:num_requests_running",], now["asterism:live_mixtures",]) == (3, 1)


def test_times_and_ends_are_counted_once_an_answer(fresh):
    fresh.client.post("/v1/completions", json={**QUESTION, "n": 2})
    fresh.client.post("/v1/completions", json={**QUESTION, "max_tokens": 2})
    now = figures(fresh)
    assert now["vllm:request_success_total", "stop"] == 2
    assert now["vllm:request_success_total", "length"] == 1
    assert now["vllm:request_success_total", "abort"] == 0
    for name in ("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"):
        assert now[f"{name}_count",] == 3
    assert now["vllm:time_to_first_token_seconds_sum",] <= now["vllm:e2e_request_latency_seconds_sum",]
    assert now["asterism:compose_seconds_count",] == 2
    assert figures(fresh)["asterism:compose_seconds_count",] == 2  # told once


def test_clients_who_went_away_and_errors_are_counted(fresh):
    fresh.engine.endless, fresh.engine.pause = True, 0.01
    host, port = fresh.url.removeprefix("http://").split(":")
    body = json.dumps({**QUESTION, "max_tokens": 100, "stream": True}).encode()
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        fresh.until(lambda: fresh.engine.running)
    fresh.until(lambda: figures(fresh).get(("vllm:request_success_total", "abort")) == 1)
    fresh.client.post("/v1/completions", json={"model": "tinny", "prompt": "a"})
    assert figures(fresh)["asterism:request_errors_total", "404"] == 1


def test_a_failed_answer_is_no_success(fresh):
    fresh.engine.breaks = lambda job, step: step == 1
    fresh.client.post("/v1/completions", json=QUESTION)
    now = figures(fresh)
    assert sum(value for name, value in now.items() if name[0] == "vllm:request_success_total") == 0
    assert now["asterism:request_errors_total", "500"] == 1


def test_a_dead_engine_is_told_by_health(fresh, monkeypatch):
    from asterism.serve.jobs import Stats

    assert fresh.client.get("/health").status_code == 200
    monkeypatch.setattr(fresh.asking.meter, "_stats", lambda: Stats(alive=False))
    for path in ("/health", "/ready"):
        assert fresh.client.get(path).status_code == 503
