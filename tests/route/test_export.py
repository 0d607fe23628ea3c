"""Routed models in the architectures of transformers give the same logits; what these cannot say is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asterism.core.errors import StorageError, UnsupportedError
from asterism.route.build import route
from asterism.route.export import as_moe, export_moe, export_routed
from tests import tiny

IDS = torch.tensor([[5, 17, 250, 3, 90, 41, 77, 12], [8, 8, 120, 300, 2, 61, 4, 4]])
NAMES = {"mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe", "olmo2": "flex_olmo"}
CASES = {
    "dense": {},
    "two of three": {"top_k": 2, "normalise": True},
    "two of three as they are": {"top_k": 2},
    "scaled": {"scale": 2.5},
    "depth 2": {"depth": 2},
}


def logits(model):
    with torch.no_grad(), tiny.wide():
        return model.to(torch.float64)(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.fixture
def built(tmp_path):
    def make(family="mistral", dtype=torch.float64, **settings):
        library = tiny.tiny_library(tmp_path / "library", family, ("legal", "code"), kind="mlp", dtype=dtype)
        model = route(library, with_generalist=True, **settings)
        if settings.get("gate", "linear") == "linear":
            model.set_gates(torch.randn(len(model.gates), model.config.weighed, tiny.HIDDEN, dtype=torch.float64))
        return library, model

    return make


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("case", CASES)
def test_the_exported_model_gives_the_same_logits(built, family, case):
    library, model = built(family, **CASES[case])
    made = as_moe(model)
    sparse = case == "two of three as they are" and family == "mistral"
    assert made.config.model_type == ("qwen2_moe" if sparse else NAMES[family])
    assert (logits(made) - logits(model)).abs().max() < 1e-10
    assert (logits(made) - logits(library.model())).abs().max() > 0.01


def test_a_file_of_two_experts_loads_with_transformers_alone(built, tmp_path):
    library, model = built("qwen2", torch.float32)
    folder = export_moe(model, tmp_path / "moe", library.tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded).__name__ == "Qwen2MoeForCausalLM"
    assert (loaded(IDS).logits - model(IDS).logits).abs().max() < 1e-5
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == library.tokenizer.get_vocab()
    told = json.loads((folder / "export.json").read_text())
    assert told["experts"] == ["legal", "code", "generalist"]
    assert told["origin"]["specialists"] == {name: library.digest(name) for name in library.names}
    greedy = dict(max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert torch.equal(loaded.generate(IDS, **greedy), model.generate(IDS, **greedy))
    export_moe(model, folder)  # an earlier export is replaced


def test_what_no_architecture_holds_is_written_as_it_is(built, tmp_path):
    library, model = built("gpt2", torch.float32, scope="single", gate="mlp")
    folder = export_routed(model, tmp_path / "routed", library.tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == library.tokenizer.get_vocab()
    assert (folder / "routed.py").exists()
    export_routed(model, folder)  # an earlier export is replaced


def test_the_model_itself_stays_as_it_was(built):
    _, model = built()
    before, asking = logits(model), [parameter.requires_grad for parameter in model.parameters()]
    made = as_moe(model)
    with torch.no_grad():
        made.model.layers[0].mlp.experts.down_proj.zero_()
        made.model.layers[0].mlp.gate.weight.zero_()
    assert torch.equal(logits(model), before)
    assert [parameter.requires_grad for parameter in model.parameters()] == asking
    assert made.model.embed_tokens.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scope": "single"}, "One gate for all blocks.*scope single"),
        ({"gate": "mlp"}, "not linear.*gate mlp"),
        ({"gate": "fixed"}, "not linear.*gate fixed"),
        ({"mode": "absolute"}, "plain products.*mode absolute"),
        ({"mode": "cosine"}, "plain products.*mode cosine"),
    ],
)
def test_gates_without_a_place_are_refused(built, settings, told):
    with pytest.raises(UnsupportedError, match=f"(?s){told}.*save_pretrained"):
        as_moe(built(**settings)[1])


def test_families_without_an_architecture_and_taken_places_are_refused(built, tmp_path):
    with pytest.raises(UnsupportedError, match=r"(?s)holds this family.*gpt2"):
        as_moe(built("gpt2")[1])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("keep")
    with pytest.raises(StorageError, match="something else"):
        export_moe(None, tmp_path / "mine")
