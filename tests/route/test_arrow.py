"""Arrow: directions as NumPy's singular vectors have them, PEFT's own prototypes and sums, bad libraries refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import MismatchError, SettingsError, UnsupportedError
from asterism.models.library import Library
from asterism.models.routed import recording, strongest
from asterism.route.arrow import arrow_gates, arrow_model
from asterism.route.untrained import route_untrained
from tests import tiny

IDS = torch.tensor([[5, 17, 250, 3, 90, 41, 77, 12]])
NAMES = ("legal", "code", "science")
INPUTS = {
    "gpt2": ["c_fc"],
    "gpt_neox": ["dense_h_to_4h"],
    "phi3": ["gate_up_proj"],
    **{family: ["gate_proj", "up_proj"] for family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2")},
}


def changed_most(library, name, block):
    """The input direction that a specialist's MLP answers with the largest change, by NumPy: float64, the whole stacked delta."""
    stacked = []
    for module in INPUTS[library.config.model_type]:
        parameter = f"{library.anatomy.block_path(block)}.mlp.{module}.weight"
        own, base = (dict(library.model(each).named_parameters())[parameter].double().numpy() for each in (name, None))
        stacked.append((own - base).T if module == "c_fc" else own - base)
    return np.linalg.svd(np.concatenate(stacked), full_matrices=False)[2][0]


@pytest.mark.parametrize(("family", "kind"), [*((family, "lora") for family in INPUTS), ("gpt2", "mlp"), ("llama", "mlp")])
def test_directions_are_those_that_training_changed_most(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind=kind, dtype=torch.float64)
    gates = arrow_gates(library, temperature=0.5)
    assert gates.experts == NAMES
    assert (gates.mode, gates.scale) == ("absolute", 2.0)
    assert gates.weights.shape == (library.anatomy.n_blocks, 3, tiny.HIDDEN)
    for block in range(library.anatomy.n_blocks):
        for place, name in enumerate(NAMES):
            want = changed_most(library, name, block)
            assert abs(gates.weights[block, place].double().numpy() @ want) > 1 - 1e-5
    assert abs(gates.weights[0, 0] @ gates.weights[0, 1]) < 0.99


def test_an_mlp_that_no_training_changed_gets_the_least_weight(tmp_path):
    model = tiny.tiny_model("llama")
    tiny.save(model, tmp_path / "generalist")
    tiny.save(tiny.perturbed(model, 1, 0.2, "mlp"), tmp_path / "legal")
    library = Library.create(tmp_path, "generalist", {"legal": "legal", "same": "generalist"})
    gates = arrow_gates(library, with_generalist=True)
    assert gates.experts == ("legal", "same", "generalist")
    assert gates.weights[:, 0].norm(dim=-1).allclose(torch.ones(3))
    assert not gates.weights[:, 1:].any()
    routed = route_untrained(library, gates)
    with recording(routed) as seen, torch.no_grad():
        routed(IDS)
    for p in seen:
        assert bool((p[..., 0] >= p[..., 1]).all())
        assert torch.equal(p[..., 1], p[..., 2])


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_prototypes_are_pefts_and_so_are_the_weights_of_a_token(tmp_path, family):
    library = tiny.tiny_library(tmp_path, family, ("legal", "science"), kind="lora")  # ranks 2 and 3
    library.add("code", tiny.save_lora(tiny.tiny_model(family), tmp_path / "code", 5, base=str(tmp_path / "generalist")))
    library.remove("science")
    peft = arrow_model(library, top_k=2, seed=3)
    with torch.no_grad():
        peft(input_ids=IDS)
    gates = arrow_gates(library)
    for block in range(library.anatomy.n_blocks):
        layer = peft.get_submodule(f"base_model.model.{library.anatomy.block_path(block)}.mlp.{INPUTS[family][0]}")
        arrow = layer.lora_arrow["arrow_router"]
        for place in range(2):
            factors = layer.lora_A[f"task_{place}"].weight, layer.lora_B[f"task_{place}"].weight
            exact = arrow.top_right_singular_vec_from_BA(*factors, iters=2000)
            assert abs(gates.weights[block, place] @ exact) > 1 - 1e-5
    routed = route_untrained(library, gates, attention="generalist", top_k=1, normalise=True)
    x = torch.randn(1, 7, tiny.HIDDEN)
    arrow.prototypes, arrow.top_k = gates.weights[-1], 1
    shares, places = strongest(routed.gates[-1](x), 1, normalise=True)
    ours = torch.zeros(1, 7, 2).scatter_(-1, places, shares)  # [1, 7, E]
    told = sum(
        ours[..., place, None] * layer.scaling[f"task_{place}"] * layer.lora_B[f"task_{place}"](layer.lora_A[f"task_{place}"](x))
        for place in range(2)
    )
    with torch.no_grad():
        assert torch.allclose(arrow(x, layer.lora_A, layer.lora_B, torch.nn.Identity(), layer.scaling), told, atol=1e-6)


def test_pefts_model_sums_the_adapters_that_a_token_asks_for(tmp_path):
    generalist = tiny.tiny_model("gpt2")
    tiny.save(generalist, tmp_path / "generalist")
    for seed, name in enumerate(NAMES):  # rank 1: power iteration is exact; the MLPs alone, whose c_proj has a namesake in the attention
        tiny.save_lora(
            generalist, tmp_path / name, seed, rank=1, base=str(tmp_path / "generalist"), target_modules=["mlp.c_fc", "mlp.c_proj"]
        )
    library = Library.create(tmp_path, "generalist", {name: name for name in NAMES})
    model = arrow_model(library, top_k=2, temperature=0.3)
    seen = {}
    layer = model.get_submodule("base_model.model.transformer.h.1.mlp.c_proj")
    layer.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
        assert (logits - library.model()(input_ids=IDS).logits).abs().max() > 0.01
        base = library.model().transformer.h[1].mlp.c_proj(seen["x"])[0].double().numpy()
    parameter = "transformer.h.1.mlp.c_proj.weight"
    changes = [library.change(name, parameter) for name in NAMES]
    for token, y, base_y in zip(seen["x"][0].double().numpy(), seen["y"][0].double().numpy(), base, strict=True):
        deltas = [change.up.double().numpy() @ change.down.double().numpy() for change in changes]
        scores = np.array([abs(np.linalg.svd(delta)[2][0] @ token) for delta in deltas]) / 0.3
        best = np.argsort(-scores)[:2]
        shares = np.exp(scores[best] - scores[best].max()) / np.exp(scores[best] - scores[best].max()).sum()
        want = base_y + sum(share * deltas[place] @ token for share, place in zip(shares, best, strict=True))
        np.testing.assert_allclose(y, want, atol=1e-5)


def test_libraries_that_arrow_cannot_route_are_refused(tmp_path):
    whole = tiny.tiny_library(tmp_path / "whole", "gpt2", ("legal",))
    with pytest.raises(UnsupportedError, match=r"(?s)between adapters.*legal is a whole checkpoint.*arrow_gates"):
        arrow_model(whole, top_k=1)
    mixed = tiny.tiny_library(tmp_path / "mixed", "gpt2", ("legal", "code"), kind="lora")
    with pytest.raises(MismatchError, match=r"(?s)same modules and ranks.*transformer.h.0.attn.c_attn: rank 3 in code, 2 in legal"):
        arrow_model(mixed, top_k=1)
    for top_k in (0, 3):
        with pytest.raises(SettingsError, match=f"(?s)so many adapters.*top_k {top_k} of 2"):
            arrow_model(mixed, top_k=top_k)
    for make, library in ((arrow_gates, whole), (arrow_model, mixed)):
        with pytest.raises(SettingsError, match="temperature is positive"):
            make(library, temperature=0.0)
