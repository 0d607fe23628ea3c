"""The weights of every token are those that a forward pass applies, and the tokens together are the text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError
from asterism.models.routed import recording
from asterism.route.trace import pieces, trace
from tests import tiny
from tests.route.test_load import routed

TEXT = "The surgeon asked: def add(a, b)? Naïve café, 你好."


@pytest.mark.parametrize("fields", [{}, {"depth": 2}, {"scope": "single"}])
def test_dense_weights_are_the_gates_probabilities(fields):
    model, tokenizer = routed(**fields), tiny.tiny_tokenizer()
    found = trace(model, tokenizer, TEXT)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with recording(model) as seen, torch.no_grad():
        model(ids)
    torch.testing.assert_close(found.weights, torch.cat(seen))
    assert len(found.tokens) == ids.shape[1]
    assert found.experts[2] == tuple(model.reach_of(2))
    shares = found.shares()
    assert list(shares) == ["a", "b", "c"]
    torch.testing.assert_close(sum(shares.values()), torch.ones(3, ids.shape[1]))
    torch.testing.assert_close(shares["b"], found.weights[..., 1::3].sum(-1))


@pytest.mark.parametrize("normalise", [False, True])
def test_experts_that_do_not_run_weigh_nothing(normalise):
    model = routed(num_experts_per_tok=2, normalise=normalise)
    found = trace(model, tiny.tiny_tokenizer(), TEXT)
    with recording(model) as seen, torch.no_grad():
        model(torch.tensor([tiny.tiny_tokenizer()(TEXT)["input_ids"]]))
    p = torch.cat(seen).double().numpy()
    want = np.where(p >= np.sort(p, axis=-1)[..., 1:2], p, 0)
    np.testing.assert_allclose(found.weights, want / want.sum(-1, keepdims=True) if normalise else want, atol=1e-6)
    assert ((found.weights > 0).sum(-1) == 2).all()


def test_tokens_are_the_text_even_where_a_character_takes_several():
    tokenizer = tiny.tiny_tokenizer()
    found = pieces(tokenizer, tokenizer(TEXT)["input_ids"])
    assert "".join(found) == tokenizer.decode(tokenizer(TEXT)["input_ids"])
    assert "".join(found).endswith(TEXT)
    assert "" in found  # bytes of a character before its last
    assert "你" in found


def test_a_text_is_cut_and_an_empty_one_refused():
    found = trace(routed(), tiny.tiny_tokenizer(), TEXT, max_length=5)
    assert (len(found.tokens), found.left_out) == (5, len(tiny.tiny_tokenizer()(TEXT)["input_ids"]) - 5)
    assert trace(routed(), tiny.tiny_tokenizer(), TEXT).to_dict()["left_out"] == 0
    with pytest.raises(DataError, match="empty"):
        trace(routed(), tiny.tiny_tokenizer(), "")


def test_what_is_told_is_json():
    told = trace(routed(depth=2), tiny.tiny_tokenizer(), "two words").to_dict()
    assert told["models"] == ["a", "b", "c"]
    assert np.shape(told["weights"]) == (3, len(told["tokens"]), 6)
    assert np.shape(told["shares"]["a"]) == (3, len(told["tokens"]))
