"""A composition leaves as a checkpoint or as an adapter, and comes back from the files the same."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asterism.compose.build import compose
from asterism.compose.export import save_adapter, save_checkpoint
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import SettingsError, StorageError
from asterism.core.storage import read_json
from tests import tiny
from tests.compose.conftest import random_mixture

IDS = torch.arange(3, 15)[None]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


@pytest.fixture(scope="session")
def loras(tmp_path_factory):
    return tiny.tiny_library(tmp_path_factory.mktemp("loras"), "gpt2", kind="lora", dtype=torch.float64)


def with_adapter(library, folder):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a deprecated property
        return PeftModel.from_pretrained(library.fresh_model(), folder).eval()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_checkpoint_loads_anywhere_and_tells_what_made_it(kinds, family, tmp_path):
    library, settings = kinds(family), CompositionSettings(layers=2)
    mixture = random_mixture(("full", "lora", "mlp"), library.anatomy, 5)
    out = save_checkpoint(library, mixture, tmp_path / "out", settings)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(loaded.eval()), logits(compose(library, mixture, settings)), rtol=0, atol=1e-12)
    text = tiny.PROBES["medical"][0]
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == library.tokenizer(text)["input_ids"]
    told = read_json(out / "composition.json")
    assert told["settings"] == settings.model_dump(mode="json")
    assert told["generalist"] == library.digest()
    assert told["specialists"] == {name: library.digest(name) for name in mixture.specialists}
    np.testing.assert_array_equal(np.float32(told["weights"]), mixture.weights.numpy())
    assert told["shares"] == mixture.shares


def test_only_an_earlier_composition_is_replaced(kinds, tmp_path):
    library = kinds("gpt2")
    a, b = (random_mixture(("full", "mlp"), library.anatomy, seed) for seed in range(2))
    save_checkpoint(library, a, tmp_path / "out")
    save_checkpoint(library, b, tmp_path / "out")
    np.testing.assert_array_equal(np.float32(read_json(tmp_path / "out" / "composition.json")["weights"]), b.weights.numpy())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for save in (save_checkpoint, save_adapter):
        with pytest.raises(StorageError, match="something else"):
            save(library, a, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("mix", ["specialists", "deltas"])
def test_lora_specialists_export_exactly(loras, tmp_path, mix):
    settings = CompositionSettings(mix=mix, scale=1.0 if mix == "specialists" else 0.7)
    mixture = random_mixture(("medical", "legal", "science"), loras.anatomy, 6)
    report = save_adapter(loras, mixture, tmp_path / "adapter", settings)
    assert set(report.errors.values()) == {0.0}
    assert set(report.ranks.values()) == {2 + 3 + 3}  # tiny_library gives ranks 2, 3, 2, 3; science is the fourth
    assert report.left_out == {}
    want = logits(compose(loras, mixture, settings))
    torch.testing.assert_close(logits(with_adapter(loras, tmp_path / "adapter")), want, rtol=0, atol=1e-6)
    assert (want - logits(loras.model())).abs().max() > 1e-2
    assert read_json(tmp_path / "adapter" / "composition.json")["kind"] == "adapter"


def test_a_lora_composition_cut_to_a_rank_is_the_nearest_one(loras, tmp_path):
    mixture = random_mixture(("medical", "legal"), loras.anatomy, 6)
    report = save_adapter(loras, mixture, tmp_path / "adapter", rank=2)
    composed = compose(loras, mixture)
    assert set(report.ranks.values()) == {2}
    for parameter, error in report.errors.items():
        values = np.linalg.svd((composed.get_parameter(parameter) - loras.tensor(parameter)).detach().numpy(), compute_uv=False)
        np.testing.assert_allclose(error, np.sqrt((values[2:] ** 2).sum() / (values**2).sum()), rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_full_specialists_need_a_rank_and_get_the_optimal_error(kinds, family, tmp_path):
    library, settings = kinds(family), CompositionSettings(layers="all")
    mixture = random_mixture(("full", "other", "lora"), library.anatomy, 7)
    with pytest.raises(SettingsError, match="give a rank"):
        save_adapter(library, mixture, tmp_path / "none", settings)
    assert not (tmp_path / "none").exists()
    report = save_adapter(library, mixture, tmp_path / "adapter", settings, rank=4)
    composed, shapes = compose(library, mixture, settings), library.anatomy.shapes
    change = {name: (composed.get_parameter(name) - library.tensor(name)).detach().numpy() for name in shapes}
    for parameter, error in report.errors.items():
        values = np.linalg.svd(change[parameter], compute_uv=False)
        np.testing.assert_allclose(error, np.sqrt((values[4:] ** 2).sum() / (values**2).sum()), rtol=1e-6)
        assert error > 0.1
    unholdable = {name for name in shapes if len(shapes[name]) == 1 or library.anatomy.role_of(name) == "embedding"}
    assert set(report.left_out) == unholdable
    assert set(report.errors) == set(shapes) - unholdable
    for parameter, norm in report.left_out.items():
        np.testing.assert_allclose(norm, np.linalg.norm(change[parameter]), rtol=1e-9)
    adapted = with_adapter(library, tmp_path / "adapter")
    adapted.merge_and_unload()
    for parameter, error in report.errors.items():
        merged = adapted.base_model.model.get_parameter(parameter).detach() - library.tensor(parameter)
        missed = np.linalg.norm(merged.numpy() - change[parameter]) / np.linalg.norm(change[parameter])
        np.testing.assert_allclose(missed, error, rtol=1e-4)


def test_an_adapter_of_full_rank_is_the_whole_change(kinds, tmp_path):
    library = kinds("mistral")
    mixture = random_mixture(("mlp", "lora"), library.anatomy, 8)
    report = save_adapter(library, mixture, tmp_path / "adapter", rank=32)
    assert max(report.errors.values()) < 1e-12
    assert report.left_out == {}
    want = logits(compose(library, mixture))
    torch.testing.assert_close(logits(with_adapter(library, tmp_path / "adapter")), want, rtol=0, atol=1e-6)


def test_nothing_to_hold_is_refused(kinds, tmp_path):
    library = kinds("gpt2")
    equal = Mixture.fixed({"mlp": 0.0}, 16)
    with pytest.raises(SettingsError, match="Nothing"):
        save_adapter(library, equal, tmp_path / "adapter", CompositionSettings(mix="deltas"))
    with pytest.raises(SettingsError, match="at least 1"):
        save_adapter(library, equal, tmp_path / "adapter", rank=0)
