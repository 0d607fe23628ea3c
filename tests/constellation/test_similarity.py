"""Similarity maps of tiny models against one forward pass a text and Gram matrices in NumPy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asterism.constellation import similarity as module
from asterism.constellation.settings import SimilaritySettings
from asterism.constellation.similarity import similarity
from asterism.core.errors import DataError, MismatchError, SettingsError
from asterism.models.anatomy import anatomy_of
from tests import oracles
from tests.tiny import FAMILIES, PROBES, perturbed, tiny_model, tiny_tokenizer

TEXTS = [*PROBES["medical"], *PROBES["code"], "Hi"]


def outputs(model, site, unit, max_length=256):
    """What every MLP (or block) gives for every text run by itself: [n, d] each layer."""
    anatomy, seen = anatomy_of(model), {}
    paths = [anatomy.block_path(layer) + (f".{anatomy.layout.mlp}" if site == "mlp" else "") for layer in range(anatomy.n_blocks)]
    handles = []
    for path in paths:

        def hook(_module, _given, output, path=path):
            states = output[0] if isinstance(output, tuple) else output
            rows = states[0].double().numpy()
            seen.setdefault(path, []).append(rows if unit == "token" else rows.mean(axis=0, keepdims=True))

        handles.append(model.get_submodule(path).register_forward_hook(hook))
    for text in TEXTS:
        ids = tiny_tokenizer()(text, return_tensors="pt", truncation=True, max_length=max_length)["input_ids"]
        with torch.no_grad():
            model(ids)
    for handle in handles:
        handle.remove()
    return [np.concatenate(seen[path]) for path in paths]


def wanted(left, right, estimator="debiased", gram=oracles.linear_gram):
    grams = [[gram(rows) for rows in side] for side in (left, right)]
    return np.array([[oracles.cka(k, m, estimator) for m in grams[1]] for k in grams[0]])


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_agree_with_numpy(family):
    left = tiny_model(family)
    right = perturbed(left, 1, 0.1)
    found = similarity(left, right, tiny_tokenizer(), TEXTS, names=("a", "b"))
    rows = [outputs(model, "mlp", "token") for model in (left, right)]
    np.testing.assert_allclose(found.map, wanted(*rows), atol=2e-5)
    assert found.n == len(rows[0][0])
    assert (found.map.diagonal() > 0.3).all()
    assert found.z.min() < 0.5 * found.z.diagonal().min()
    assert found.p.diagonal().max() < 1e-4
    assert found.names == ("a", "b")


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("unit", ["token", "text"])
@pytest.mark.parametrize("site", ["mlp", "block"])
def test_sites_units_and_estimators(site, unit, estimator):
    left, right = tiny_model("gpt2"), tiny_model("gpt2", seed=1, n_layer=2, n_embd=24)  # unequal depth and width
    settings = SimilaritySettings(site=site, unit=unit, estimator=estimator)
    found = similarity(left, right, tiny_tokenizer(), TEXTS, settings)
    want = wanted(outputs(left, site, unit), outputs(right, site, unit), estimator)
    assert found.map.shape == (5, 2)
    np.testing.assert_allclose(found.map, want, atol=2e-5)
    within = similarity(left, None, tiny_tokenizer(), TEXTS, settings)
    assert within.names == ("left", "left")
    torch.testing.assert_close(within.map, within.map.T)
    torch.testing.assert_close(within.map.diagonal(), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(within.map, similarity(left, left, tiny_tokenizer(), TEXTS, settings).map, rtol=0, atol=1e-6)


def test_rbf_and_some_layers():
    model = tiny_model("llama")
    settings = SimilaritySettings(kernel="rbf", bandwidth=0.7, unit="text", layers=(2, 0))
    found = similarity(model, None, tiny_tokenizer(), TEXTS, settings)
    rows = [outputs(model, "mlp", "text")[layer] for layer in (2, 0)]
    np.testing.assert_allclose(found.map, wanted(rows, rows, gram=lambda x: oracles.rbf_gram(x, 0.7)), atol=2e-5)
    assert found.layers == ((2, 0), (2, 0))


@pytest.mark.parametrize("right", [None, "another"])
def test_streamed_and_held_features_give_the_same(right, monkeypatch):
    left = tiny_model("gpt2")
    other = perturbed(left, 1, 0.5) if right else None
    calls = []
    for way in (True, False):
        monkeypatch.setattr(module, "_streams", lambda *_, way=way: way)
        calls.append(similarity(left, other, tiny_tokenizer(), TEXTS))
    torch.testing.assert_close(calls[0].map, calls[1].map, rtol=0, atol=1e-8)
    torch.testing.assert_close(calls[0].z, calls[1].z, rtol=0, atol=1e-6)


def test_many_samples_are_streamed_and_few_held():
    side = module._side(tiny_model("gpt2"), "a", SimilaritySettings())  # 5 layers of 16
    assert module._streams([side, side], 100, SimilaritySettings())
    assert not module._streams([side, side], 50, SimilaritySettings())
    assert module._streams([side], 50 + 20, SimilaritySettings())
    assert not module._streams([side, side], 100, SimilaritySettings(kernel="rbf"))


def test_samples_are_drawn_by_their_seed():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    other = perturbed(model, 1, 0.5)
    every = similarity(model, other, tokenizer, TEXTS, SimilaritySettings(samples=None))
    some = [similarity(model, other, tokenizer, TEXTS, SimilaritySettings(samples=60, seed=seed)) for seed in (1, 1, 2)]
    assert [each.n for each in some] == [60] * 3
    assert torch.equal(some[0].map, some[1].map)
    assert not torch.equal(some[0].map, some[2].map)
    assert 0 < (some[0].map - every.map).abs().max() < 0.3
    assert similarity(model, other, tokenizer, TEXTS, SimilaritySettings(samples=5, unit="text")).n == 5


def test_an_untouched_model_is_wholly_alike_and_another_is_not():
    left = tiny_model("gpt2")
    same = similarity(left, perturbed(left, 1, 0.0), tiny_tokenizer(), TEXTS)
    torch.testing.assert_close(same.map.diagonal(), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-9)
    far = [float(similarity(left, perturbed(left, 1, scale), tiny_tokenizer(), TEXTS).map.diagonal().mean()) for scale in (0.1, 0.3, 1.0)]
    assert 1 > far[0] > far[1] > far[2]


def test_a_constant_layer_is_similar_to_nothing():
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.zero_()
        model.transformer.h[1].mlp.c_proj.bias.fill_(0.1)
    for settings in (SimilaritySettings(), SimilaritySettings.paper(), SimilaritySettings(kernel="rbf", unit="text")):
        found = similarity(model, None, tiny_tokenizer(), TEXTS, settings)
        assert found.map[1].tolist() == [0] * 5
        assert found.map.isfinite().all()
    assert found.p[1].tolist() == [1] * 5


def test_the_papers_settings():
    settings = SimilaritySettings.paper(site="block", layers=(3,))
    assert (settings.unit, settings.estimator, settings.kernel, settings.max_length) == ("text", "biased", "linear", 1024)
    assert similarity(tiny_model("gpt2"), None, tiny_tokenizer(), TEXTS, settings).map.tolist() == [[pytest.approx(1)]]


def test_to_dict_is_json():
    found = similarity(tiny_model("gpt2"), None, tiny_tokenizer(), TEXTS, SimilaritySettings(layers=(0, 3)))
    told = json.loads(json.dumps(found.to_dict()))
    assert told["map"] == found.map.tolist()
    assert told["layers"] == [[0, 3], [0, 3]]
    assert told["settings"]["samples"] == 10_000


def test_what_cannot_be_compared_is_refused():
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    small = tiny_model("gpt2", vocab_size=20)
    broken = perturbed(model, 1, 0.0)
    with torch.no_grad():
        broken.transformer.h[2].mlp.c_proj.bias[3] = torch.nan
    text = SimilaritySettings(unit="text")
    for error, told, call in [
        (DataError, "list of texts", lambda: similarity(model, None, tokenizer, [])),
        (DataError, "text 1", lambda: similarity(model, None, tokenizer, ["fine", ""])),
        (DataError, "at least 4 samples", lambda: similarity(model, None, tokenizer, TEXTS[:3], text)),
        (DataError, r"b: transformer\.h\.2\.mlp", lambda: similarity(model, broken, tokenizer, TEXTS, names=("a", "b"))),
        (SettingsError, "0 to 4", lambda: similarity(model, None, tokenizer, TEXTS, SimilaritySettings(layers=(5,)))),
        (SettingsError, "no such block", lambda: similarity(model, None, tokenizer, TEXTS, SimilaritySettings(layers=()))),
        (MismatchError, "vocabulary 20", lambda: similarity(model, small, tokenizer, TEXTS)),
    ]:
        with pytest.raises(error, match=told):
            call()
