"""Entropy and load of gates, against NumPy over each text by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError
from asterism.models.routed import RoutedConfig, RoutedForCausalLM, recording
from asterism.route.load import load
from tests import tiny

TEXTS = [*tiny.PROBES["medical"], *tiny.PROBES["code"]]


def routed(**fields) -> RoutedForCausalLM:
    """Three blocks, random experts; gates sharp enough to tell tokens apart."""
    torch.manual_seed(0)
    model = RoutedForCausalLM(RoutedConfig(tiny.tiny_config("qwen2"), ["a", "b", "c"], **fields)).eval()
    with torch.no_grad():
        for gate in model.gates:
            for weight in gate.parameters():
                weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def oracle(model, max_length: int) -> list[np.ndarray]:
    """Probabilities of every token of every text, one text at a time: [tokens, E] a block."""
    rows: list[list[np.ndarray]] = []
    for text in TEXTS:
        ids = torch.tensor([tiny.tiny_tokenizer()(text)["input_ids"][:max_length]])
        with recording(model) as seen, torch.no_grad():
            model(ids)
        rows.append([each[0].double().numpy() for each in seen])
    return [np.concatenate(block) for block in zip(*rows, strict=True)]


def bits(p: np.ndarray) -> float:
    return -sum(float(value) * np.log2(float(value)) for value in p if value > 0)


@pytest.mark.parametrize("fields", [{}, {"scope": "single"}, {"depth": 2}, {"gate": "mlp"}, {"num_experts_per_tok": 1}])
def test_load_is_a_mean_over_tokens(fields):
    model = routed(**fields)
    found = load(model, tiny.tiny_tokenizer(), TEXTS, max_length=20, max_tokens=64)
    assert [own.block for own in found] == [0, 1, 2]
    for own, p in zip(found, oracle(model, 20), strict=True):
        mass = p.mean(axis=0)
        assert own.experts == tuple(model.reach_of(own.block))
        np.testing.assert_allclose(own.mass, mass, atol=1e-5)
        np.testing.assert_allclose(own.chosen, np.bincount(p.argmax(axis=1), minlength=p.shape[1]) / len(p), atol=1e-12)
        assert own.entropy == pytest.approx(np.mean([bits(row) for row in p]), abs=1e-5)
        assert own.effective == pytest.approx(2 ** bits(mass), rel=1e-5)
        assert 0 < own.entropy < np.log2(p.shape[1])
    if fields.get("scope") == "single":
        assert found[1].mass == found[0].mass
    else:
        assert found[1].mass != found[0].mass


def test_fixed_gates_spread_as_they_are_set():
    model = routed(gate="fixed")
    model.set_gates(torch.tensor([0.5, 0.5, 0.0]))
    for own in load(model, tiny.tiny_tokenizer(), TEXTS):
        assert own.entropy == own.effective - 1 == pytest.approx(1)
        assert own.mass == pytest.approx((0.5, 0.5, 0))
    told = load(model, tiny.tiny_tokenizer(), TEXTS)[2].to_dict()
    assert told["experts"] == [{"model": name, "block": 2} for name in "abc"]
    assert sum(told["chosen"]) == 1


def test_no_texts_have_no_load():
    for texts in ([], [""]):
        with pytest.raises(DataError):
            load(routed(), tiny.tiny_tokenizer(), texts)
