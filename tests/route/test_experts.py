"""Which libraries can be routed: MLP specialists as they are, others by an explicit choice, LoRA made dense."""

from __future__ import annotations

import pytest
import torch

from asterism.core.errors import MismatchError, UnknownName
from asterism.models.library import Library
from asterism.route.build import route
from asterism.route.experts import check_experts
from tests import tiny

IDS = torch.randint(3, 300, (1, 8), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Library:
    """Two specialists that changed everything, in float64."""
    return tiny.tiny_library(tmp_path_factory.mktemp("whole"), "llama", ("a", "b"), dtype=torch.float64)


def test_attention_that_differs_is_refused_by_name(whole):
    with pytest.raises(MismatchError) as caught:
        route(whole)
    assert str(caught.value) == (
        "Experts share everything but their MLPs; this specialist does not.\n"
        "  met:  a changes model.embed_tokens.weight, model.layers.0.self_attn.q_proj.weight, model.layers.0.self_attn.q_proj.bias, ...\n"
        '  mend: fine-tune the MLPs alone (method "mlp"), or choose attention="generalist" or attention="mean" for all other parameters'
    )
    with pytest.raises(UnknownName, match=r"No such way to treat attention.\n  met:  'meen'\n  mend: did you mean 'mean'"):
        check_experts(whole, whole.names, "meen")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("attention", ["generalist", "mean"])
def test_a_choice_takes_the_generalists_or_the_mean(whole, attention):
    model = dict(route(whole, attention=attention).named_parameters())
    generalist, *specialists = (dict(whole.model(name).named_parameters()) for name in (None, "a", "b"))
    for name in generalist:
        if ".mlp." in name:
            for index, own in enumerate(specialists):
                assert torch.equal(model[name.replace(".mlp.", f".mlp.experts.{index}.")], own[name]), name
        elif attention == "generalist":
            assert torch.equal(model[name], generalist[name]), name
        else:
            torch.testing.assert_close(model[name], (specialists[0][name] + specialists[1][name]) / 2, atol=1e-14, rtol=0)
            assert not torch.equal(model[name], generalist[name])


def test_mlp_specialists_may_be_asked_for_by_name_where_others_are_not(tmp_path):
    library = tiny.tiny_library(tmp_path / "library", "gpt2", ("a", "b"), "mlp")
    tiny.save(tiny.perturbed(library.fresh_model(), 9, 0.1), tmp_path / "whole")
    library.add("whole", tmp_path / "whole")
    check_experts(library, ("a", "b"))
    with pytest.raises(MismatchError, match=r"met:  whole changes transformer\.wte\.weight"):
        check_experts(library, library.names)
    assert route(library, experts=("b", "a")).config.experts == ["b", "a"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora_on_the_mlps_is_made_dense(tmp_path, family):
    generalist = tiny.tiny_model(family, dtype=torch.float64)
    base = tiny.save(generalist, tmp_path / "generalist")
    targets = ["mlp.c_fc", "mlp.c_proj"] if family == "gpt2" else ["gate_proj", "up_proj", "down_proj"]
    for seed, name in enumerate(("a", "b")):
        tiny.save_lora(generalist, tmp_path / name, seed, rank=2 + seed, base=str(base), target_modules=targets)
    library = Library.create(tmp_path, base, {name: tmp_path / name for name in ("a", "b")})
    model = route(library, gate="fixed", gates=torch.tensor([0.0, 1.0]))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, library.model("b")(IDS).logits, atol=1e-12, rtol=0)
        assert (model(IDS).logits - library.model()(IDS).logits).abs().max() > 1e-2


def test_lora_on_attention_is_refused(tmp_path):
    library = tiny.tiny_library(tmp_path, "gpt2", ("a", "b"), "lora")
    with pytest.raises(MismatchError, match=r"met:  a changes transformer.h.0.attn.c_attn.weight"):
        route(library)


def test_unequal_depth_or_width_never_enters_a_library(tmp_path):
    base = tiny.save(tiny.tiny_model("gpt2"), tmp_path / "generalist")
    for changes, told in ((dict(n_layer=4), "n_layer is 4"), (dict(n_embd=8), "n_embd is 8"), (dict(n_inner=24), "n_inner is 24")):
        other = tiny.save(tiny.tiny_model("gpt2", **changes), tmp_path / f"other-{told[0]}{told[-1]}{len(told)}")
        with pytest.raises(MismatchError, match=told):
            Library.create(tmp_path / "library", base, {"other": other})
