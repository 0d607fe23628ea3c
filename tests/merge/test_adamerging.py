"""AdaMerging: its gradient is autograd's, its steps make predictions more certain, its weights are kept with the library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.func import functional_call

from asterism.core.errors import DataError, StaleError, StorageError
from asterism.merge import adamerging as module
from asterism.merge.adamerging import LayerWeights, _Work, adamerging, entropy, layer_of, learn
from asterism.merge.settings import AdaMergingSettings
from asterism.models.deltas import held, original
from asterism.models.library import Library
from tests import tiny

NAMES = ("medical", "legal", "code")
TEXTS = {name: list(tiny.PROBES[name][:4]) for name in NAMES}
FEW = AdaMergingSettings(steps=3, batch_size=2, learning_rate=0.05)


def deltas(library, parameter):
    """Each specialist's, float64, zeros where it changes nothing."""
    base = original(library, parameter)
    own = {name: held(library, name, parameter) for name in library.names}
    return {name: torch.zeros_like(base) if tensor is None else tensor - base for name, tensor in own.items()}


def test_entropy_agrees_with_numpy():
    logits = 3 * torch.randn(2, 5, 11, dtype=torch.float64)
    chances = np.exp(logits.numpy())
    chances /= chances.sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy(logits), -(chances * np.log(chances)).sum(-1), atol=1e-12)
    certain = torch.tensor([[0.0, 1e4, 0.0]])
    assert float(entropy(certain)) == 0.0
    assert float(entropy(torch.zeros(8).bfloat16())) == pytest.approx(np.log(8))


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "full"), ("llama", "lora"), ("gpt2", "mlp"), ("gpt2", "lora")])
@pytest.mark.parametrize("each", ["model", "layer", "parameter"])
def test_the_gradient_is_that_of_the_merged_model(tmp_path, family, kind, each):
    """Autograd through functional_call on base + sum w delta, text by text, in float64."""
    tiny.tiny_library(tmp_path, family, NAMES, kind)
    library = Library.open(tmp_path, dtype=torch.float64)
    work = _Work(library, AdaMergingSettings(each=each))
    with torch.no_grad():
        work.weights.uniform_(0, 1)
    lists = [tiny.tiny_tokenizer()(text)["input_ids"] for text in TEXTS["legal"]]
    work.write()
    value, gradient = work.uncertainty(lists), work.gradient()

    weights = work.weights.detach().double().requires_grad_()
    model, anatomy = library.model(), library.anatomy
    layers = list(dict.fromkeys(layer_of(anatomy, p, each) for p in anatomy.shapes if any(held(library, s, p) is not None for s in NAMES)))
    assert list(work.layers) == layers
    parameters = {}
    for parameter in anatomy.shapes:
        parameters[parameter] = original(library, parameter)
        if (layer := layer_of(anatomy, parameter, each)) in layers:
            own = deltas(library, parameter)
            parameters[parameter] = parameters[parameter] + sum(
                weights[layers.index(layer), place] * own[name] for place, name in enumerate(sorted(NAMES))
            )
    total, count = 0.0, 0
    for ids in lists:
        logs = functional_call(model, parameters, kwargs={"input_ids": torch.tensor([ids])}).logits.log_softmax(-1)
        total, count = total - (logs.exp() * logs).sum(), count + len(ids)
    (want,) = torch.autograd.grad(total / count, [weights])
    assert value == pytest.approx(float(total.detach() / count), rel=1e-5)
    torch.testing.assert_close(gradient.double(), want, rtol=1e-3, atol=1e-6)
    assert float(want.abs().max()) > 1e-3


def test_learning_makes_predictions_more_certain_and_stays_between_0_and_1(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    found = learn(library, TEXTS, FEW.changed(steps=12, batch_size=4, learning_rate=0.1))
    assert len(found.entropy) == 12
    assert found.entropy[-1] < found.entropy[0] - 0.01
    values = [value for own in found.weights.values() for value in own.values()]
    assert all(0 <= value <= 1 for value in values)
    assert {0.0, 1.0} & set(values)
    assert len(found.weights) == 5 + 2  # blocks, embeddings, last norm; the head is tied


def test_the_steps_are_adams_on_each_steps_own_gradient(tmp_path):
    """Adam (Kingma & Ba 2015) written out in NumPy, from gradients that know nothing of earlier steps."""
    library = tiny.tiny_library(tmp_path, names=NAMES)
    settings = AdaMergingSettings(steps=3, batch_size=4, learning_rate=0.05, start=0.5, each="model")
    lists = {name: [tiny.tiny_tokenizer()(text)["input_ids"] for text in TEXTS[name]] for name in NAMES}
    weights, mean, square = np.full(3, 0.5), np.zeros(3), np.zeros(3)
    for step in range(1, 4):
        work = _Work(library, settings)
        with torch.no_grad():
            work.weights[0] = torch.from_numpy(weights)
        work.write()
        for name in NAMES:
            work.uncertainty(lists[name])
        slope = work.gradient()[0].double().numpy() / 3
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        weights = weights - 0.05 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    found = learn(library, TEXTS, settings).weights["model"]
    np.testing.assert_allclose([found[name] for name in sorted(NAMES)], weights, atol=1e-4)


def test_the_same_seed_the_same_weights_whatever_the_order(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    other = Library.create(tmp_path / "other", tmp_path / "generalist", {name: tmp_path / name for name in reversed(NAMES)})
    one, two = learn(library, TEXTS, FEW), learn(other, dict(reversed(TEXTS.items())), FEW)
    assert one == two
    assert learn(library, TEXTS, FEW.changed(seed=1)).weights != one.weights


def test_every_text_is_read_before_one_is_read_again(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("legal",))
    drawn = module._drawn(library, TEXTS["legal"], AdaMergingSettings(batch_size=2), "legal")
    wanted = sorted(tiny.tiny_tokenizer()(TEXTS["legal"])["input_ids"])
    for _ in range(3):
        assert sorted([*next(drawn), *next(drawn)]) == wanted
    assert len(next(module._drawn(library, TEXTS["legal"], AdaMergingSettings(batch_size=99), "legal"))) == 4
    assert all(len(ids) == 3 for ids in next(module._drawn(library, TEXTS["legal"], AdaMergingSettings(max_length=3), "legal")))


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "full"), ("llama", "lora")])
def test_the_model_is_what_the_weights_say(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind)
    found = learn(library, TEXTS, FEW)
    model = found.model(library)
    for name, parameter in model.named_parameters():
        own, weights = deltas(library, name), found.of(library.anatomy, name)
        want = original(library, name) + sum(weights.get(s, 0.0) * own[s] for s in NAMES)
        torch.testing.assert_close(parameter, want, rtol=1e-5, atol=1e-6)
        assert parameter.requires_grad
    if kind == "lora":
        assert "embedding" not in found.weights


def test_weights_are_kept_and_used_again(tmp_path, monkeypatch):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    found = adamerging(library, TEXTS, FEW)
    monkeypatch.setattr(module, "learn", lambda *_: pytest.fail("learnt again"))
    assert adamerging(Library.open(tmp_path), TEXTS, FEW) == found
    assert adamerging(Library.open(tmp_path), None, FEW) == found
    with pytest.raises(StaleError, match="steps was 3, is 500"):
        adamerging(library)
    for other in ({"settings": FEW.changed(seed=1)}, {"texts": TEXTS | {"legal": TEXTS["legal"][:1]}, "settings": FEW}):
        with pytest.raises(pytest.fail.Exception):
            adamerging(library, **({"texts": TEXTS} | other))
    library.remove("code")
    with pytest.raises(StaleError, match=r"left the library[^\0]*code"):
        adamerging(library, None, FEW)
    facts = tmp_path / "merging" / "adamerging" / "facts.json"
    library.add("code", "code")
    facts.write_text(json.dumps({key: value for key, value in json.loads(facts.read_text()).items() if key != "entropy"}))
    with pytest.raises(StorageError, match="damaged"):
        adamerging(library, None, FEW)


def test_a_specialist_of_fewer_parameters_has_weights_where_it_changes_something(tmp_path):
    library = tiny.tiny_library(tmp_path, "llama", ("medical",))
    tiny.save_lora(tiny.tiny_model("llama"), tmp_path / "thin", 7, base=str(tmp_path / "generalist"), target_modules=["q_proj"])
    library.add("thin", "thin")
    found = learn(library, {"medical": TEXTS["medical"], "thin": TEXTS["legal"]}, FEW)
    assert set(found.weights["embedding"]) == {"medical"}
    assert set(found.weights["model.layers.0"]) == {"medical", "thin"}


def test_nothing_to_merge_is_told(tmp_path):
    tiny.save(tiny.tiny_model("gpt2"), tmp_path / "generalist")
    library = Library.create(tmp_path, tmp_path / "generalist", {"same": tmp_path / "generalist"})
    with pytest.raises(DataError, match="nothing to merge"):
        adamerging(library, {"same": ["a b c"]}, FEW)


def test_weights_of_no_layer_leave_the_generalist(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES[:1])
    model = LayerWeights("layer", {}, ()).model(library)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), library.model().parameters(), strict=True))
