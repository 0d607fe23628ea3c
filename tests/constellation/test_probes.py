"""The draw of index probes: seeded, from training text, complete."""

from __future__ import annotations

import pytest

from asterism.constellation.probes import draw_index_probes
from asterism.core.corpus import Corpus
from asterism.core.errors import UnknownName

TRAIN = {name: [f"{name} {n}" for n in range(size)] for name, size in (("general", 9), ("legal", 30), ("code", 3))}


def test_the_draw_is_seeded_limited_and_from_each_domains_own_texts():
    corpus = Corpus(train=TRAIN)
    drawn = draw_index_probes(corpus, ["legal", "code"], 5, seed=1)
    assert {name: len(texts) for name, texts in drawn.items()} == {"legal": 5, "code": 3, "general": 5}
    for name, texts in drawn.items():
        assert set(texts) <= set(TRAIN[name])
        assert len(set(texts)) == len(texts)
    assert drawn == draw_index_probes(corpus, ["legal", "code"], 5, seed=1)
    assert drawn["legal"] != draw_index_probes(corpus, ["legal"], 5, seed=2)["legal"]
    assert drawn["legal"] == draw_index_probes(corpus, ["legal"], 5, seed=1)["legal"]  # whatever other domains there are


def test_a_domain_without_training_text_is_named():
    with pytest.raises(UnknownName, match="did you mean 'legal'"):
        draw_index_probes(Corpus(train=TRAIN), ["legl"])


def test_without_general_text_there_are_no_general_probes():
    assert list(draw_index_probes(Corpus(train={"code": TRAIN["code"]}), ["code"])) == ["code"]
