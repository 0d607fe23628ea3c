"""Slots: their rows cut every fused weight into disjoint parts, and the parts are what the model itself takes for q, k, v, gate and up."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from torch import nn

from asterism.core.errors import UnsupportedError
from asterism.models.anatomy import anatomy_of
from asterism.models.functions import FUNCTIONS, slots_of
from tests import tiny

FUSED = {"gpt2": {"c_attn": "qkv"}, "gpt_neox": {"query_key_value": "qkv"}, "phi3": {"qkv_proj": "qkv", "gate_up_proj": "gate up"}}
IDS = torch.tensor([[17], [250], [3]])


def as_linear(model, parameter):
    """The weight as [out, in], and the bias."""
    module = model.get_submodule(parameter.rpartition(".")[0])
    weight = module.weight if isinstance(module, nn.Linear) else module.weight.T
    return weight.detach(), None if module.bias is None else module.bias.detach()


def applied(model, slot, x):
    """What the slot's rows make of the parameter's input."""
    weight, bias = as_linear(model, slot.parameter)
    return x @ slot.of(weight).T + (0 if bias is None else slot.of(bias))


def inputs_of(model, parameters):
    """Inputs of the modules that own the parameters, over one-token texts: at position 0 rotary embeddings change nothing."""
    seen = {}

    def watch(parameter):
        return lambda _module, given: seen.setdefault(parameter, given[0].detach())

    handles = [model.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(watch(name)) for name in parameters]
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    return seen


def with_biases(model):
    """Every bias random, so that a wrong row shows there too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_slots_cut_every_linear_weight_of_the_blocks_into_disjoint_parts(family):
    model = tiny.tiny_model(family)
    anatomy = anatomy_of(model)
    slots = slots_of(model)
    linear = [name for name, shape in anatomy.shapes.items() if anatomy.block_of(name) is not None and len(shape) == 2]
    assert list(dict.fromkeys(slot.parameter for slot in slots)) == linear  # all of them, in model order
    taken = {name: Counter() for name in linear}
    for slot in slots:
        weight, _ = as_linear(model, slot.parameter)
        rows = slot.of(torch.arange(len(weight))).tolist()
        assert len(rows) == slot.outputs
        assert weight.shape[1] == slot.inputs
        taken[slot.parameter].update(rows)
    assert all(counts == Counter(range(len(as_linear(model, name)[0]))) for name, counts in taken.items())
    gated = family not in ("gpt2", "gpt_neox")
    for block in range(anatomy.n_blocks):
        found = [slot.function for slot in slots if slot.block == block]
        assert sorted(found) == sorted(each for each in FUNCTIONS if gated or each != "gate")
    for own, functions in FUSED.get(family, {}).items():
        held = [slot.function for slot in slots if slot.block == 0 and slot.parameter.split(".")[-2] == own]
        assert held == (list(functions) if own != "gate_up_proj" else functions.split())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_q_k_v_and_o_are_what_the_model_takes_for_them(family, monkeypatch):
    """The query, key and value that reach the attention function are those of the slots' rows, head by head."""
    model = with_biases(tiny.tiny_model(family))
    model.set_attn_implementation("eager")
    for module in list(model.modules()):
        for norm in ("q_norm", "k_norm"):
            if hasattr(module, norm):
                setattr(module, norm, nn.Identity())
    source = sys.modules[type(model).__module__]
    plain, seen = source.eager_attention_forward, []

    def spy(module, query, key, value, *args, **kwargs):
        given = plain(module, query, key, value, *args, **kwargs)
        seen.append((query, key, value, given[0]))
        return given

    monkeypatch.setattr(source, "eager_attention_forward", spy)
    slots = {(slot.block, slot.function): slot for slot in slots_of(model)}
    inputs = inputs_of(model, {slot.parameter for slot in slots.values()})
    assert len(seen) == anatomy_of(model).n_blocks
    for block, (*heads, output) in enumerate(seen):
        for function, want in zip("qkv", heads, strict=True):
            slot = slots[block, function]
            got = applied(model, slot, inputs[slot.parameter])  # [B, 1, heads * width]
            torch.testing.assert_close(got, want.transpose(1, 2).reshape(got.shape).detach(), atol=1e-5, rtol=1e-5)
        into = inputs[slots[block, "o"].parameter]
        torch.testing.assert_close(into, output.reshape(into.shape).detach(), atol=1e-5, rtol=1e-5)
        assert slots[block, "q"].outputs == into.shape[-1]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gate_and_up_are_what_the_mlp_takes_for_them(family):
    model = with_biases(tiny.tiny_model(family))
    anatomy = anatomy_of(model)
    slots = {(slot.block, slot.function): slot for slot in slots_of(model)}
    inputs = inputs_of(model, {slot.parameter for slot in slots.values()})
    for block in range(anatomy.n_blocks):
        mlp = model.get_submodule(f"{anatomy.block_path(block)}.{anatomy.layout.mlp}")
        activation = next(child for name, child in mlp.named_children() if name in ("act", "act_fn", "activation_fn"))
        up = applied(model, slots[block, "up"], inputs[slots[block, "up"].parameter])
        if (block, "gate") in slots:
            gate = applied(model, slots[block, "gate"], inputs[slots[block, "gate"].parameter])
            want = activation(gate) * up
            assert (want - activation(up) * gate).abs().max() > 1e-3  # tells one from the other
        else:
            want = activation(up)
        torch.testing.assert_close(inputs[slots[block, "down"].parameter], want.detach(), atol=1e-5, rtol=1e-5)


def test_phi3_has_unequal_parts_and_gpt_neox_cuts_head_by_head():
    phi = {slot.function: slot for slot in slots_of(tiny.tiny_config("phi3")) if slot.block == 1}
    assert [phi[each].outputs for each in ("q", "k", "v", "gate", "up")] == [16, 8, 8, 32, 32]
    neox = next(slot for slot in slots_of(tiny.tiny_config("gpt_neox")) if slot.function == "k")
    assert neox.of(torch.arange(48)).tolist() == [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31, 40, 41, 42, 43]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3", "qwen3"])
def test_put_replaces_the_slots_rows_and_no_others(family):
    for slot in slots_of(tiny.tiny_config(family))[:6]:
        whole = torch.randn(sum(s.outputs for s in slots_of(tiny.tiny_config(family)) if s.parameter == slot.parameter), 2)
        part = torch.randn(slot.outputs, 2, requires_grad=True)
        put = slot.put(whole, part)
        assert torch.equal(slot.of(put), part)
        others = torch.ones(len(whole), dtype=torch.bool)
        others[slot.of(torch.arange(len(whole)))] = False
        assert torch.equal(put[others], whole[others])
        put.sum().backward()
        assert torch.equal(part.grad, torch.ones_like(part))


def test_a_config_suffices_and_slots_are_keys():
    model = tiny.tiny_model("phi3")
    slots = slots_of(model)
    assert slots_of(model.config) == slots
    assert len(set(slots)) == len(slots) == 3 * 7


def test_a_linear_weight_of_unknown_use_is_refused_by_name():
    model = tiny.tiny_model("llama")
    model.model.layers[1].mlp.side_proj = nn.Linear(4, 4, bias=False)
    with pytest.raises(UnsupportedError, match=r"model\.layers\.1\.mlp\.side_proj\.weight"):
        slots_of(model)


def test_a_fused_weight_of_another_size_than_its_parts_is_refused():
    model = tiny.tiny_model("phi3")
    model.config.num_key_value_heads = 1
    with pytest.raises(UnsupportedError, match=r"qkv_proj\.weight \[32 outputs\]"):
        slots_of(model)
