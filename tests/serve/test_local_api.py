"""The API over the local engine with tiny models: what it answers is what the library's own functions answer."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from asterism.compose.answering import answer
from asterism.constellation.explanation import explain
from asterism.constellation.index import Constellation
from asterism.models.library import Library
from asterism.serve.local.engine import LocalEngine
from asterism.serve.served import Served
from asterism.serve.settings import ServeSettings
from tests import tiny
from tests.serve.conftest import events
from tests.serve.live import live

TEXT = "Is a surgeon liable when the patient develops an infection?"


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Library, Constellation]:
    library = tiny.tiny_library(tmp_path_factory.mktemp("local") / "tiny", "qwen2", kind="mlp")
    constellation = Constellation.build(library, tiny.tiny_probes())
    constellation.save()
    return library, constellation


@pytest.fixture(scope="module")
def local(both):
    with live(LocalEngine(*both), Served.of(*both), ServeSettings(allow_changes=True)) as running:
        yield running


def ask(local, **fields) -> dict:
    found = local.client.post("/v1/completions", json={"model": "tiny", "prompt": TEXT, "max_tokens": 12, "temperature": 0, **fields})
    assert found.status_code == 200, found.text
    return found.json()


def test_an_answer_is_what_generate_writes_under_the_same_mixture(local, both):
    (want,) = answer(*both, [TEXT], max_new_tokens=12)
    found = ask(local)
    assert found["choices"][0]["text"] == want.text
    assert found["asterism"]["shares"] == pytest.approx(want.mixture.shares, abs=1e-5)
    assert found["asterism"]["losses"] == pytest.approx(want.mixture.evidence, abs=1e-5)
    chunks = events(
        local.client.post("/v1/completions", json={"model": "tiny", "prompt": TEXT, "max_tokens": 12, "temperature": 0, "stream": True})
    )
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == want.text


def test_many_clients_get_what_each_would_get_alone(local):
    questions = [{"prompt": text, "seed": seed, "temperature": 1.0} for seed, text in enumerate(tiny.tiny_probes()["medical"])]
    alone = [ask(local, **question)["choices"][0]["text"] for question in questions]
    with ThreadPoolExecutor(len(questions)) as together:
        assert list(together.map(lambda question: ask(local, **question)["choices"][0]["text"], questions)) == alone
    assert len(set(alone)) > 1


def test_logprobs_of_the_generalist_add_up(local):
    found = ask(local, model="tiny-base", logprobs=20, max_tokens=2, temperature=1.0, seed=3)
    told = found["choices"][0]["logprobs"]
    assert all(value <= max(top.values()) + 1e-6 for value, top in zip(told["token_logprobs"], told["top_logprobs"], strict=True))


def test_explain_is_the_librarys_own(local, both):
    found = local.client.post("/v1/asterism/explain", json={"text": TEXT, "top_k": 2}).json()
    from asterism.constellation.settings import MixtureSettings

    want = explain(*both, TEXT, MixtureSettings(top_k=2))
    assert found["coefficients"] == pytest.approx(want["coefficients"], abs=1e-4)
    assert found["shares"] == pytest.approx(want["shares"], abs=1e-4)


def test_a_specialist_leaves_while_it_answers_and_comes_back(local, both):
    library, _ = both
    source = shutil.copytree(library.folder("science"), library.root / "elsewhere")
    question = {"model": "tiny:science", "prompt": "Photons", "max_tokens": 100, "temperature": 0, "stream": True}
    whole = ask(local, model="tiny:science", prompt="Photons", max_tokens=100)["choices"][0]["text"]
    text = ""
    with local.client.stream("POST", "/v1/completions", json=question) as under_way, httpx.Client(base_url=local.url) as other:
        lines = under_way.iter_lines()
        next(lines)
        assert other.delete("/v1/asterism/specialists/science").status_code == 200
        assert other.post("/v1/completions", json={**question, "stream": False}).status_code == 404
        from json import loads

        for line in lines:
            if line.startswith("data: {"):
                text += "".join(choice["text"] for choice in loads(line.removeprefix("data: "))["choices"])
    assert text == whole
    assert Library.open(library.root).names == ("medical", "legal", "code")
    body = {"name": "science", "source": str(source), "probes": list(tiny.PROBES["science"])}
    assert local.client.post("/v1/asterism/specialists", json=body).status_code == 201
    assert Library.open(library.root).names == tiny.DOMAINS
    assert ask(local, model="tiny:science", prompt="Photons", max_tokens=100)["choices"][0]["text"] == whole


def test_a_saved_mixture_answers_as_the_text_that_it_was_saved_from(local):
    saved = local.client.post("/v1/asterism/compositions", json={"label": "surgeon", "text": TEXT})
    assert saved.status_code == 201, saved.text
    assert ask(local, model="tiny@surgeon")["choices"][0]["text"] == ask(local, asterism={"renew": 0})["choices"][0]["text"]
    assert ask(local, model="tiny@surgeon")["asterism"]["key"] == ask(local)["asterism"]["key"]


def test_metrics_count_what_was_done(local):
    page = local.client.get("/metrics").text
    assert 'vllm:num_requests_running{model_name="tiny"} 0.0' in page
    assert "asterism:compose_seconds_count" in page


def test_a_source_that_is_no_specialist_leaves_everything_as_it_was(local, both):
    body = {"name": "poetry", "source": "/nowhere/secret/poetry", "probes": ["a"]}
    answer = local.client.post("/v1/asterism/specialists", json=body)
    assert answer.status_code == 400
    assert "/nowhere" not in answer.text
    assert Library.open(both[0].root).names == tiny.DOMAINS
    assert ask(local)["choices"]
