"""Marks of answers by hand-made cases, the micro F1 against its definition, and how a task's mark is chosen."""

from __future__ import annotations

import pytest

from asterism.evaluate.marking import Marked, items, last_number, mark_for, marked, normalised


def test_items_are_types_with_words_whatever_their_case_and_order():
    assert items(" university: MIT; researcher:  Marvin  Minsky;researcher: Seymour Papert.") == {
        ("university", "mit"), ("researcher", "marvin minsky"), ("researcher", "seymour papert")
    }  # fmt: skip
    assert items("Work for: Fred Bauman ,Habitat; ") == {("work for", "fred bauman, habitat")}
    assert items("None") == items("") == items("person: None") == frozenset()
    assert items("a word; time: 10:30") == {("", "a word"), ("time", "10:30")}


@pytest.mark.parametrize(
    ("answer", "gained", "possible"),
    [
        ("city: Rome; person: Ann", 4, 4),
        ("Person: ann", 2, 3),
        ("person: Ann; person: Ann; city: Paris", 2, 4),
        ("city: Ann; person: Rome", 0, 4),
        ("None", 0, 2),
    ],
)
def test_f1_counts_hits_twice_over_given_and_wanted(answer, gained, possible):
    assert marked("items", answer, " person: Ann; city: Rome") == Marked(gained, possible)


def test_nothing_given_where_nothing_is_wanted_is_right():
    assert marked("items", "None", "") == Marked(0, 0)
    assert marked("items", "None", "").share == 1
    assert marked("items", "x: y", "None").share == 0


def test_micro_f1_is_that_of_all_items_together():
    pairs = [("a: 1; a: 2", "a: 1"), ("b: 3", "b: 3; b: 4; b: 5"), ("None", "c: 1")]
    hits = sum(len(items(answer) & items(wanted)) for answer, wanted in pairs)
    given, wanted = (sum(len(items(text)) for text in side) for side in zip(*pairs, strict=True))
    precision, recall = hits / given, hits / wanted
    rows = [marked("items", *pair) for pair in pairs]
    assert sum(row.gained for row in rows) / sum(row.possible for row in rows) == pytest.approx(
        2 * precision * recall / (precision + recall)
    )


def test_labels_numbers_and_texts():
    assert marked("label", " Positive.", "positive").share == 1
    assert marked("label", "positive or so", "positive").share == 0
    assert marked("number", "16 * 2 = 32\n#### 1,032.50", "#### 1032.5").share == 1
    assert marked("number", "no number", "none here") == Marked(0, 1)
    assert marked("exact", "ls  -l\n", "ls -l").share == 1
    assert marked("exact", "LS -l", "ls -l").share == 0
    assert last_number("-3 and then -4.") == -4
    assert normalised(" “Café\u00a0A” ") == "“café a”"


@pytest.mark.parametrize(
    ("wanted", "mark"),
    [
        ([" university: MIT", "None", "person: A; city: B"], "items"),
        (["None", "None", "None", "None"], "label"),
        (["steps\n#### 3", "more\n#### 4"], "number"),
        (["positive", "Negative", "positive", "negative."], "label"),
        (["one", "two", "three", "one"], "exact"),
        (["ls -l", "cat a | wc"], "exact"),
        (["a: b", "plain text"], "exact"),
    ],
)
def test_the_mark_follows_from_what_is_wanted(wanted, mark):
    assert mark_for(wanted) == mark
