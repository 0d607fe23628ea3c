"""`asterism serve` as a process of its own: a port that is taken, a signal under load, a start that fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from asterism.cli.app import main
from asterism.constellation.index import Constellation
from asterism.core.errors import SettingsError
from asterism.serve.server import address_of, listening
from tests import tiny

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    """A tiny library with its constellation."""
    library = tiny.tiny_library(tmp_path_factory.mktemp("process") / "tiny", "qwen2", kind="mlp")
    Constellation.build(library, tiny.tiny_probes()).save()
    return library.root


@pytest.fixture
def process(indexed) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server and its address, once it answers."""
    command = [sys.executable, "-m", "asterism", "serve", str(indexed), "--port", "0", "--device", "cpu", "--no-playground"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}) as running:
        assert running.stderr is not None
        told = []
        for line in running.stderr:
            told.append(line)
            if "ready" in line:
                break
        else:
            pytest.fail("".join(told))
        found = ADDRESS.search(told[-1])
        assert found
        try:
            yield running, found[0]
        finally:
            running.kill()


def test_at_a_signal_answers_under_way_finish_and_new_questions_are_refused(process):
    running, url = process
    question = {"model": "tiny", "prompt": "The patient", "max_tokens": 100, "n": 4, "temperature": 0, "stop": None, "stream": True}
    refused: list[httpx.Response] = []

    def late(client: httpx.Client) -> None:
        while True:
            answer = client.post(f"{url}/v1/completions", json={**question, "max_tokens": 1, "n": 1, "stream": False})
            if answer.status_code != 200:
                refused.append(answer)
                return

    with httpx.Client(timeout=30) as client, httpx.Client(timeout=30) as other:
        assert client.get(f"{url}/ready").status_code == 200
        written, finished = 0, set()
        with client.stream("POST", f"{url}/v1/completions", json=question) as answer:
            for line in answer.iter_lines():
                if not line or line.endswith("[DONE]"):
                    continue
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    written += bool(choice["text"])
                    finished |= {choice["index"]} if choice["finish_reason"] else set()
                if written == 1:
                    written += 1
                    running.send_signal(signal.SIGTERM)
                    asking = threading.Thread(target=late, args=(other,))
                    asking.start()
        asking.join(30)
    assert finished == {0, 1, 2, 3}
    assert (refused[0].status_code, refused[0].headers["retry-after"]) == (503, "5")
    assert "The server is stopping." in refused[0].text
    assert running.wait(20) == 0
    assert "stopped" in running.stderr.read()


def test_a_second_server_on_the_port_is_told_at_once(indexed, capsys):
    with listening("127.0.0.1", 0) as first:
        port = address_of(first).rpartition(":")[2]
        with pytest.raises(SystemExit) as ended:
            main(["serve", str(indexed), "--port", port])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "The port is taken" in told
    assert "--port" in told
    assert "Traceback" not in told


def test_ports_and_addresses_that_cannot_be_had():
    with pytest.raises(SettingsError, match="cannot listen there"):
        listening("192.0.2.1", 0)  # an address kept for documents
    with listening("127.0.0.1", 0) as one, listening("127.0.0.1", 0) as another:
        assert address_of(one) != address_of(another)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--port", "99999"], "port"),
        (["--name", "a b"], "name"),
        (["--chat-template", "chatlm"], "did you mean 'chatml'"),
        (["--api-keys", "/nowhere"], "keys cannot be read"),
        (["--host", "0.0.0.0", "--allow-changes"], "Everybody on the network"),
    ],
)
def test_what_cannot_be_served_is_told_in_three_lines(indexed, capsys, monkeypatch, arguments, match):
    monkeypatch.delenv("ASTERISM_API_KEYS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(indexed), "--port", "0", "--device", "cpu", *arguments])
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    assert match in told
    assert "Traceback" not in told


def test_an_engine_that_cannot_start_ends_the_server_with_its_reason(indexed, capsys, monkeypatch):
    from asterism.core.errors import UnsupportedError
    from asterism.serve.local.engine import LocalEngine

    async def refuse(self):
        raise UnsupportedError("The local engine cannot serve this architecture.", met="tiny", mend="another one")

    monkeypatch.setattr(LocalEngine, "start", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(indexed), "--port", "0", "--device", "cpu", "--no-playground"])
    assert ended.value.code == 2
    assert "cannot serve this architecture" in capsys.readouterr().err


def test_settings_of_another_engine_are_refused(indexed, capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("max_num_seqs: 4\n")
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(indexed), "--settings", str(tmp_path / "own.yaml")])
    assert ended.value.code == 2
    assert "Settings of another engine are given." in capsys.readouterr().err
