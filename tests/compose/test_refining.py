"""Refining: the gradient by a mixture's weights against finite differences, for every kind of specialist, and that a step helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from asterism.compose.composer import Composer
from asterism.compose.refining import moved, refined, weight_gradient
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.models.likelihood import logits_of
from tests.compose.conftest import KINDS

IDS = torch.randint(3, 300, (24,), generator=torch.Generator().manual_seed(5)).tolist()
EVEN = CompositionSettings(node_map="mean")


def mixture_of(shares: list[float], nodes: int, scale: float = 1.2) -> Mixture:
    return Mixture.fixed(dict(zip(KINDS, shares, strict=True)), nodes, generalist=1 - sum(shares), scale=scale)


def loss(composer: Composer, mixture: Mixture) -> float:
    ids = torch.tensor([IDS])
    with torch.no_grad():
        logits = logits_of(composer.materialise(mixture), ids)
    return float(-logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean())  # float64 throughout


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_the_gradient_is_the_change_of_the_loss(kinds, family):
    composer = Composer(kinds(family), EVEN)
    mixture = mixture_of([0.3, 0.1, 0.2, 0.15], composer.library.anatomy.hidden_size)
    found = weight_gradient(composer, mixture, IDS)
    for place in range(len(KINDS)):
        step = torch.zeros(len(KINDS))
        step[place] = 1e-3
        up, down = (loss(composer, moved(mixture, sign * step)) for sign in (1, -1))
        assert float(found[place]) == pytest.approx((up - down) / 2e-3, rel=2e-3, abs=1e-5)
    assert found.abs().max() > 1e-3


def test_a_step_lowers_the_loss_and_leaves_nothing_behind(kinds):
    composer = Composer(kinds("gpt2"), EVEN)
    mixture = mixture_of([0.3, 0.1, 0.2, 0.15], composer.library.anatomy.hidden_size)
    once, thrice = refined(composer, mixture, IDS), refined(composer, mixture, IDS, steps=3)
    assert loss(composer, thrice) < loss(composer, once) < loss(composer, mixture)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in composer.model.parameters())
    assert refined(composer, mixture, IDS, steps=0) is mixture


def test_weights_stay_above_zero_and_the_rest_is_the_generalists():
    mixture = mixture_of([0.3, 0.1, 0.2, 0.15], 8, scale=2.0)
    after = moved(mixture, torch.tensor([0.2, -0.4, 0.0, 0.1]))
    assert after.shares == pytest.approx(dict(zip(KINDS, [0.4, 0.0, 0.2, 0.2], strict=True)), abs=1e-6)
    assert after.generalist == pytest.approx(0.2, abs=1e-6)
    assert after.scale == 2.0
    own = moved(replace(mixture, modules={"h.0": mixture.weights[:, :4] / 2}), torch.tensor([0.2, -0.4, 0.0, 0.1])).modules["h.0"]
    assert own[:, 0].tolist() == pytest.approx([0.25, 0.0, 0.1, 0.125], abs=1e-6)
    beyond = moved(mixture, torch.full((4,), 0.5))
    assert beyond.generalist < 0  # more than the whole of the deltas
    assert torch.isfinite(torch.tensor(beyond.entropy))
