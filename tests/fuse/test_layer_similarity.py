"""CKA of two backbones' blocks over texts, each with its own tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError
from asterism.fuse.layer_similarity import layer_similarity, text_means
from asterism.models.tokenizers import train_tokenizer
from tests import tiny

TEXTS = [text for part in tiny.PROBES.values() for text in part]


def debiased_cka(x, y):
    """Song et al. 2012's unbiased HSIC, normalised: float64, written out."""

    def centred(rows):
        gram = rows @ rows.T
        np.fill_diagonal(gram, 0)
        n = len(gram)
        sums = gram.sum(axis=0)
        made = gram - sums[None] / (n - 2) - sums[:, None] / (n - 2) + gram.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(made, 0)
        return made

    one, other = centred(x.astype(np.float64)), centred(y.astype(np.float64))
    return (one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum())


def test_it_is_the_cka_of_texts_means_with_two_tokenizers():
    other = train_tokenizer(TEXTS[:20], 290)
    other.model_max_length = tiny.LENGTH
    assert other(TEXTS[0])["input_ids"] != tiny.tiny_tokenizer()(TEXTS[0])["input_ids"]
    left, right = tiny.tiny_model("gpt2"), tiny.tiny_model("llama", vocab_size=290)
    found = layer_similarity((left, tiny.tiny_tokenizer()), (right, other), TEXTS)
    assert found.shape == (5, 3)
    assert found.dtype == torch.float64
    xs = text_means(left, tiny.tiny_tokenizer(), TEXTS)
    ys = text_means(right, other, TEXTS)
    want = [[debiased_cka(x.numpy(), y.numpy()) for y in ys] for x in xs]
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_means_are_of_a_texts_own_positions_in_the_order_given():
    model, tokenizer = tiny.tiny_model("qwen2"), tiny.tiny_tokenizer()
    found = text_means(model, tokenizer, TEXTS)
    with torch.no_grad():
        ids = torch.tensor([tokenizer(TEXTS[7])["input_ids"]])
        states = model(ids, output_hidden_states=True).hidden_states
    for block in range(2):  # the last is given after the final norm
        torch.testing.assert_close(found[block][7], states[block + 1][0].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_a_model_is_most_like_itself():
    side = tiny.tiny_model("gpt2"), tiny.tiny_tokenizer()
    found = layer_similarity(side, side, TEXTS)
    torch.testing.assert_close(found.diagonal(), torch.ones(5, dtype=torch.float64))
    assert found.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_too_few_texts_are_refused():
    side = tiny.tiny_model("gpt2"), tiny.tiny_tokenizer()
    with pytest.raises(DataError):
        layer_similarity(side, side, TEXTS[:3])
