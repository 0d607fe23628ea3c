"""The routed model by itself: gates and sums, one copy of every expert, generation, gradients, files that load without asterism."""

from __future__ import annotations

import ast
import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from asterism.models import routed
from asterism.models.anatomy import anatomy_of
from asterism.models.batching import batches, hidden_states
from asterism.models.routed import RoutedConfig, RoutedForCausalLM, balance_loss, reached, recording, strongest
from tests import tiny
from tests.compose.conftest import left_padded

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))
KINDS = (dict(), dict(scope="single", depth=2), dict(num_experts_per_tok=2, depth=2, gate="mlp", normalise=True))


def model_of(family: str = "gpt2", seed: int = 0, dtype: torch.dtype = torch.float32, config: dict | None = None, **changes):
    """A routed model of two or more experts, every parameter drawn from `seed`."""
    whole = RoutedConfig(tiny.tiny_config(family, **(config or {})), **{"experts": ("a", "b"), **changes})
    model = RoutedForCausalLM(whole).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 and "bias" not in name else 0.25 * noise)
    return model


def numpy_mlp(expert: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """GPT-2's MLP on one token."""
    own = {name: parameter.detach().numpy() for name, parameter in expert.named_parameters()}
    hidden = x @ own["c_fc.weight"] + own["c_fc.bias"]
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ own["c_proj.weight"] + own["c_proj.bias"]


@pytest.mark.parametrize(("k", "normalise"), [(None, False), (1, False), (2, False), (2, True), (3, False), (6, True)])
def test_a_block_is_the_weighted_sum_token_by_token(k, normalise):
    model = model_of(dtype=torch.float64, experts=("a", "b", "c"), depth=2, num_experts_per_tok=k, normalise=normalise)
    mlp = model.routed[4]  # the last block: its own experts, then those below
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gate, wanted = mlp.gate.weight.detach().numpy(), np.zeros((2, 5, 16))
    experts = [*model.routed[4].experts, *model.routed[3].experts]
    for place in np.ndindex(2, 5):
        token = x[place].numpy()
        scores = np.exp(gate @ token)
        shares = scores / scores.sum()
        chosen = np.argsort(-shares)[: k or 6]
        total = shares[chosen].sum() if normalise else 1.0
        wanted[place] = sum(shares[e] / total * numpy_mlp(experts[e], token) for e in chosen)
    with torch.no_grad():
        np.testing.assert_allclose(mlp(x).numpy(), wanted, atol=1e-12)


def test_blocks_reach_upward_and_at_the_top_downward():
    assert [reached(block, 3, 5) for block in range(5)] == [(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 2), (4, 3, 2)]
    assert [reached(block, 1, 3) for block in range(3)] == [(0,), (1,), (2,)]
    assert reached(1, 4, 4) == (1, 2, 3, 0)
    model = model_of(depth=2)
    assert model.reach_of(0) == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert model.reach_of(4) == [("a", 4), ("b", 4), ("a", 3), ("b", 3)]


@pytest.mark.parametrize("depth", [1, 3])
def test_every_expert_is_held_once_and_never_runs_twice_for_one_input(depth, tmp_path):
    model = model_of(depth=depth)
    mlps = [mlp for block in model.routed for mlp in block.experts]
    assert len(mlps) == 10
    each = sum(parameter.numel() for parameter in mlps[0].parameters())
    others = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." not in name)
    assert model.num_parameters() == others + 10 * each
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "model.safetensors")) == len(list(model.parameters()))
    seen = []
    for mlp in mlps:
        mlp.register_forward_hook(lambda module, inputs, output: seen.append((id(module), inputs[0].data_ptr())))
    with torch.no_grad():
        model(IDS)
    reaching = sum(len(block.reach) for block in model.routed)
    assert len(seen) == reaching == 5 * 2 * depth
    assert all(len({id(mlp) for mlp in block.reach}) == 2 * depth for block in model.routed)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generation_with_and_without_cache_and_loading(family, tmp_path):
    for number, changes in enumerate(KINDS):
        model = model_of(family, seed=number, **changes)
        given = left_padded(2, 6, seed=3)
        cached, plain = (model.generate(**given, max_new_tokens=6, do_sample=False, use_cache=use) for use in (True, False))
        assert torch.equal(cached, plain)
        assert len(set(cached[:, 6:].flatten().tolist())) > 2
        model.save_pretrained(tmp_path / str(number))
        back = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        assert type(back) is RoutedForCausalLM
        for field in ("experts", "depth", "scope", "gate", "mode", "num_experts_per_tok", "normalise", "tie_word_embeddings"):
            assert getattr(back.config, field) == getattr(model.config, field)
        own, others = model.state_dict(), back.state_dict()
        assert own.keys() == others.keys()
        assert all(torch.equal(own[name], others[name]) for name in own)
        with torch.no_grad():  # weights that lie elsewhere in memory may be multiplied in another order
            torch.testing.assert_close(back(IDS).logits, model(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_parts_keep_the_familys_names(family):
    model, plain = model_of(family), tiny.tiny_model(family)
    anatomy = anatomy_of(model)
    assert {name for name in anatomy.shapes if ".mlp." not in name} == {name for name, _ in plain.named_parameters() if ".mlp." not in name}
    assert {role for name, role in anatomy.roles.items() if ".mlp." in name} == {"mlp"}
    assert anatomy.tied == (family in tiny.TIED)
    assert (model.config.max_position_embeddings, model.config.vocab_size) == (tiny.LENGTH, plain.config.vocab_size)
    assert model.get_output_embeddings() is model.lm_head
    assert model.get_input_embeddings().weight.shape == (plain.config.vocab_size, 16)


@pytest.mark.parametrize("attention", [None, "eager", "sdpa"])
def test_the_way_to_compute_attention_reaches_the_family(attention, tmp_path):
    model_of("qwen2").save_pretrained(tmp_path / "model")
    asked = {"attn_implementation": attention} if attention else {}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **asked)
    assert {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")} == {attention or "sdpa"}
    if attention == "eager":
        assert [weights.shape for weights in model(IDS, output_attentions=True).attentions] == [(2, 4, 9, 9)] * 3


def test_hidden_states_of_a_single_gate_are_read_without_the_head():
    model = model_of(scope="single")
    batch = batches([[5, 6, 7], [8, 9]], pad=0)[0]
    with torch.no_grad():
        whole = model(batch.ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(hidden_states(model, batch, 2), whole[3])


def test_copies_and_casts_are_whole():
    model = model_of(scope="single", depth=2)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(twin(IDS).logits, model(IDS).logits)
        twin.routed[1].experts[0].c_fc.weight.zero_()  # also reached by block 0
        assert not torch.equal(twin.routed[0](torch.ones(1, 1, 16)), model.routed[0](torch.ones(1, 1, 16)))
        half = twin.to(torch.bfloat16)
        assert half(IDS).logits.dtype == torch.bfloat16
    assert twin.resize_token_embeddings(330).weight.shape[0] == twin(IDS).logits.shape[-1] == 330


@pytest.mark.parametrize("k", [None, 1])
def test_gradients_reach_every_gate_and_no_expert(k):
    model = model_of(dtype=torch.float64, depth=2, num_experts_per_tok=k)
    model.requires_grad_(False)
    for gate in model.gates:
        gate.requires_grad_(True)
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == model.gate_state().keys()
    weight = model.gates[1].weight  # its effect passes through the frozen experts above it
    step = 1e-6
    with torch.no_grad(), tiny.wide():
        slopes = []
        for sign in (1, -1):
            weight[1, 3] += sign * step
            slopes.append(float(model(IDS, labels=IDS).loss))
            weight[1, 3] -= sign * step
    assert float(weight.grad[1, 3]) == pytest.approx((slopes[0] - slopes[1]) / (2 * step), rel=1e-4)
    assert abs(float(weight.grad[1, 3])) > 1e-5


def test_recording_gives_each_blocks_probabilities():
    layer, single = model_of(depth=2), model_of(scope="single", depth=2)
    for model in (layer, single):
        with recording(model) as seen, torch.no_grad():
            model(IDS[:1, :4])
            model(IDS)
        assert [tuple(each.shape) for each in seen] == [(2, 9, 4)] * 5
        for each in seen:
            torch.testing.assert_close(each.sum(dim=-1), torch.ones(2, 9))
        assert all(torch.equal(seen[0], each) for each in seen[1:]) == (model is single)
        before = seen[0]
        with torch.no_grad():
            model(IDS)
        assert seen[0] is before  # outside, nothing is kept


def test_bfloat16_gates_weigh_in_float32():
    model = model_of().to(torch.bfloat16)
    with recording(model) as seen, torch.no_grad():
        model(IDS)
    assert seen[0].dtype == torch.float32


@pytest.mark.parametrize("k", [1, 2])
def test_the_balance_loss_is_mixtrals(k):
    scores = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(3, 7)
    mask[0, 4:] = 0
    for given in (None, mask):
        want = load_balancing_loss_func((scores.flatten(0, 1),), 4, k, given)
        torch.testing.assert_close(balance_loss(scores.softmax(dim=-1), k, given), want)
    torch.testing.assert_close(balance_loss(torch.eye(4)[None], 1), torch.tensor(1.0))  # balanced
    torch.testing.assert_close(balance_loss(torch.eye(4)[:1, None].expand(1, 5, 4), 1), torch.tensor(4.0))  # all to one


@pytest.mark.parametrize("scope", ["layer", "single"])
def test_the_balance_loss_counts_in_training_alone(scope):
    model = model_of(scope=scope, balance=0.5)
    with recording(model) as seen:
        plain = model(IDS, labels=IDS).loss
    balance = torch.stack([balance_loss(each) for each in seen]).mean()
    model.train()
    torch.testing.assert_close(model(IDS, labels=IDS).loss, plain + 0.5 * balance)
    assert model(IDS, labels=IDS, return_dict=False)[0] == model(IDS, labels=IDS).loss
    assert model(IDS).loss is None


def test_gates_are_filled_for_all_or_one_by_one():
    model = model_of(scope="single")
    model.set_gates(torch.ones(2, 16))
    assert torch.equal(model.routed[0].gate.weight, torch.ones(2, 16))
    fixed = model_of(gate="fixed")
    torch.testing.assert_close(torch.stack([gate.weights for gate in fixed.gates]), torch.full((5, 2), 0.5))
    fixed.set_gates(torch.arange(10.0).view(5, 2))
    assert torch.equal(fixed.gates[3].weights, torch.tensor([6.0, 7.0]))
    assert fixed.gate_state().keys() == {f"transformer.h.{block}.mlp.gate.weights" for block in range(5)}


def test_the_strongest_are_renormalised_on_request():
    given = torch.tensor([0.1, 0.6, 0.3])
    for normalise, want in ((False, [0.6, 0.3]), (True, [2 / 3, 1 / 3])):
        shares, places = strongest(given, 2, normalise)
        torch.testing.assert_close(shares, torch.tensor(want))
        assert places.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(num_experts_per_tok=5, depth=2), "num_experts_per_tok is 5; a gate weighs 4 experts"),
        (dict(num_experts_per_tok=0), "num_experts_per_tok is 0"),
        (dict(depth=6), "depth is 6; the model has 5 blocks"),
        (dict(scope="all"), "scope is 'all', not one of single, layer"),
        (dict(gate="lineal"), "gate is 'lineal'"),
        (dict(mode="dot"), "mode is 'dot'"),
        (dict(experts=()), "names no model"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        RoutedConfig(tiny.tiny_config("gpt2"), **{"experts": ("a", "b"), **changes})


def test_the_file_stands_alone():
    tree = ast.parse(Path(routed.__file__).read_text("utf-8"))
    modules = {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) == {"torch", "transformers"}


ALONE = """
import sys
sys.modules["asterism"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert not type(model).__module__.startswith("asterism")
with torch.no_grad():
    torch.save(model(torch.arange(3, 12)[None]).logits, sys.argv[2])
model.save_pretrained(sys.argv[3])
"""


def test_a_machine_without_asterism_loads_it(tmp_path):
    model = model_of("llama", depth=2, scope="single")
    model.save_pretrained(tmp_path / "model")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    places = [tmp_path / name for name in ("model", "logits.pt", "again")]
    ran = subprocess.run([sys.executable, "-c", ALONE, *places], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    with torch.no_grad():
        want = model(torch.arange(3, 12)[None]).logits
        assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), want)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")  # saved there, loaded here
        assert type(again) is RoutedForCausalLM
        assert torch.equal(again(torch.arange(3, 12)[None]).logits, want)
