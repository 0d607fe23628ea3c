"""Every fault of a request or a client is told clearly, and the server stays up."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from asterism.core.errors import StorageError
from asterism.serve.errors import Refused, body_of, status_of, without_paths
from tests.serve.conftest import TEXT, events

JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def _still_up(server) -> Iterator[None]:
    """Whatever the test did, the next question is answered."""
    yield
    engine = server.engine
    engine.pause, engine.endless, engine.breaks, engine.refuses = 0.0, False, lambda job, step: False, None
    server.until(lambda: server.asking.gate.inside == 0)
    answer = server.client.post("/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 32})
    assert answer.json()["choices"][0]["text"] == TEXT


def send(server, content: bytes, headers: dict[str, str] = JSON, path: str = "completions") -> httpx.Response:
    return server.client.post(f"/v1/{path}", content=content, headers=headers)


def told(answer: httpx.Response) -> dict:
    """The error, whose form holds for every one."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "asterism"}
    assert set(error["asterism"]) == {"wrong", "met", "mend"}
    assert error["asterism"]["wrong"] in error["message"]
    return error


@pytest.mark.parametrize(
    ("content", "headers", "status", "match"),
    [
        (b'{"model": "tiny", ', JSON, 400, "not JSON"),
        (b"", JSON, 400, "Field required|not usable"),
        (b"[1, 2]", JSON, 400, "not usable"),
        (b'{"model": "tiny", "prompt": "caf\xe9"}', JSON, 400, "UTF-8"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', JSON, 400, "unicode"),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', JSON, 400, "temperature"),
        (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", JSON, 400, "."),
        (b"[" * 90_000, JSON, 400, "."),
        (b'{"model": "tiny", "prompt": "a"}', {"content-type": "text/plain"}, 415, "Content-Type"),
    ],
)
def test_bodies_that_cannot_be_read(server, content, headers, status, match):
    answer = send(server, content, headers)
    assert answer.status_code == status
    assert re.search(match, told(answer)["message"])


@pytest.mark.parametrize(
    ("fields", "param", "match"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "1"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1.5}, "n", "integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "7"}, "max_tokens", "integer"),
        ({"seed": -1}, "seed", "greater than or equal to 0"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"best_of": 4}, "best_of", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"echo": True, "logprobs": 1}, "echo", "not supported"),
        ({"stream_options": {"include_usage": True}}, None, "stream: true"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"top_k": 2}, "top_k", "put it under asterism"),
        ({"asterism": {"topk": 2}}, "asterism.topk", "did you mean 'top_k'"),
        ({"asterism": {"layers": 0}}, "asterism.layers", "greater than or equal to 1"),
        ({"asterism": {"mode": "slow"}}, "asterism.mode", "'evidence', 'fast' or 'nodes'"),
        ({"asterism": {"mixture": {"medical": 1.5}}}, "asterism.mixture", "less than or equal to 1"),
        ({"asterism": {"mixture": {"medicine": 1.0}}}, "asterism.mixture", "did you mean 'medical'"),
        ({"asterism": {"exclude": ["medicine"]}}, "asterism.exclude", "did you mean 'medical'"),
        ({"asterism": {"layers": 9}}, None, "fewer blocks"),
        ({"n": 100, "prompt": ["a", "b"]}, "n", "at most 128"),
    ],
)
def test_fields_that_cannot_be_used(post, fields, param, match):
    answer = post("completions", **fields)
    assert answer.status_code == 400
    error = told(answer)
    assert error["type"] == "invalid_request_error"
    assert match.casefold() in error["message"].casefold()
    assert error["param"] == param


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"tools": [{"type": "function"}]}, "tools is not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"reasoning_effort": "low"}, "reasoning_effort is not supported"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "'system', 'developer', 'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "'text'"),
        ({"messages": [{"role": "user", "content": ""}]}, "A text is empty"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "not valid Unicode"),
        ({"top_logprobs": 2}, "logprobs: true"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "differ"),
    ],
)
def test_fields_of_chats_that_cannot_be_used(server, fields, match):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], **fields}
    answer = send(server, json.dumps(body).encode(), path="chat/completions")
    assert answer.status_code == 400
    assert match in told(answer)["message"]


def test_an_unknown_model_is_told_the_nearest_one(post):
    answer = post("completions", model="tiny:medcal")
    assert answer.status_code == 404
    error = told(answer)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "Did you mean 'tiny:medical'?" in error["message"]


def test_an_over_long_prompt_is_refused_before_anything_reads_it(post, server):
    answer = post("completions", prompt="word " * 200)
    assert (answer.status_code, told(answer)["code"]) == (400, "context_length_exceeded")
    assert "128 positions" in told(answer)["message"]
    assert not server.engine.wishes


@pytest.mark.parametrize("told_long", [True, False])
def test_a_body_of_10_mb_is_refused_before_it_is_in(server, told_long):
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        while sent < 10_000_000:
            sent += 16_384
            yield b"x" * 16_384

    headers = {**JSON, "content-length": "10010624"} if told_long else JSON
    answer = server.client.post("/v1/completions", content=body(), headers=headers)
    assert (answer.status_code, told(answer)["code"]) == (413, "body_too_large")
    assert sent < 10_000_000  # the limit here is 100,000; the rest lay between client and server


def test_a_composition_that_names_a_removed_specialist_is_refused(post, server):
    server.engine.names = ("medical", "code")
    assert "specialist" in told(post("completions", asterism={"mixture": {"legal": 1.0}}))["message"]
    answer = post("completions", model="tiny:legal")
    assert (answer.status_code, told(answer)["code"]) == (404, "model_not_found")


def test_a_specialist_that_is_removed_between_choice_and_answer_is_told_as_unknown(post, server, monkeypatch):
    choose = server.engine.choose

    async def gone(tokens, wish):
        found = await choose(tokens, wish)
        server.engine.names = ("code",)
        return found

    monkeypatch.setattr(server.engine, "choose", gone)
    for stream in (False, True):
        server.engine.names = ("medical", "legal", "code")
        answer = post("completions", stream=stream)
        assert answer.status_code == 404
        assert "No such specialist" in told(answer)["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_step_that_fails_at_once_has_a_status_of_its_own(post, server, stream):
    server.engine.breaks = lambda job, step: True
    answer = post("completions", stream=stream)
    assert answer.status_code == 500
    assert "A step failed." in told(answer)["message"]


def test_a_step_that_fails_in_the_middle_is_told_in_the_stream_and_the_others_go_on(server, post):
    server.engine.breaks = lambda job, step: step == 3 and job.sampling.seed == 1

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient() as client:
            body = {"model": "tiny", "prompt": "a", "max_tokens": 32, "stream": True}
            return await asyncio.gather(*(client.post(f"{server.url}/v1/completions", json={**body, "seed": seed}) for seed in (0, 1, 2)))

    first, second, third = asyncio.run(both())
    for answer in (first, third):
        assert "".join(choice["text"] for chunk in events(answer) for choice in chunk["choices"]) == TEXT
    *chunks, last = events(second)
    assert len(chunks) == 4
    assert last["error"]["asterism"]["wrong"] == "A step failed."
    whole = post("completions", seed=1)
    assert (whole.status_code, told(whole)["asterism"]["wrong"]) == (500, "A step failed.")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_who_goes_away_frees_the_row_at_once(server, stream):
    engine = server.engine
    engine.endless, engine.pause = True, 0.01
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 120, "stream": stream, "n": 2}).encode()
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
    connection.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    server.until(lambda: len(engine.running) == 2)
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    left = time.monotonic()
    server.until(lambda: not engine.running and server.asking.gate.inside == 0)
    assert time.monotonic() - left < 0.5  # all of it takes 1.2 s


def test_a_client_who_goes_away_while_the_mixture_is_chosen_leaves_nothing_behind(server):
    server.engine.pause = 0.3
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/v1/completions", json={"model": "tiny", "prompt": "a"}, timeout=0.1)
    server.until(lambda: server.asking.gate.inside == 0)
    assert not server.engine.jobs


def test_a_full_server_tells_when_to_come_again(server, post):
    server.engine.endless, server.engine.pause = True, 0.01
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a", "n": 8, "max_tokens": 120, "stream": True}
    ):
        server.until(lambda: len(server.engine.running) == 8)
        answer = post("completions")
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert told(answer)["type"] == "rate_limit_error"
    assert told(post("completions", n=9))["message"].startswith("A request asks for more answers than the server holds.")


def test_a_fault_of_our_own_tells_nothing_of_itself(server, post, monkeypatch, caplog):
    async def broken(tokens, wish):
        raise RuntimeError(f"secret {server.asking.served.root} ASTERISM")

    monkeypatch.setattr(server.engine, "choose", broken)
    answer = post("completions")
    assert answer.status_code == 500
    assert told(answer)["code"] == "internal_error"
    for leaked in ("secret", str(server.asking.served.root), "RuntimeError", "Traceback", ".py"):
        assert leaked not in answer.text
    assert "secret" in caplog.text  # the log has it


def test_a_fault_in_the_middle_of_a_stream_tells_nothing_of_itself(server, post, monkeypatch, caplog):
    def broken(token, job):
        if len(server.engine.jobs) and server.engine.written > 2:
            raise RuntimeError("secret /etc/passwd")
        return original(token, job)

    original = server.engine._told
    monkeypatch.setattr(server.engine, "_told", broken)
    answer = post("completions", stream=True)
    assert answer.status_code == 200
    assert events(answer)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert "secret" in caplog.text


def test_paths_in_errors_from_below_are_their_last_names():
    error = StorageError("A file is damaged.", met="/home/me/library/legal/model.safetensors: bad", mend="copy ~/x/y again, or C:\\a\\b")
    assert body_of(error)["error"]["asterism"] == {
        "wrong": "A file is damaged.",
        "met": "model.safetensors: bad",
        "mend": "copy y again, or b",
    }
    assert status_of(error) == 500
    assert without_paths("3/4 of n/a, top_p and 1e-3/s") == "3/4 of n/a, top_p and 1e-3/s"
    own = Refused(404, "No such path.", met="GET /v1/x", mend="see /openapi.json")
    assert body_of(own)["error"]["message"] == "No such path. Met: GET /v1/x. See /openapi.json."


def test_unknown_paths_and_methods(server):
    missing = server.client.get("/v1/nothing")
    assert (missing.status_code, told(missing)["asterism"]["met"]) == (404, "GET /v1/nothing")
    wrong = server.client.get("/v1/completions")
    assert (wrong.status_code, told(wrong)["code"]) == (405, "method_not_allowed")


def test_nothing_is_answered_while_the_server_starts_or_stops(server, post, monkeypatch):
    from asterism.serve.errors import Away

    monkeypatch.setattr(server.asking, "away", Away("The server is stopping.", "it was told to stop"))
    for answer in (post("completions"), server.client.get("/ready"), server.client.get("/v1/models")):
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
    assert server.client.get("/health").status_code == 200


def test_names_of_a_client_are_told_as_they_are(post):
    assert repr("tiny:\\x9e\n") in told(post("completions", model="tiny:\\x9e\n"))["message"]
