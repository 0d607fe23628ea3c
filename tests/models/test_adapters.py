"""Adapters as peft makes them give the logits that peft gives, and what we write peft reads; the rest is refused by name."""

from __future__ import annotations

import copy
import json
import math
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from asterism.core.errors import DataError, MismatchError, StorageError, UnknownName, UnsupportedError
from asterism.models.adapters import read_adapter, rewritten, with_adapter, with_lora, write_adapter
from asterism.models.anatomy import anatomy_of
from asterism.models.changes import LowRank
from asterism.models.library import Library
from tests import tiny

IDS = torch.tensor([[5, 17, 250, 3, 90, 41], [8, 8, 120, 300, 2, 61]])
CONV = {"rank_pattern": {"c_attn": 5, r"h\.1\.mlp\.c_fc": 1}, "alpha_pattern": {"c_attn": 7, "transformer.h.2.mlp.c_proj": 3}}
LINEAR = {"rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.down_proj": 1}, "alpha_pattern": {"^model.layers.0.mlp.up_proj": 9, "k_proj": 1}}
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 3, "lora_alpha": 5},
    "patterns": {"r": 2, "lora_alpha": 3},
    "patterned rslora": {"r": 2, "lora_alpha": 3, "use_rslora": True},
}


def logits(model):
    with torch.no_grad(), tiny.wide():
        return model(IDS).logits


def with_peft(generalist, folder):
    """transformers' and peft's own road to the same model."""
    base = AutoModelForCausalLM.from_pretrained(generalist, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(base, folder).eval()


@pytest.fixture
def start(tmp_path):
    def make(family, **config):
        model = tiny.tiny_model(family, dtype=torch.float64)
        tiny.save(model, tmp_path / "generalist")
        tiny.save_lora(model, tmp_path / "medical", 7, **config)
        return model, tmp_path

    return make


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_peft_adapter_gives_the_logits_that_peft_gives(start, family, kind):
    patterns = (CONV if family == "gpt2" else LINEAR) if kind.startswith("pattern") else {}
    model, root = start(family, **KINDS[kind], **patterns)
    library = Library.create(root, "generalist", {"medical": "medical"})
    got, want = logits(library.model("medical")), logits(with_peft(root / "generalist", root / "medical"))
    assert (got - want).abs().max() < 1e-10
    assert (want - logits(model)).abs().max() > 0.01
    ranks = {library.change("medical", name).rank for name in library.anatomy.shapes if library.change("medical", name)}
    assert ranks == ({1, 2, 5} if patterns else {KINDS[kind].get("r", 2)})


@pytest.mark.parametrize("family", ["gpt_neox", "gemma2", "phi3"])
def test_other_families_take_adapters_too(start, family):
    _, root = start(family, r=3, lora_alpha=4)
    library = Library.create(root, "generalist", {"medical": "medical"})
    assert (logits(library.model("medical")) - logits(with_peft(root / "generalist", root / "medical"))).abs().max() < 1e-10


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_in_up_and_down_is_as_stored(start, rslora):
    _, root = start("gpt2", r=4, lora_alpha=6, use_rslora=rslora)
    stored = load_file(root / "medical" / "adapter_model.safetensors")
    changes = read_adapter(root / "medical").changes
    stem = "base_model.model.transformer.h.3.mlp.c_proj"
    change = changes["transformer.h.3.mlp.c_proj.weight"]
    scale = 6 / math.sqrt(4) if rslora else 6 / 4
    np.testing.assert_allclose(change.up.numpy(), scale * stored[f"{stem}.lora_B.weight"].numpy(), rtol=1e-12)
    assert torch.equal(change.down, stored[f"{stem}.lora_A.weight"])
    assert len(changes) == 5 * 4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peft_loads_what_we_write(tmp_path, family):
    """Ranks 1, 2, 3 by module, only some modules changed: peft's logits are those of the generalist plus our deltas."""
    model = tiny.tiny_model(family, dtype=torch.float64)
    anatomy = anatomy_of(model)
    generator = torch.Generator().manual_seed(3)
    changes = {}
    for number, (name, shape) in enumerate((name, shape) for name, shape in anatomy.shapes.items() if len(shape) == 2):
        if anatomy.block_of(name) in (None, 1):
            continue
        outputs, inputs = shape if anatomy.output_axes[name] == 0 else shape[::-1]
        up, down = (
            torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((outputs, 1 + number % 3), (1 + number % 3, inputs))
        )
        changes[name] = LowRank(0.1 * up, down)
    assert {change.rank for change in changes.values()} == {1, 2, 3}
    write_adapter(tmp_path / "out", changes, "generalist", anatomy)
    model.save_pretrained(tmp_path / "generalist")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "generalist", dtype=torch.float64)
    ours = copy.deepcopy(model)
    with torch.no_grad():
        for name, change in changes.items():
            delta = change.up @ change.down
            ours.get_parameter(name).add_(delta if anatomy.output_axes[name] == 0 else delta.T)
    want = logits(ours)
    assert (logits(with_peft(tmp_path / "generalist", tmp_path / "out")) - want).abs().max() < 1e-10
    assert (want - logits(model)).abs().max() > 0.01
    back = read_adapter(tmp_path / "out").changes
    assert back.keys() == changes.keys()
    assert all(torch.equal(back[name].up, change.up) and torch.equal(back[name].down, change.down) for name, change in changes.items())


def test_an_untied_head_can_be_written_and_modules_are_named_shortly_where_that_is_exact(tmp_path):
    model = tiny.tiny_model("llama", dtype=torch.float64)
    anatomy = anatomy_of(model)
    vocabulary = anatomy.vocabulary
    head = LowRank(torch.full((vocabulary, 1), 0.5, dtype=torch.float64), torch.ones(1, tiny.HIDDEN, dtype=torch.float64))
    write_adapter(tmp_path / "head", {"lm_head.weight": head}, "generalist", anatomy)
    model.save_pretrained(tmp_path / "generalist")
    expected = model.lm_head.weight.detach() + 0.5
    hidden = model.model(IDS).last_hidden_state.detach()
    got = with_peft(tmp_path / "generalist", tmp_path / "head").base_model.model.lm_head(hidden).detach()
    torch.testing.assert_close(got, hidden @ expected.T, rtol=0, atol=1e-10)
    every = {
        name: LowRank(torch.ones(s[0], 2), torch.ones(2, s[1])) for name, s in anatomy.shapes.items() if name.endswith("q_proj.weight")
    }
    write_adapter(tmp_path / "short", every, "generalist", anatomy)
    assert json.loads((tmp_path / "short" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]
    write_adapter(tmp_path / "long", dict(list(every.items())[:1]), "generalist", anatomy)
    assert json.loads((tmp_path / "long" / "adapter_config.json").read_text())["target_modules"] == ["model.layers.0.self_attn.q_proj"]


def test_what_an_adapter_cannot_hold_is_not_written(tmp_path):
    anatomy = anatomy_of(tiny.tiny_model("gpt2"))
    fits = LowRank(torch.ones(48, 2), torch.ones(2, 16))
    bad = [
        ({"transformer.wte.weight": LowRank(torch.ones(16, 1), torch.ones(1, anatomy.vocabulary))}, UnsupportedError, "wte"),
        ({"transformer.h.0.attn.c_attn.bias": fits}, UnsupportedError, "c_attn.bias"),
        ({"transformer.h.0.attn.c_attn.weight": LowRank(torch.ones(16, 2), torch.ones(2, 48))}, MismatchError, "c_attn"),
        ({"transformer.h.0.attn.c_atn.weight": fits}, UnknownName, "did you mean"),
        ({}, DataError, "no change"),
    ]
    for changes, error, told in bad:
        with pytest.raises(error, match=told):
            write_adapter(tmp_path / "out", changes, "generalist", anatomy)
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")
    with pytest.raises(StorageError, match="something else"):
        write_adapter(tmp_path / "out", {"transformer.h.0.attn.c_attn.weight": fits}, "generalist", anatomy)
    assert (tmp_path / "out" / "precious").read_text() == "kept"


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_lora_for_training_wraps_the_linear_modules_of_the_blocks_and_starts_at_the_generalist(tmp_path, family):
    model = tiny.tiny_model(family)
    before = logits(model)
    anatomy = anatomy_of(model)
    adapted = with_lora(model, rank=3, alpha=6, base="generalist")
    assert torch.equal(logits(adapted.eval()), before)
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in adapted.named_parameters())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a")
    assert set(adapter.changes) == {n for n, s in anatomy.shapes.items() if len(s) == 2 and anatomy.block_of(n) is not None}
    assert all(change.rank == 3 for change in adapter.changes.values())
    assert adapter.config["base_model_name_or_path"] == "generalist"
    assert adapter.config["lora_alpha"] == 6


REFUSED = {
    "DoRA": {"use_dora": True},
    "not LORA": {"peft_type": "ADALORA"},
    "bias=all": {"bias": "all"},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "target_parameters": {"target_parameters": ["mlp.experts"]},
    "trainable_token_indices": {"trainable_token_indices": [1]},
    "layer_replication": {"layer_replication": [[0, 2]]},
    "lora_bias": {"lora_bias": True},
    "init_lora_weights=pissa": {"init_lora_weights": "pissa"},
    "init_lora_weights=pissa_niter_4": {"init_lora_weights": "pissa_niter_4"},
    "init_lora_weights=olora": {"init_lora_weights": "olora"},
    "init_lora_weights=corda": {"init_lora_weights": "corda"},
    "init_lora_weights=loftq": {"init_lora_weights": "loftq"},
    "init_lora_weights=lora_ga": {"init_lora_weights": "lora_ga"},
    "some_new_field": {"some_new_field": {"on": True}},
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_is_not_exactly_plain_lora_is_refused_by_name(start, told):
    _, root = start("gpt2")
    path = root / "medical" / "adapter_config.json"
    config = json.loads(path.read_text())
    read_adapter(root / "medical")
    path.write_text(json.dumps({**config, **REFUSED[told]}))
    with pytest.raises(UnsupportedError) as caught:
        read_adapter(root / "medical")
    assert told in str(caught.value)


@pytest.mark.parametrize("start_with", [False, "gaussian", "orthogonal", "eva", None])
def test_initialisations_that_leave_the_base_alone_pass(start, start_with):
    _, root = start("gpt2")
    path = root / "medical" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": start_with}))
    assert len(read_adapter(root / "medical").pairs) == 20


def test_lora_on_embeddings_and_real_dora_are_refused(tmp_path):
    model = tiny.tiny_model("gpt2")
    tiny.save_lora(model, tmp_path / "a", 1, target_modules=["wte"], fan_in_fan_out=False)
    with pytest.raises(UnsupportedError, match="lora_embedding_A"):
        read_adapter(tmp_path / "a")
    tiny.save_lora(model, tmp_path / "b", 1, use_dora=True)
    with pytest.raises(UnsupportedError, match="DoRA"):
        read_adapter(tmp_path / "b")


def test_a_lora_on_a_tied_head_is_refused_in_a_library(tmp_path):
    model = tiny.tiny_model("gpt2")
    tiny.save(model, tmp_path / "generalist")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of the tied head too
        tiny.save_lora(model, tmp_path / "a", 1, target_modules=["lm_head"], fan_in_fan_out=False)
    with pytest.raises(UnsupportedError, match="tied head"):
        Library.create(tmp_path, "generalist", {"medical": "a"})


def test_damage_is_told(start):
    _, root = start("gpt2")
    folder = root / "medical"
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    cases = [
        ({**config, "r": 3}, tensors, MismatchError, "rank"),
        ({**config, "r": "two"}, tensors, StorageError, "r or lora_alpha"),
        ({**config, "rank_pattern": {"(": 2}}, tensors, StorageError, "rank_pattern"),
        (config, {key: value for key, value in tensors.items() if key != name}, StorageError, "one of its two factors"),
        (config, {**tensors, "base_model.model.lm_head.weight": torch.ones(2)}, UnsupportedError, "lm_head.weight"),
        (config, {}, StorageError, "empty"),
        ([], tensors, StorageError, "damaged"),
    ]
    for changed, stored, error, told in cases:
        (folder / "adapter_config.json").write_text(json.dumps(changed))
        save_file(stored, folder / "adapter_model.safetensors")
        with pytest.raises(error, match=told):
            read_adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UnsupportedError, match=r"adapter_model.bin"):
        read_adapter(folder)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_saved_adapter_goes_on_the_model_trainable(tmp_path, family):
    model = tiny.tiny_model(family)
    tiny.save(model, tmp_path / "generalist")
    folder = tiny.save_lora(model, tmp_path / "medical", 7, base=str(tmp_path / "generalist"), lora_dropout=0.1)
    want = PeftModel.from_pretrained(tiny.tiny_model(family), folder).eval()
    adapted = with_adapter(tiny.tiny_model(family), folder).eval()
    assert torch.equal(logits(adapted), logits(want))
    assert {name.split(".")[-3] for name, part in adapted.named_parameters() if part.requires_grad} == {"lora_A", "lora_B"}
    up_only = with_adapter(tiny.tiny_model(family), folder, up_only=True)
    assert {name.split(".")[-3] for name, part in up_only.named_parameters() if part.requires_grad} == {"lora_B"}
    adapted.save_pretrained(tmp_path / "again")
    was, now = (load_file(each / "adapter_model.safetensors") for each in (folder, tmp_path / "again"))
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)
    config = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "generalist")
    assert read_adapter(tmp_path / "again").digest == read_adapter(folder).digest


def test_a_saved_adapter_that_does_not_fit_is_refused(tmp_path):
    folder = tiny.save_lora(tiny.tiny_model("llama"), tmp_path / "medical", 7)
    with pytest.raises(MismatchError, match="A LoRA changes a module that the generalist has not"):
        with_adapter(tiny.tiny_model("gpt2"), folder)
    factors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(factors))
    save_file({**factors, name: torch.full_like(factors[name], math.nan)}, folder / "adapter_model.safetensors")
    with pytest.raises(DataError, match="A weight is not finite"):
        with_adapter(tiny.tiny_model("llama"), folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_factors_leave_every_other_byte(tmp_path, dtype):
    folder = tiny.save_lora(tiny.tiny_model("gpt2").to(dtype), tmp_path / "medical", 7)
    adapter = read_adapter(folder)
    parameter, other = sorted(adapter.pairs)[:2]
    up = torch.randn(adapter.checkpoint.shape(adapter.pairs[parameter].up))
    down = torch.randn(adapter.checkpoint.shape(adapter.pairs[other].down))
    out = rewritten(adapter, tmp_path / "out", {parameter: up}, {other: down})
    was, now = (load_file(each / "adapter_model.safetensors") for each in (folder, out))
    kind = was[adapter.pairs[parameter].up].dtype
    assert torch.equal(now.pop(adapter.pairs[parameter].up), up.to(kind))
    assert torch.equal(now.pop(adapter.pairs[other].down), down.to(kind))
    assert len(now) == len(was) - 2
    assert all(torch.equal(was[name], tensor) for name, tensor in now.items())
    assert (out / "adapter_config.json").read_bytes() == (folder / "adapter_config.json").read_bytes()
    assert load_file(folder / "adapter_model.safetensors").keys() == was.keys()


def test_factors_that_do_not_fit_are_not_written(tmp_path):
    adapter = read_adapter(tiny.save_lora(tiny.tiny_model("llama"), tmp_path / "medical", 7))
    parameter = next(iter(adapter.pairs))
    shape = adapter.checkpoint.shape(adapter.pairs[parameter].up)
    with pytest.raises(UnknownName, match="parameter changed by"):
        rewritten(adapter, tmp_path / "out", {"model.odd.weight": torch.zeros(shape)})
    with pytest.raises(MismatchError, match=r"A factor has another shape than the adapter's"):
        rewritten(adapter, tmp_path / "out", {parameter: torch.zeros(shape[0], shape[1] + 1)})
    with pytest.raises(DataError, match="A factor is not finite"):
        rewritten(adapter, tmp_path / "out", {parameter: torch.full(shape, math.inf)})
    with pytest.raises(StorageError, match="The output place holds something else"):
        rewritten(adapter, tmp_path / "medical", {})
    assert not (tmp_path / "out").exists()
