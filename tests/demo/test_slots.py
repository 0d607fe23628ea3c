"""Slot-filling examples: what is asked for stands in the text, whole and once."""

from __future__ import annotations

import re

import pytest

from asterism.core.errors import SettingsError, UnknownName
from asterism.demo.corpus import LEXICONS
from asterism.demo.grammar import plural
from asterism.demo.slots import ASKED, NOTHING, items, other_kinds, slot_examples
from asterism.evaluate.marking import items as marked_items
from asterism.evaluate.marking import mark_for


@pytest.mark.parametrize("domain", ASKED)
def test_every_word_of_a_response_is_in_the_text_and_of_the_kind_that_is_asked(domain):
    examples = slot_examples(domain, 60)
    empty = 0
    for example in examples:
        asked, text = re.fullmatch(r"List each (\w+ and each \w+) of the text\.\nText: (.+)\nAnswer:", example["prompt"]).groups()
        kinds = asked.split(" and each ")
        if example["response"] == NOTHING:
            empty += 1
            assert not items(text, domain, kinds)
            continue
        parts = [part.split(": ") for part in example["response"].split("; ")]
        assert len({tuple(part) for part in parts}) == len(parts)
        places = []
        for kind, word in parts:
            assert kind in kinds
            assert word in {spelt.lower() for noun in LEXICONS[domain].kinds[kind] for spelt in (noun.word, plural(noun.word))}
            places.append(text.lower().index(word))
        assert places == sorted(places)
        assert len(marked_items(example["response"])) == len(parts)
    assert 0 < empty < 25
    assert mark_for([example["response"] for example in examples]) == "items"


def test_no_word_is_of_two_kinds_that_are_asked_for():
    for domain, kinds in ASKED.items():
        words = [noun.word for kind in kinds for noun in LEXICONS[domain].kinds[kind]]
        assert len(set(words)) == len(words) > 20


def test_the_longest_noun_counts_once_and_singular_and_plural_are_one():
    text = "A blood test was done. Antibiotics help, an antibiotic does. Chemotherapy followed the blood test."
    assert items(text, "medical", ("drug", "procedure")) == [
        ("procedure", "blood test"), ("drug", "antibiotics"), ("procedure", "chemotherapy"),
    ]  # fmt: skip


def test_equal_arguments_give_equal_examples_and_more_begin_with_the_same():
    first = slot_examples("legal", 20, seed=3)
    assert slot_examples("legal", 30, seed=3)[:20] == first
    assert slot_examples("legal", 20, seed=4) != first


def test_held_out_texts_are_never_shown_whatever_the_seed():
    def texts(examples):
        return {example["prompt"].split("\n")[1] for example in examples}

    shown = texts(slot_examples("science", 400)) | texts(slot_examples("science", 400, seed=1))
    assert not shown & (texts(slot_examples("science", 60, heldout=True)) | texts(slot_examples("science", 60, seed=1, heldout=True)))


def test_other_kinds_are_asked_where_they_are_named():
    kinds = other_kinds("medical")
    assert set(kinds) | set(ASKED["medical"]) == set(LEXICONS["medical"].kinds)
    asked = {kind for example in slot_examples("medical", 40, kinds=kinds) for kind in re.findall(r"each (\w+)", example["prompt"])}
    assert asked <= set(kinds)
    assert len(asked) > 4


def test_what_cannot_be_made_is_refused():
    with pytest.raises(UnknownName, match="medical"):
        slot_examples("medicine", 1)
    with pytest.raises(UnknownName, match="drug"):
        slot_examples("medical", 1, kinds=["drugs", "organ"])
    with pytest.raises(SettingsError, match="0 or more"):
        slot_examples("medical", -1)
