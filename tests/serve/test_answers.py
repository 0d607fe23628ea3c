"""Completions and chats, whole and streamed: OpenAI's shapes, the same text both ways, and the mixture beside it."""

from __future__ import annotations

import pytest

from tests.serve.conftest import TEXT, events

CHOSEN = {"medical": 0.25, "legal": 0.25, "code": 0.25}


def test_a_completion_tells_text_usage_and_mixture(post, server):
    answer = post("completions").json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}]
    (job,) = server.engine.jobs
    written = len(server.engine.answer(job))
    assert answer["usage"] == {
        "prompt_tokens": len(job.tokens),
        "completion_tokens": written,
        "total_tokens": len(job.tokens) + written,
        "prompt_tokens_details": {"cached_tokens": len(job.tokens) // 2},
    }
    told = answer["asterism"]
    assert (told["shares"], told["specialists"], told["generalist"]) == (pytest.approx(CHOSEN), list(CHOSEN), 0.25)
    assert told["entropy"] == pytest.approx(2.0)
    assert told["key"] == job.composition.key


def test_a_chat_tells_a_message(post):
    answer = post("chat/completions").json()
    assert answer["object"] == "chat.completion"
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    assert answer["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert answer["asterism"]["shares"] == pytest.approx(CHOSEN)


def test_completions_end_after_16_tokens_and_chats_where_the_room_does_unless_told(post, server):
    server.engine.endless = True
    server.engine.answer = lambda job: [40]
    assert post("completions", max_tokens=None).json()["usage"]["completion_tokens"] == 16
    usage = post("chat/completions").json()["usage"]
    assert usage["total_tokens"] == 128
    assert post("chat/completions", max_tokens=3).json()["usage"]["completion_tokens"] == 3
    assert post("chat/completions", max_completion_tokens=4).json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("fields", [{}, {"n": 3}, {"stop": ["and", "café"]}, {"max_tokens": 4}, {"echo": True, "n": 2}])
def test_a_streamed_completion_adds_up_to_the_whole_one(post, fields):
    whole = post("completions", seed=1, **fields).json()
    chunks = events(post("completions", seed=1, stream=True, stream_options={"include_usage": True}, **fields))
    texts, finishes = [""] * len(whole["choices"]), [None] * len(whole["choices"])
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            finishes[choice["index"]] = choice["finish_reason"] or finishes[choice["index"]]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert finishes == [choice["finish_reason"] for choice in whole["choices"]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    for chunk in (chunks[0], chunks[-1]):
        assert chunk["asterism"]["shares"] == whole["asterism"]["shares"]


def test_a_streamed_chat_begins_with_who_speaks_and_ends_without_usage_unless_asked(post):
    chunks = events(post("chat/completions", stream=True))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == TEXT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[0]["asterism"]["shares"] == pytest.approx(CHOSEN)


def test_several_prompts_get_a_mixture_each_and_answers_in_order(post, server):
    answer = post("completions", prompt=["one", "two", "three"], n=2, echo=True, seed=5).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == [f"{word}{TEXT}" for word in ("one", "one", "two", "two", "three", "three")]
    assert len(server.engine.wishes) == 3
    assert len(answer["asterism"]["prompts"]) == 3
    streamed = events(post("completions", prompt=["one", "two"], n=2, stream=True, echo=True))
    texts = [""] * 4
    for chunk in streamed:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == [f"{word}{TEXT}" for word in ("one", "one", "two", "two")]


def test_prompts_may_be_tokens(post, server):
    post("completions", prompt=[5, 6, 7])
    post("completions", prompt=[[5], [6, 7]])
    assert sorted(job.tokens for job in server.engine.jobs) == [(5,), (5, 6, 7), (6, 7)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_completions_logprobs_stand_where_their_text_does(post, stream, server):
    answer = post("completions", logprobs=2, stop="bread", stream=stream)
    choices = [choice for chunk in events(answer) for choice in chunk["choices"]] if stream else answer.json()["choices"]
    text = "".join(choice["text"] for choice in choices)
    told = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    tokens = [token for one in told for token in one["tokens"]]
    offsets = [offset for one in told for offset in one["text_offset"]]
    assert len(tokens) == len(offsets) == len([value for one in told for value in one["token_logprobs"]])
    for token, offset in zip(tokens, offsets, strict=True):
        assert text[offset:].startswith(token) or token.startswith("bytes:") or "bread".startswith(token[len(text) - offset :])
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    assert all(len(top) == 2 and -1.0 in top.values() for one in told for top in one["top_logprobs"])


def test_a_chats_logprobs_hold_the_bytes_of_every_token(post):
    answer = post("chat/completions", logprobs=True, top_logprobs=2).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for one in content for byte in one["bytes"]).decode() == TEXT
    assert all([top["logprob"] for top in one["top_logprobs"]] == [-1.0, -2.0] for one in content)
    assert post("chat/completions", logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    assert post("completions", logprobs=0).json()["choices"][0]["logprobs"]["top_logprobs"] is None


def test_a_probability_of_nothing_is_told_as_a_number(post, server, monkeypatch):
    from asterism.serve.jobs import Token

    monkeypatch.setattr(server.engine, "_told", lambda token, job: Token(token, float("-inf"), ()))
    assert post("completions", logprobs=0).json()["choices"][0]["logprobs"]["token_logprobs"][0] == -9999.0


def test_what_is_asked_reaches_the_engine_unchanged(post, server):
    post("completions", temperature=0.25, top_p=0.5, seed=11, max_tokens=7)
    (job,) = server.engine.jobs
    assert (job.sampling.temperature, job.sampling.top_p, job.sampling.seed, job.sampling.max_tokens) == (0.25, 0.5, 11, 7)
    post("completions")
    other = server.engine.jobs[1].sampling
    assert (other.temperature, other.top_p) == (1.0, 1.0)


def test_fields_that_ask_for_nothing_are_taken(post):
    nothing = {"frequency_penalty": 0, "presence_penalty": None, "logit_bias": {}, "user": "me", "metadata": {"a": "b"}}
    assert post("completions", best_of=2, n=2, suffix="", **nothing).status_code == 200
    chat = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "modalities": ["text"]}
    assert post("chat/completions", **chat, **nothing).status_code == 200
    assert post("completions", n=None, temperature=None, stop=None, stream=None, asterism=None).status_code == 200


def test_messages_are_read_plainly_without_a_template_and_through_one_with(post, server, monkeypatch):
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "The "}, {"type": "text", "text": "patient"}]},
        {"role": "assistant", "content": "Yes?", "refusal": None},
        {"role": "user", "content": "Go on", "name": "Eve"},
    ]
    assert post("chat/completions", messages=messages).status_code == 200
    decode = server.asking.served.tokenizer.decode
    assert decode(server.engine.jobs[0].tokens) == "Be short.\n\nThe patient\n\nYes?\n\nGo on"
    monkeypatch.setattr(server.asking, "template", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!")
    assert post("chat/completions", messages=messages).status_code == 200
    assert decode(server.engine.jobs[1].tokens) == "<system>Be short.<user>The patient<assistant>Yes?<user>Go on!"


def test_a_template_may_refuse_a_conversation(post, server, monkeypatch):
    monkeypatch.setattr(server.asking, "template", "{{ raise_exception('Roles must alternate.') }}")
    answer = post("chat/completions")
    assert answer.status_code == 400
    assert "Roles must alternate." in answer.json()["error"]["message"]


def test_renewed_mixtures_are_told_in_streams_and_wholes(post):
    extras = {"renew": 4}
    whole = post("completions", max_tokens=10, asterism=extras).json()["asterism"]["renewed"]
    assert [(one["index"], one["after"], one["shares"]) for one in whole] == [(0, 4, {"science": 1.0}), (0, 8, {"science": 1.0})]
    streamed = events(post("completions", max_tokens=10, asterism=extras, stream=True))
    told = [chunk["asterism"]["renewed"]["after"] for chunk in streamed if "renewed" in chunk.get("asterism", {})]
    assert told == [4, 8]


def test_health_readiness_and_every_answer_has_an_id(server):
    assert server.client.get("/health").json() == {"status": "up", "running": 0}
    assert server.client.get("/ready").json()["status"] == "ready"
    assert server.client.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    odd = server.client.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert odd != "a b"
