"""Tokens become text piece by piece, and the pieces make up the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterism.serve.jobs import Token
from asterism.serve.text import Decoding, Names, Text
from tests import tiny

TOKENIZER = tiny.tiny_tokenizer()
IDS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60)


def whole(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def encoded(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@given(IDS, IDS)
def test_pieces_of_any_tokens_make_up_the_whole_text(context, ids):
    decoding = Decoding(TOKENIZER, context)
    pieces = [decoding.feed(id) for id in ids] + [decoding.flush()]
    kept = [] if whole(context[-8:]).endswith("�") else context[-8:]
    assert "".join(pieces) == whole(kept + ids)[len(whole(kept)) :]


@given(st.text(max_size=40))
def test_no_piece_ends_inside_a_character(text):
    decoding = Decoding(TOKENIZER)
    pieces = [decoding.feed(id) for id in encoded(text)]
    assert "".join(pieces) == text.encode("utf-8", "replace").decode()
    assert "�" in text or not any("�" in piece for piece in pieces)


@given(st.text(alphabet="abc", max_size=30), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_cut_where_they_first_are_whole_and_nothing_of_them_is_told(text, stops):
    growing = Text(Decoding(TOKENIZER), tuple(stops))
    told, ended = "", False
    for id in encoded(text):
        piece = growing.feed(Token(id))
        told += piece.text
        if piece.ended:
            ended = True
            break
    if not ended:
        told += growing.flush().text
    found = [text.find(stop) for stop in stops if stop in text]
    assert ended == bool(found)
    assert text.startswith(told)
    assert not any(stop in told for stop in stops)
    if not found:
        assert told == text


def test_tokens_are_told_with_the_text_that_they_begin():
    ids = encoded("the café stop it")
    growing = Text(Decoding(TOKENIZER), ("stop",))
    text, tokens = "", []
    for id in ids:
        piece = growing.feed(Token(id))
        text, tokens = text + piece.text, tokens + list(piece.tokens)
        assert all(one.start < len(text) for one in tokens)
        if piece.ended:
            break
    assert text == "the café "
    assert [one.token.id for one in tokens] == ids[: len(tokens)]
    assert len({one.start for one in tokens}) >= len(tokens) - 1  # the two bytes of é begin at one place


def test_tokens_that_end_an_answer_give_no_text():
    growing = Text(Decoding(TOKENIZER), (), frozenset(encoded("a")))
    assert growing.feed(Token(encoded("a")[0])).tokens == ()
    assert growing.flush().text == ""


@pytest.mark.parametrize("text", ["a", " the", "é"])
def test_tokens_are_named_by_their_text_or_their_bytes(text):
    names = Names(TOKENIZER)
    ids = encoded(text)
    assert b"".join(names.bytes(id) for id in ids) == text.encode()
    for id in ids:
        assert names.name(id) == names.bytes(id).decode() if len(ids) == 1 else names.name(id).startswith("bytes:\\x")


def test_special_tokens_have_their_own_names():
    assert Names(TOKENIZER).name(TOKENIZER.eos_token_id) == TOKENIZER.eos_token
