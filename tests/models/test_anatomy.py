"""Every family: each parameter's role and output axis, the axis proven by value; what is unknown is refused by name."""

from __future__ import annotations

import copy
import re
from collections import Counter
from functools import partial

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from asterism.core.errors import UnsupportedError
from asterism.models.anatomy import anatomy_of, skeleton
from tests import tiny

N_BLOCKS = {"gpt2": 5}
BLOCKS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}
FINAL_NORM = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
EMBEDDINGS = {"gpt2": {"transformer.wte.weight", "transformer.wpe.weight"}, "gpt_neox": {"gpt_neox.embed_in.weight"}}
PER_BLOCK = {  # tensors of attention, MLP and norms in one block, counted by hand from the architectures' papers
    "gpt2": (4, 4, 4),
    "gpt_neox": (4, 4, 4),
    "llama": (8, 6, 2),
    "mistral": (4, 3, 2),
    "qwen2": (7, 3, 2),
    "qwen3": (6, 3, 2),
    "gemma2": (4, 3, 4),
    "gemma3_text": (6, 3, 4),
    "phi3": (2, 2, 2),
    "olmo2": (6, 3, 2),
}
IDS = torch.tensor([[5, 9, 200, 31, 7, 64, 12, 300, 2, 1]])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_parameter_has_its_role(family):
    model = tiny.tiny_model(family)
    anatomy = anatomy_of(model)
    names = [name for name, _ in model.named_parameters()]
    n_blocks = N_BLOCKS.get(family, 3)
    assert list(anatomy.shapes) == list(anatomy.roles) == list(anatomy.output_axes) == names
    assert (anatomy.model_type, anatomy.n_blocks, anatomy.hidden_size, anatomy.vocabulary) == (family, n_blocks, 16, 320)
    attention, mlp, norm = PER_BLOCK[family]
    outside = {"embedding": len(EMBEDDINGS.get(family, "1")), "final_norm": 2 if family in FINAL_NORM else 1}
    outside |= {} if family in tiny.TIED else {"head": 1}
    inside = {"attention": n_blocks * attention, "mlp": n_blocks * mlp, "norm": n_blocks * norm}
    assert Counter(anatomy.roles.values()) == Counter(inside | outside)
    by_role = {role: {name for name in names if anatomy.role_of(name) == role} for role in set(anatomy.roles.values())}
    assert by_role["embedding"] == EMBEDDINGS.get(family, {"model.embed_tokens.weight"})
    assert {anatomy.module_of(name) for name in by_role["final_norm"]} == {FINAL_NORM.get(family, "model.norm")}
    assert by_role.get("head", set()) == (set() if family in tiny.TIED else {"lm_head.weight"})
    assert all(".mlp." in name for name in by_role["mlp"])
    assert all("attn" in name or "attention." in name for name in by_role["attention"])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_output_axes_are_proven_by_value(family):
    """Adding to slice j of a parameter along its output axis changes output j of its module, at some position, and no other."""
    model = tiny.tiny_model(family, dtype=torch.float64)
    anatomy = anatomy_of(model)
    calls = recorded_calls(model, IDS)
    proven = 0
    for name in anatomy.shapes:
        module = copy.deepcopy(model.get_submodule(anatomy.module_of(name)))
        args, kwargs, before = calls[anatomy.module_of(name)]
        parameter, axis = module.get_parameter(name.rpartition(".")[2]), anatomy.output_axes[name]
        assert parameter.shape[axis] == before.shape[-1] == anatomy.output_size(name)
        for node in (0, before.shape[-1] - 2):
            with torch.no_grad():
                parameter.select(axis, node).add_(1.0)
                changed = (module(*args, **kwargs) != before).flatten(0, -2).any(dim=0)
                parameter.select(axis, node).sub_(1.0)
            assert changed.nonzero().flatten().tolist() == [node], name
            proven += 1
    assert proven == 2 * len(anatomy.shapes)


def recorded_calls(model, ids):
    """Module path -> (args, kwargs, output) of its call in one forward pass, by hooks on every module that owns parameters."""
    calls, handles = {}, []

    def keep(path, _module, args, kwargs, output) -> None:
        calls[path] = (args, kwargs, output)

    for path, module in model.named_modules():
        if list(module.parameters(recurse=False)):
            handles.append(module.register_forward_hook(partial(keep, path), with_kwargs=True))
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return calls


def test_conv1d_has_its_outputs_on_axis_1():
    anatomy = anatomy_of(tiny.tiny_model("gpt2"))
    axes = {
        name: anatomy.output_axes[f"transformer.h.3.{name}"] for name in ("attn.c_attn.weight", "attn.c_attn.bias", "mlp.c_proj.weight")
    }
    assert axes == {"attn.c_attn.weight": 1, "attn.c_attn.bias": 0, "mlp.c_proj.weight": 1}
    assert anatomy.output_size("transformer.h.3.attn.c_attn.weight") == 48
    assert anatomy.output_axes["transformer.wte.weight"] == 1


def test_blocks_and_modules_of_parameters():
    anatomy = anatomy_of(tiny.tiny_model("llama"))
    assert anatomy.block_of("model.layers.2.mlp.up_proj.weight") == 2
    assert anatomy.block_of("model.norm.weight") is None
    assert anatomy.module_of("model.layers.2.mlp.up_proj.weight") == "model.layers.2.mlp.up_proj"
    assert anatomy.block_path(1) == "model.layers.1"
    some = anatomy.parameters_of({0, 2})
    assert len(some) == 2 * 16
    assert {anatomy.block_of(name) for name in some} == {0, 2}
    assert list(some) == [name for name in anatomy.shapes if name in some]
    wide = anatomy_of(skeleton(tiny.tiny_config("llama", num_hidden_layers=12)))
    assert wide.block_of("model.layers.11.mlp.up_proj.weight") == 11
    assert len(wide.parameters_of({1})) == 16  # block 1 is not blocks 1, 10 and 11


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_tied_is_right_both_ways(family, tied):
    anatomy = anatomy_of(skeleton(tiny.tiny_config(family, tie_word_embeddings=tied)))
    assert anatomy.tied is tied
    assert ("head" in anatomy.roles.values()) is not tied


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_skeleton_has_the_anatomy_of_the_model_and_no_weights(family):
    bones = skeleton(tiny.tiny_config(family))
    assert {parameter.device.type for parameter in bones.parameters()} == {"meta"}
    assert anatomy_of(bones) == anatomy_of(tiny.tiny_model(family))


SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 320}
ENDS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
EXPERTS = {"num_key_value_heads": 1, "intermediate_size": 32, "num_local_experts": 2}


@pytest.mark.parametrize(
    ("kind", "more", "missing"),
    [
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}, "module model.layers, module model.norm"),
        ("mixtral", EXPERTS, "the meaning of parameter model.layers.0.mlp.gate.weight"),
        ("gptj", {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}, "module transformer.wpe"),
        ("phi", {"intermediate_size": 32}, "module model.norm"),
        ("mamba", {}, "module model.layers"),
    ],
)
def test_an_unknown_architecture_is_refused_by_what_is_missing(kind, more, missing):
    config = AutoConfig.for_model(kind, **{**SHAPE, **ENDS, **more})
    with pytest.raises(UnsupportedError) as caught:
        anatomy_of(skeleton(config))
    assert caught.value.wrong == f"The anatomy of {kind!r} models is not known."
    assert caught.value.met.startswith(f"missing: {missing}")
    assert "asterism/models/anatomy.py" in caught.value.mend


def test_an_unknown_parameter_is_refused_by_name():
    model = AutoModelForCausalLM.from_config(tiny.tiny_config("llama"))
    model.model.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(UnsupportedError, match=re.escape("the meaning of parameter model.layers.1.self_attn.sinks [4]")):
        anatomy_of(model)
    model = AutoModelForCausalLM.from_config(tiny.tiny_config("llama"))
    model.model.layers[1].adapter = torch.nn.Linear(2, 3, bias=False)
    with pytest.raises(UnsupportedError, match=re.escape("the meaning of parameter model.layers.1.adapter.weight [3, 2]")):
        anatomy_of(model)


def test_a_model_that_is_no_causal_lm_is_refused():
    with pytest.raises(UnsupportedError, match=r"^Not a causal language model.\n  met:  't5': Unrecognized configuration class"):
        skeleton(AutoConfig.for_model("t5"))
