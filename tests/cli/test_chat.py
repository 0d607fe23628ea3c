"""`asterism chat`: from a pipe, with commands, and as `asterism generate` answers."""

from __future__ import annotations

import io

import pytest

QUERY = "Is a surgeon liable for negligence when the patient develops an infection?"


@pytest.fixture
def chat(asterism, original, monkeypatch):
    def run(*lines: str, options: tuple = ()):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return asterism("chat", original, "--max-new-tokens", 5, *options)

    return run


def test_an_answer_is_the_one_that_generate_gives(chat, asterism, original):
    ran = chat(QUERY, options=("--json", "--top-k", 2))
    assert ran.code == 0, ran.err
    want = asterism("generate", original, QUERY, "--max-new-tokens", 5, "--top-k", 2, "--json").answer["answers"][0]
    (turn,) = ran.answer["turns"]
    assert turn["assistant"] == want["answer"]
    assert turn["mixtures"][0]["shares"] == pytest.approx(want["shares"], abs=1e-5)
    assert turn["whole"]


def test_commands(chat):
    ran = chat(
        "/help", QUERY, "/why", "/who legal", "A court", "/top 2", "/mode fast", "/who all", "/new", "The nurse", "", "/quit", "never"
    )
    assert ran.code == 0, ran.err
    assert ran.err == ""
    assert "/who NAME" in ran.out
    assert "entropy" in ran.out
    assert "[legal 100%]" in ran.out
    assert ran.out.count("[") == 3
    assert "never" not in ran.out


def test_errors_are_told_and_the_conversation_goes_on(chat):
    ran = chat("/why", "/whi legal", "/who leagl", "/top many", "/mode evidense", "/top 9", QUERY, "/top 2", QUERY)
    assert ran.code == 0
    for word in ("Nothing has been answered", "'/why'", "'legal'", "e.g. /top 2", "mode", "1 to 4"):
        assert word in ran.err, ran.err
    assert ran.err.count("error: ") == 6
    assert ran.out.count("[") == 1
    assert "Traceback" not in ran.err


def test_an_interrupt_breaks_the_answer_off_and_the_next_one_is_whole(chat, monkeypatch):
    from asterism.serve.talk import talk

    def interrupted(parts):
        monkeypatch.setattr(talk, "_next", before)
        raise KeyboardInterrupt

    before = talk._next
    monkeypatch.setattr(talk, "_next", interrupted)
    ran = chat("The court", "The nurse", options=("--json",))
    assert [turn["whole"] for turn in ran.answer["turns"]] == [False, True]
    assert [turn["assistant"] == "" for turn in ran.answer["turns"]] == [True, False]
