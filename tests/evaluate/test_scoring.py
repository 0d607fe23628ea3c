"""Losses and mean states of a batch, against one text at a time and against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.evaluate.probes import read_span, scored_span
from asterism.evaluate.scoring import Scores, record, record_states, span_mean
from asterism.models.batching import batches
from asterism.models.likelihood import logits_of, states_of, token_losses
from tests import tiny

LENGTHS = (9, 4, 17, 5, 12)


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 50, (n,), generator=generator).tolist() for n in LENGTHS]


def test_token_losses_are_negative_log_likelihoods():
    logits, ids = torch.randn(2, 6, 11), torch.randint(0, 11, (2, 6))
    got = token_losses(logits, ids).numpy()
    wide = logits.double().numpy()
    for row in range(2):
        for place in range(5):
            line = wide[row, place]
            want = np.log(np.exp(line).sum()) - line[ids[row, place + 1]]
            assert got[row, place] == pytest.approx(want, abs=1e-5)


def test_span_mean_is_the_mean_over_the_span():
    values = torch.arange(24.0).view(2, 4, 3)
    got = span_mean(values, [0, 1], [2, 4])
    assert torch.allclose(got[0], values[0, :2].mean(0))
    assert torch.allclose(got[1], values[1, 1:].mean(0))


def test_spans_of_the_continuation_protocol_do_not_overlap():
    for length in range(4, 30):
        read, scored = read_span("continuation", length), scored_span("continuation", length)
        assert read.start == 0
        assert read.stop == scored.start
        assert scored.stop == length
        assert read.stop >= 2


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2"])
def test_one_padded_pass_gives_both_protocols(family):
    model, ids = tiny.tiny_model(family).double(), texts()
    scores = Scores.empty(len(ids))
    for batch in batches(ids, max_tokens=40, pad=0):
        with torch.no_grad(), states_of(model, None) as states:
            logits = logits_of(model, batch.ids)
        record(scores, batch, logits)
        record_states(scores, batch, states[0], len(ids), absolute=False)
        record_states(scores, batch, states[0], len(ids), absolute=True)
    for row, own in enumerate(ids):
        half = len(own) // 2
        with torch.no_grad():
            out = model(torch.tensor([own]), output_hidden_states=True)
            first = model(torch.tensor([own[:half]]), output_hidden_states=True).hidden_states[-1][0]
        losses = token_losses(out.logits, torch.tensor([own]))[0]
        assert scores.loss["whole"][row] == pytest.approx(float(losses.mean()), abs=1e-5)
        assert scores.loss["continuation"][row] == pytest.approx(float(losses[half - 1 :].mean()), abs=1e-5)
        assert scores.read_loss["continuation"][row] == pytest.approx(float(losses[: half - 1].mean()), abs=1e-5)
        assert torch.allclose(scores.fingerprint["whole"][row].double(), out.hidden_states[-1][0].mean(0), atol=1e-5)
        assert torch.allclose(scores.fingerprint["continuation"][row].double(), first.mean(0), atol=1e-5)
        assert torch.allclose(scores.signature["continuation"][row].double(), first.abs().mean(0), atol=1e-5)
