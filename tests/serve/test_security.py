"""Keys: who may ask, compared in constant time."""

from __future__ import annotations

import base64
import hmac

import httpx
import openai
import pytest

from asterism.core.errors import SettingsError, StorageError, UnsupportedError
from asterism.serve.security import Keys, read_keys
from asterism.serve.server import check_open
from tests.serve.live import live

KEYS = ("first-key-123", "second-key-456")


@pytest.fixture(scope="module")
def guarded(served):
    from tests.serve.scripted import Scripted

    with live(Scripted(lambda job: ()), served, keys=KEYS) as running:
        yield running


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize("header", [f"Bearer {KEYS[0]}", f"bearer {KEYS[1]}", basic(KEYS[1])])
def test_every_key_lets_in(guarded, header):
    assert guarded.client.get("/v1/models", headers={"authorization": header}).status_code == 200


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer first-key-12", f"Bearer {KEYS[0]}x", KEYS[0], basic("x"), "Basic %%%", "Bearer \xe9"]
)
def test_nothing_else_does(guarded, header):
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = guarded.client.get("/v1/models", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == 'Bearer realm="asterism"'
    assert not any(key in answer.text for key in KEYS)


def test_probes_need_no_key_and_pages_ask_a_browser_for_one(guarded):
    for path in ("/health", "/ready", "/metrics"):
        assert guarded.client.get(path).status_code == 200
    for path in ("/", "/openapi.json", "/v1x"):
        answer = guarded.client.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'Basic realm="asterism"')


def test_a_stranger_learns_neither_models_nor_limits(guarded):
    long = guarded.client.post("/v1/completions", content=b"x" * 5_000_000)
    assert long.status_code == 401


def test_the_official_client_brings_its_key(guarded):
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=KEYS[0], max_retries=0) as known:
        assert len(list(known.models.list())) == 6
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="other", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="The key is not known"):
            stranger.models.list()


def test_every_key_is_compared_whole_whatever_was_found(monkeypatch):
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda known, given: compared.append(len(given)) or compare(known, given))
    keys = Keys(lambda *_: None, KEYS, lambda *_: None)  # type: ignore[arg-type]
    assert keys.knows(f"Bearer {KEYS[0]}")
    assert not keys.knows("Bearer x")
    assert not keys.knows("nothing")
    assert compared == [32] * 6  # digests of one length, so no length is told either


def test_a_websocket_without_a_key_is_closed(served, scripted):
    import asyncio

    from asterism.serve.app import create_app

    sent = []

    async def ask() -> None:
        async def send(message):
            sent.append(message)

        async def receive():
            return {"type": "websocket.connect"}

        app = create_app(scripted(), served, keys=KEYS)
        await app({"type": "websocket", "path": "/x", "headers": [], "query_string": b"", "subprotocols": []}, receive, send)

    asyncio.run(ask())
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEYS[0]}\n\n  {KEYS[1]} \n")
    monkeypatch.delenv("ASTERISM_API_KEYS", raising=False)
    assert read_keys(None) == ()
    assert read_keys(file) == KEYS
    monkeypatch.setenv("ASTERISM_API_KEYS", f"third-key-789, {KEYS[0]}")
    assert read_keys(file) == ("third-key-789", KEYS[0], KEYS[1])
    assert read_keys(None) == ("third-key-789", KEYS[0])


@pytest.mark.parametrize(
    ("text", "error"),
    [(b"# none\n", SettingsError), (b"short\n", SettingsError), (b"k\xc3\xa9y-with-accent\n", SettingsError), (b"\xff", StorageError)],
)
def test_files_of_keys_that_cannot_be_used(tmp_path, monkeypatch, text, error):
    monkeypatch.delenv("ASTERISM_API_KEYS", raising=False)
    file = tmp_path / "keys"
    file.write_bytes(text)
    with pytest.raises(error) as refused:
        read_keys(file)
    assert "short" not in str(refused.value)  # a key is never shown
    with pytest.raises(StorageError):
        read_keys(tmp_path / "missing")


def test_nobody_on_the_network_may_change_the_library_without_a_key():
    with pytest.raises(UnsupportedError, match="Everybody on the network"):
        check_open("0.0.0.0", keys=(), allow_changes=True)
    check_open("0.0.0.0", keys=KEYS, allow_changes=True)
    check_open("127.0.0.1", keys=(), allow_changes=True)
    check_open("0.0.0.0", keys=(), allow_changes=False)


def test_a_server_without_keys_lets_everybody_in(server):
    assert httpx.get(f"{server.url}/v1/models").status_code == 200
