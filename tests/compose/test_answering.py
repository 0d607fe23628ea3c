"""Answers: the composed model's own continuation, with mixtures refined or renewed on the way."""

from __future__ import annotations

import pytest
import torch

from asterism.compose.answering import answer
from asterism.compose.composer import Composer
from asterism.compose.refining import refined
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError
from tests.tiny import CROSS, tiny_library, tiny_probes

TEXTS = [text for text, _ in CROSS[:3]]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    library = tiny_library(tmp_path_factory.mktemp("library"))
    return Constellation.build(library, tiny_probes(), IndexSettings(max_length=12))


def continued(library, model, ids: list[int], new: int) -> list[int]:
    """Greedy, one token after another, without a cache."""
    ids = list(ids)
    for _ in range(new):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def test_one_text_alone_and_among_others(built):
    library = built.library
    together = answer(library, built, TEXTS, max_new_tokens=5)
    composer = Composer(library)
    for text, one in zip(TEXTS, together, strict=True):
        ids = library.tokenizer(text)["input_ids"]
        want = continued(library, composer.materialise(built.mixture(text)), ids, 5)[len(ids) :]
        assert one.text == library.tokenizer.decode(want)
        assert answer(library, built, [text], max_new_tokens=5)[0].text == one.text


def test_a_refined_answer_comes_from_the_refined_mixture(built):
    library, composer = built.library, Composer(built.library)
    ids = library.tokenizer(TEXTS[0])["input_ids"]
    want = refined(composer, built.mixture(TEXTS[0]), ids, steps=2)
    found = answer(library, built, TEXTS[:1], max_new_tokens=3, refine=2)[0].mixture
    torch.testing.assert_close(found.weights, want.weights)
    assert not torch.allclose(found.weights, built.mixture(TEXTS[0]).weights, atol=1e-6)


def kept_cache(library, composer, built, ids: list[int], segments: tuple[int, ...]):
    """Greedy under mixtures made again after each segment, every token run once: keys and values stay what older mixtures made them."""
    from transformers import DynamicCache

    made, written, cache, seen = built.mixture(library.tokenizer.decode(ids)), list(ids), DynamicCache(), 0
    for new in segments:
        model = composer.materialise(made)
        for _ in range(new):
            with torch.no_grad():
                logits = model(torch.tensor([written[seen:]]), past_key_values=cache, use_cache=True).logits
            seen = len(written)
            written.append(int(logits[0, -1].argmax()))
        last, made = made, built.mixture(library.tokenizer.decode(written[-12:]))
    return written, last


def test_a_renewed_mixture_reads_the_end_of_text_and_answer(built):
    library, composer = built.library, Composer(built.library)
    ids = [library.tokenizer(text)["input_ids"] for text in TEXTS]
    want = [kept_cache(library, composer, built, own, (4, 4, 2)) for own in ids]
    alone = [answer(library, built, [text], max_new_tokens=10, renew=4)[0] for text in TEXTS]
    for own, (written, last), found in zip(ids, want, alone, strict=True):
        assert found.text == library.tokenizer.decode(written[len(own) :])
        torch.testing.assert_close(found.mixture.weights, last.weights, atol=1e-5, rtol=0)
    assert not torch.allclose(want[0][1].weights, built.mixture(TEXTS[0]).weights, atol=1e-6)
    together = answer(library, built, TEXTS, max_new_tokens=10, renew=4)
    assert [one.text for one in together] == [one.text for one in alone]


def test_an_answer_ends_where_the_model_ends_it(built, monkeypatch):
    library = built.library
    text = answer(library, built, TEXTS[:1], max_new_tokens=6, renew=2)[0].text
    third = continued(library, Composer(library).materialise(built.mixture(TEXTS[0])), library.tokenizer(TEXTS[0])["input_ids"], 2)[-1]
    monkeypatch.setattr("asterism.compose.answering.ending_tokens", lambda model, tokenizer: {third})
    short = answer(library, built, TEXTS[:1], max_new_tokens=6, renew=2)[0].text
    assert text.startswith(short)
    assert len(short) < len(text)


def test_the_paper_node_map_and_a_text_without_room(built):
    per_module = answer(built.library, built, TEXTS[:1], max_new_tokens=2, composition=CompositionSettings(node_map="per_module"))
    assert per_module[0].mixture.modules
    with pytest.raises(DataError, match="no room"):
        answer(built.library, built, TEXTS[:1], max_new_tokens=10_000)
