"""Losses of texts token by token, against log-softmax in NumPy of one text at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError
from asterism.models import likelihood
from asterism.models.likelihood import losses_by_token, read
from tests import tiny

TEXTS = [*tiny.PROBES["medical"], *tiny.PROBES["code"]]


def oracle(model, text: str, max_length: int) -> np.ndarray:
    ids = tiny.tiny_tokenizer()(text)["input_ids"][:max_length]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().numpy()
    return np.array([np.log(np.exp(row - row.max()).sum()) + row.max() - row[token] for row, token in zip(logits, ids[1:], strict=False)])


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
@pytest.mark.parametrize("max_length", [12, 256])
def test_losses_are_those_of_each_text_alone(family, max_length):
    model = tiny.tiny_model(family)
    found = losses_by_token(model, tiny.tiny_tokenizer(), TEXTS, max_length=max_length)
    for text, own in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(own.numpy(), oracle(model, text, max_length), rtol=1e-4, atol=1e-5)
    assert len({len(own) for own in found}) > 1 or max_length == 12


def test_batches_change_nothing_and_means_are_those_of_read(monkeypatch):
    model, tokenizer = tiny.tiny_model("gpt2"), tiny.tiny_tokenizer()
    whole = losses_by_token(model, tokenizer, TEXTS)
    means = torch.stack([own.mean() for own in whole])
    torch.testing.assert_close(means, read(model, tokenizer, TEXTS)[1], rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(likelihood, "LOGITS_BUDGET", 4 * 40 * len(tokenizer))
    for one, other in zip(losses_by_token(model, tokenizer, TEXTS), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_has_no_loss_is_refused():
    model, tokenizer = tiny.tiny_model("gpt2"), tiny.tiny_tokenizer()
    with pytest.raises(DataError, match=r"text 1: 'x'"):
        losses_by_token(model, tokenizer, [TEXTS[0], "x"])
    with pytest.raises(DataError, match="list of texts"):
        losses_by_token(model, tokenizer, [])
    with pytest.raises(DataError, match="empty"):
        losses_by_token(model, tokenizer, [""])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(DataError, match="loss is not finite"):
        losses_by_token(model, tokenizer, TEXTS)
