"""Tokens of two kinds of vocabulary: what they stand for, which belong together, and the nearest of another, against plain recursions."""

from __future__ import annotations

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import MismatchError
from asterism.core.token_alignment import (
    Vocabulary,
    VocabularyMap,
    edit_alignment,
    edit_distances,
    one_to_one,
    span_alignment,
)
from asterism.models.spelling import vocabulary_of
from tests.tiny import PROBES, tiny_tokenizer
from tests.vocabularies import larger, sentence_piece

TEXTS = [*PROBES["medical"], *PROBES["code"], "naïve café — 東京 \U0001f680"]
WORDS = st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=5)


def levenshtein(a: bytes, b: bytes) -> int:
    """Its definition."""

    @functools.cache
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


def paths(n: int, m: int) -> list[list[tuple[int, int]]]:
    """Every path from (0, 0) to (n - 1, m - 1)."""
    if n == m == 1:
        return [[(0, 0)]]
    before = [(n - 1, m), (n, m - 1), (n - 1, m - 1)]
    return [[*path, (n - 1, m - 1)] for a, b in before if a and b for path in paths(a, b)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", [tiny_tokenizer, larger])
def test_byte_level_tokens_spell_the_text(make, text):
    tokenizer = make()
    assert b"".join(vocabulary_of(tokenizer).spelt(tokenizer(text)["input_ids"])) == text.encode()


def test_sentence_piece_tokens_spell_the_text_behind_a_space():
    tokenizer = sentence_piece()
    vocabulary = vocabulary_of(tokenizer)
    text = PROBES["medical"][0]
    assert b"".join(vocabulary.spelt(tokenizer(text, add_special_tokens=False)["input_ids"])) == b" " + text.encode()
    assert vocabulary.texts[tokenizer.convert_tokens_to_ids("<0x0A>")] == b"\n"


def test_special_tokens_stand_for_no_text_and_added_ones_for_themselves():
    vocabulary = Vocabulary.of({"<s>": 0, "Ġa": 1, "Ċ": 2, "é": 4, "<pad>": 3}, end=0, special=[3], literal=[4])
    assert vocabulary.texts == (None, b" a", b"\n", None, "é".encode())
    assert vocabulary.spelt([1, 0, 99, 2]) == [b" a", b"", b"", b"\n"]
    assert (vocabulary.end, vocabulary.ids[b"\n"]) == (0, 2)


@given(st.binary(max_size=6), st.lists(st.binary(max_size=6), min_size=1, max_size=4))
def test_distances_are_levenshteins(word, others):
    assert edit_distances(word, others).tolist() == [levenshtein(word, other) for other in others]


@given(WORDS, WORDS)
def test_the_alignment_is_the_cheapest_of_all_paths(left, right):
    def cost(path) -> int:
        return sum(levenshtein(left[i], right[j]) for i, j in path)

    found = edit_alignment(left, right)
    assert found in paths(len(left), len(right))
    assert cost(found) == min(map(cost, paths(len(left), len(right))))


def test_tokens_that_are_alike_are_paired_one_to_one():
    left, right = [b" Mar", b"vin", b" Minsky", b";"], [b" Marvin", b" Minsky", b";"]
    assert edit_alignment(left, right) == [(0, 0), (1, 0), (2, 1), (3, 2)]
    assert one_to_one(edit_alignment(left, right)) == [(2, 1), (3, 2)]
    assert edit_alignment(right, left) == [(0, 0), (0, 1), (1, 2), (2, 3)]
    assert edit_alignment(left, []) == []


@pytest.mark.parametrize("text", TEXTS)
def test_spans_pair_what_overlaps(text):
    one, two = tiny_tokenizer(), larger()
    left, right = (vocabulary_of(each).spelt(each(text)["input_ids"]) for each in (one, two))

    def covers(tokens):
        edges = list(itertools.accumulate(map(len, tokens), initial=0))
        return [set(range(a, b)) for a, b in itertools.pairwise(edges)]

    wanted = [(i, j) for i, a in enumerate(covers(left)) for j, b in enumerate(covers(right)) if a & b]
    assert span_alignment(left, right) == sorted(wanted)


def test_a_space_before_the_text_does_not_count():
    assert span_alignment([b"ab", b"c"], [b" a", b"bc"]) == [(0, 0), (0, 1), (1, 1)]
    assert span_alignment([b" ", b"ab"], [b"ab"]) == [(1, 0)]
    with pytest.raises(MismatchError, match="align by edit distance"):
        span_alignment([b"AB"], [b"ab"])


def test_a_token_goes_to_the_same_text_else_to_the_nearest():
    source = Vocabulary.of({"<s>": 0, "Ġhospital": 1, "Ġhospitals": 2, "xyz": 3, "Ġ": 4, "<x>": 5}, end=0, special=[5])
    target = Vocabulary.of({"▁hospital": 0, "▁hospices": 1, "▁": 2, "</s>": 3, "q": 4}, end=3)
    nearest = VocabularyMap(source, target)
    assert [nearest(token) for token in range(6)] == [3, 0, 0, None, 2, None]


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=12, unique=True), st.binary(min_size=1, max_size=5))
def test_the_nearest_is_the_least_of_all(texts, word):
    target = Vocabulary(tuple(texts))
    best = min(range(len(texts)), key=lambda id: (levenshtein(word, texts[id]), abs(len(texts[id]) - len(word)), len(texts[id]), id))
    shared = levenshtein(word, texts[best]) < max(len(word), len(texts[best]))
    found = VocabularyMap(Vocabulary((word,)), target)(0)
    if shared:
        assert found == best
    elif found is not None:  # another of the same distance, which is longer than the word
        assert levenshtein(word, texts[found]) < max(len(word), len(texts[found]))


def test_two_trained_vocabularies_meet():
    one, two = vocabulary_of(tiny_tokenizer()), vocabulary_of(sentence_piece())
    mapped = VocabularyMap(two, one)
    same = {id: one.ids[text] for id, text in enumerate(two.texts) if text in one.ids}
    assert len(same) > 50
    assert all(mapped(id) == wanted for id, wanted in same.items())
    assert mapped(two.end) == one.end
