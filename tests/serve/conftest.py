"""A tiny library as the API sees it, and a scripted engine that answers with a text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from asterism.models.library import Library
from asterism.serve.served import Served
from asterism.serve.settings import ServeSettings
from tests import tiny
from tests.serve.live import Live, live
from tests.serve.scripted import Scripted

TEXT = " the patient was given café and bread."


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Library:
    """A tiny library on disk, never to be changed."""
    return tiny.tiny_library(tmp_path_factory.mktemp("serve") / "tiny", "qwen2", kind="mlp")


@pytest.fixture(scope="session")
def served(library) -> Served:
    return Served.of(library, SimpleNamespace(settings=SimpleNamespace(max_length=256)))  # type: ignore[arg-type]


@pytest.fixture
def scripted(served) -> Callable[..., Scripted]:
    """`scripted(text)`: an engine that answers with this text and the end token."""

    def make(text: str = TEXT, **switches: Any) -> Scripted:
        tokens = [*served.tokenizer(text, add_special_tokens=False)["input_ids"], served.tokenizer.eos_token_id]
        return Scripted(lambda job: tokens, **switches)

    return make


@pytest.fixture(scope="session")
def _running(served) -> Iterator[Live]:
    with live(Scripted(lambda job: ()), served, ServeSettings(most_jobs=8, body_bytes=100_000)) as running:
        yield running


@pytest.fixture
def server(_running, scripted) -> Iterator[Live]:
    """A running server whose engine plays `TEXT`; its switches are as new for every test, and no answer may be left behind."""
    _running.engine.__dict__ |= scripted().__dict__
    yield _running
    _running.until(lambda: not _running.engine.running and _running.asking.gate.inside == 0)


@pytest.fixture
def post(server) -> Callable[..., httpx.Response]:
    """`post("completions", field=value)`: model `tiny`, a prompt or message, and room for `TEXT`, unless given."""

    def run(path: str, **fields: Any) -> httpx.Response:
        question = (
            {"prompt": "The patient", "max_tokens": 32}
            if path == "completions"
            else {"messages": [{"role": "user", "content": "The patient"}]}
        )
        body = {"model": "tiny", **(question if not path.startswith("asterism") else {}), **fields}
        if path.startswith("asterism"):
            del body["model"]
        return server.client.post(f"/v1/{path}", json=body)

    return run


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends as it should."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]
