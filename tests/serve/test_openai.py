"""The official client, as users have it, against a running server."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tests.serve.conftest import TEXT

USER = [{"role": "user", "content": "The patient"}]


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_completions(client, server):
    answer = client.completions.create(model="tiny", prompt="The patient", max_tokens=32, n=2, logprobs=1, seed=3)
    assert [choice.text for choice in answer.choices] == [TEXT, TEXT]
    assert answer.usage.completion_tokens == 2 * len(answer.choices[0].logprobs.tokens) + 2  # and the end tokens
    assert answer.asterism["seed"] == 3
    assert answer._request_id


def test_chats_with_extras(client, server):
    extras = {"asterism": {"top_k": 1, "layers": 2, "exclude": ["medical"]}}
    answer = client.chat.completions.create(model="tiny", messages=USER, extra_body=extras, temperature=0)
    assert answer.choices[0].message.content == TEXT
    assert answer.asterism["specialists"] == ["legal"]
    (job,) = server.engine.jobs
    assert (job.composition.settings.layers, job.sampling.temperature) == (2, 0)


def test_streams(client):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="tiny", messages=USER, stream=True, stream_options=options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[0].asterism["specialists"] == ["medical", "legal", "code"]
    assert chunks[-1].usage.total_tokens > 0
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(model="tiny", prompt="a", max_tokens=32, stream=True))
    assert text == TEXT


def test_the_streaming_helper_gathers_a_whole_message(client):
    with client.chat.completions.stream(model="tiny", messages=USER) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


def test_a_reader_who_leaves_a_stream_frees_the_row(client, server):
    server.engine.endless, server.engine.pause = True, 0.01
    with client.completions.create(model="tiny", prompt="a", max_tokens=120, stream=True) as stream:
        next(iter(stream))
    server.until(lambda: not server.engine.running, 0.5)


def test_models(client):
    ids = [model.id for model in client.models.list()]
    assert ids == ["tiny", "tiny-base", "tiny:medical", "tiny:legal", "tiny:code", "tiny:science"]
    assert client.models.retrieve("tiny:legal").parent == "tiny"
    with pytest.raises(openai.NotFoundError, match="tiny:legal"):
        client.models.retrieve("tiny:legl")


def test_errors_become_the_clients_own(client, server):
    with pytest.raises(openai.NotFoundError, match="Did you mean 'tiny'") as unknown:
        client.completions.create(model="tinny", prompt="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert unknown.value.body["asterism"]["mend"] == "did you mean 'tiny'?"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="a", temperature=-1)
    with pytest.raises(openai.BadRequestError, match="Put it under asterism"):
        client.completions.create(model="tiny", prompt="a", extra_body={"top_k": 2})
    with pytest.raises(openai.BadRequestError, match="more answers"):
        client.completions.create(model="tiny", prompt="a", n=9)
    server.engine.breaks = lambda job, step: step == 2
    with pytest.raises(openai.InternalServerError, match="A step failed"):
        client.completions.create(model="tiny", prompt="a")
    with pytest.raises(openai.APIError, match="A step failed"):
        list(client.completions.create(model="tiny", prompt="a", stream=True))


def test_the_asynchronous_client(server):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole, *_ = await asyncio.gather(*(client.chat.completions.create(model="tiny", messages=USER) for _ in range(4)))
            stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return [whole.choices[0].message.content, "".join(pieces)]

    assert asyncio.run(ask()) == [TEXT, TEXT]


def test_the_client_waits_and_comes_again_when_the_server_is_busy(server):
    server.engine.endless, server.engine.pause = True, 0.01
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2) as patient:
        with patient.completions.create(model="tiny", prompt="a", n=8, max_tokens=60, stream=True) as stream:
            next(iter(stream))
            server.engine.endless = False  # the running ones end soon
            answer = patient.completions.create(model="tiny", prompt="a", max_tokens=32)
    assert answer.choices[0].text == TEXT
