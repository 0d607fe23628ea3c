"""Mixtures in the architectures of transformers: the same logits as a plain loop over the experts, in memory and from disk."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from asterism.core.errors import UnsupportedError
from asterism.models.moe import build_moe, moe_config
from tests import tiny

IDS = torch.tensor([[5, 17, 250, 3, 90, 41, 77, 12, 9, 9, 31], [8, 8, 120, 300, 2, 61, 4, 4, 88, 19, 0]])
PLAIN = {"llama": {"attention_bias": False, "mlp_bias": False}}
STRETCHED = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
TARGETS = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe", "olmo2": "flex_olmo"}
CASES = [(family, *rest) for family in TARGETS for rest in ((3, False), (1, True), (2, True))]
CASES += [(family, 2, False) for family in ("qwen2", "qwen3", "olmo2")]


class Loop(torch.nn.Module):
    """A token at a time: the probabilities of the best experts times their outputs."""

    def __init__(self, experts, gate, top_k, normalise):
        super().__init__()
        self.experts, self.gate, self.top_k, self.normalise = torch.nn.ModuleList(experts), gate, top_k, normalise

    def forward(self, x):
        out = torch.zeros_like(x)
        for row in range(x.shape[0]):
            for position in range(x.shape[1]):
                token = x[row, position]
                p = torch.softmax(self.gate @ token, 0)
                best = p.topk(self.top_k).indices
                whole = p[best].sum() if self.normalise else 1.0
                out[row, position] = sum(p[e] / whole * self.experts[e](token) for e in best.tolist())
        return out


def mixture(family, top_k, normalise, **changes):
    """The loop's model, and what a mixture is built of."""
    model = tiny.tiny_model(family, dtype=torch.float64, **{**PLAIN.get(family, {}), **changes})
    others = [model, *(tiny.perturbed(model, seed, 0.5, "mlp") for seed in (1, 2))]
    outside = {name: parameter for name, parameter in model.named_parameters() if ".mlp." not in name}
    experts = [[dict(other.model.layers[block].mlp.named_parameters()) for other in others] for block in range(3)]
    gates = [torch.randn(3, tiny.HIDDEN, dtype=torch.float64) for _ in experts]
    loop = copy.deepcopy(model)
    for block, layer in enumerate(loop.model.layers):
        layer.mlp = Loop([copy.deepcopy(other.model.layers[block].mlp) for other in others], gates[block], top_k, normalise)
    return loop, (outside, experts, gates)


def logits(model):
    model.to(torch.float64)  # rotary frequencies too
    with torch.no_grad(), tiny.wide():
        return model(IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize(("family", "top_k", "normalise"), CASES)
def test_a_mixture_gives_the_logits_of_a_plain_loop(family, top_k, normalise, tmp_path):
    loop, parts = mixture(family, top_k, normalise)
    want = logits(loop)
    config = moe_config(loop.config, experts=3, top_k=top_k, normalise=normalise)
    model = build_moe(config, *parts)
    assert config.model_type == TARGETS[family]
    assert (logits(model) - want).abs().max() < 1e-10
    assert (logits(tiny.tiny_model(family, dtype=torch.float64, **PLAIN.get(family, {}))) - want).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, experts_implementation="eager")
    assert (logits(loaded) - want).abs().max() < 1e-10


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_sparse_probabilities_that_do_not_sum_to_one_make_llamas_a_qwen2_mixture(family, tmp_path):
    loop, parts = mixture(family, 2, False)
    model = build_moe(moe_config(loop.config, experts=3, top_k=2, normalise=False), *parts)
    assert model.config.model_type == "qwen2_moe"
    assert (logits(model) - logits(loop)).abs().max() < 1e-10
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, experts_implementation="eager")
    assert (logits(loaded) - logits(loop)).abs().max() < 1e-10


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_tied_heads_stay_tied(family):
    loop, parts = mixture(family, 3, False, tie_word_embeddings=True)
    model = build_moe(moe_config(loop.config, experts=3, top_k=3, normalise=False), *parts)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (logits(model) - logits(loop)).abs().max() < 1e-10


CHANGED = [("qwen2", SLIDING), ("qwen3", {**SLIDING, "max_window_layers": 0}), ("llama", STRETCHED)]


@pytest.mark.parametrize(("family", "changes"), CHANGED)
def test_windows_and_positions_are_kept(family, changes):
    loop, parts = mixture(family, 3, False, **changes)
    model = build_moe(moe_config(loop.config, experts=3, top_k=3, normalise=False), *parts)
    assert (logits(model) - logits(loop)).abs().max() < 1e-10
    assert (logits(mixture(family, 3, False)[0]) - logits(loop)).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2", "gemma3_text", "phi3"])
def test_other_families_are_refused_by_name(family):
    with pytest.raises(UnsupportedError, match=f"(?s)holds this family.*met:  {family}\n.*save_pretrained"):
        moe_config(tiny.tiny_config(family), experts=2, top_k=2, normalise=False)


def test_what_has_no_place_is_refused_by_name():
    for changes, name in (({"mlp_bias": True}, "layers.0.mlp.gate_proj.bias"), ({"attention_bias": True}, r"self_attn.\w_proj.bias")):
        loop, parts = mixture("llama", 3, False, **changes)
        with pytest.raises(UnsupportedError, match=f"(?s)mixtral has no place for a parameter.*{name}"):
            build_moe(moe_config(loop.config, experts=3, top_k=3, normalise=False), *parts)
    with pytest.raises(UnsupportedError, match="one kind of attention"):
        moe_config(tiny.tiny_config("qwen3", **SLIDING), experts=2, top_k=2, normalise=False)
