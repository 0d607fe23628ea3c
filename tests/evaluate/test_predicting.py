"""Scores of continuations and of whole texts, against models built one by one."""

from __future__ import annotations

import pytest
import torch

from asterism.compose.build import compose
from asterism.compose.composer import Composer
from asterism.constellation.mixture import Mixture
from asterism.evaluate import predicting
from asterism.evaluate.predicting import Window, continuation_scores, rolling_losses
from tests import tiny
from tests.tiny import HIDDEN, tiny_library

FAMILIES = ("gpt2", "mistral", "gemma3_text", "gpt_neox")


@pytest.fixture(scope="module", params=FAMILIES)
def composer(request, tmp_path_factory):
    library = tiny_library(tmp_path_factory.mktemp(request.param), request.param, dtype=torch.float64)
    return Composer(library)


def random_tokens(length: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist())


def mixture(number: int) -> Mixture:
    share = 0.2 + 0.1 * number
    return Mixture.fixed({"legal": share, ("medical", "code")[number % 2]: 0.9 - share}, HIDDEN, generalist=0.1)


@pytest.mark.parametrize("way", ["mixed", "materialised"])
def test_continuations_are_scored_by_the_model_of_their_own_mixture(composer, way, monkeypatch):
    monkeypatch.setattr(predicting, "cheaper", lambda *given, **named: way)
    made = [mixture(0), mixture(1), mixture(0)]
    made[2] = made[0]
    rows = [random_tokens(length, length) for length in (12, 7, 9)]
    targets = [random_tokens(4, 50), random_tokens(7, 51), random_tokens(1, 52)]
    with tiny.wide():
        best = compose(composer.library, made[0])(torch.tensor([rows[2]])).logits[0, -1].argmax()
        targets[2] = (int(best),)
        found = continuation_scores(composer, rows, targets, made, pad=0)
        for row, own, one, (score, greedy) in zip(rows, targets, made, found, strict=True):
            with torch.no_grad():
                logits = compose(composer.library, one)(torch.tensor([row])).logits[0].log_softmax(-1)[-len(own) :]
            assert score == pytest.approx(sum(float(logits[i, token]) for i, token in enumerate(own)), abs=1e-9)
            assert greedy == (logits.argmax(-1).tolist() == list(own))
    assert found[2][1]
    assert not found[0][1]


def solo(composer, window: Window, choose, renew: int) -> float:
    """One token after another under models built by hand; keys and values stay what older models made them."""
    from transformers import DynamicCache

    loss, cache, model, end = 0.0, DynamicCache(config=composer.library.config), None, 0
    for place, (token, target) in enumerate(zip(window.inputs, window.targets, strict=True)):
        if place == end:
            model = compose(composer.library, choose([(*window.before, *window.targets[:place])])[0])
            end = place + min(renew, max(8, place))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
        if place >= window.known:
            loss -= float(logits.log_softmax(-1)[target])
    return loss


def test_a_text_is_scored_under_mixtures_made_from_what_stands_before(composer):
    seen = []

    def choose(prefixes):
        seen.extend(prefixes)
        return [mixture(len(own) % 5) for own in prefixes]

    texts = [random_tokens(length, length) for length in (45, 20, 8, 33)]
    windows = [Window((0, *text[:-1]), text, known=3 * (row == 1), before=random_tokens(row, row)) for row, text in enumerate(texts)]
    with tiny.wide():
        found = rolling_losses(composer, windows, choose, renew=16, pad=0)
        asked = list(seen)
        want = [solo(composer, window, choose, 16) for window in windows]
    assert found == pytest.approx(want, abs=1e-9)
    assert [len(own) for own in asked] == [0, 1, 2, 3, 8, 9, 11, 16, 17, 19, 32, 35]  # rows that ended are asked no more
    with tiny.wide():
        flat = rolling_losses(composer, windows[:1], lambda prefixes: [mixture(0)] * len(prefixes), renew=16, pad=0)
    assert abs(flat[0] - found[0]) > 1e-3


def test_without_mixtures_the_model_is_used_as_it_is(composer):
    text = random_tokens(30, 1)
    composer.materialise(mixture(3))
    try:
        with tiny.wide(), torch.no_grad():
            found = rolling_losses(composer, [Window((0, *text[:-1]), text)], None, renew=8, pad=0)
            logits = compose(composer.library, mixture(3))(torch.tensor([[0, *text[:-1]]])).logits[0].log_softmax(-1)
        assert found[0] == pytest.approx(-sum(float(logits[i, token]) for i, token in enumerate(text)), abs=1e-9)
    finally:
        composer.restore()
