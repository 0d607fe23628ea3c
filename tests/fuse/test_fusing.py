"""Under training the target has the predicted B's: same loss at the start, the plain way's gradients at one prediction a step."""

from __future__ import annotations

import copy

import pytest
import torch

from asterism.core.errors import MismatchError
from asterism.fuse.alignment import align
from asterism.fuse.experts import open_expert
from asterism.fuse.fusing import FusedForTraining
from asterism.fuse.prediction import Predictor
from asterism.fuse.settings import FusionSettings
from asterism.models.adapters import with_adapter
from tests import tiny
from tests.fuse.test_prediction import stirred

SETTINGS = FusionSettings(projections=16, width=16, heads=2)
BATCHES = [torch.tensor([[5, 17, 250, 3, 90, 41]]), torch.tensor([[8, 8, 120, 300]]), torch.tensor([[61, 2, 7, 9, 12]])]


@pytest.fixture
def fused(tmp_path, expert):
    """make(family, settings, once) -> the module, all dropout off, and the target expert."""

    def make(family="llama", settings=SETTINGS, once=True, **config):
        model = tiny.tiny_model(family)
        model.config.save_pretrained(tmp_path / "base")
        folder = tiny.save_lora(model, tmp_path / "target", 11, base=str(tmp_path / "base"), **config)
        target = open_expert(tmp_path / "base", folder, is_target=True)
        sources = {"one": expert("one", "gpt2" if family != "gpt2" else "phi3"), "two": expert("two", "qwen2", rank=3)}
        predictor = Predictor(target, sources, align(target, sources, settings), settings)
        return FusedForTraining(with_adapter(model, folder), predictor, once=once).train(), folder

    return make


def step(module):
    """One optimiser step's gradients over three micro-batches."""
    for ids in BATCHES:
        (module(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)["loss"] / len(BATCHES)).backward()
    module.carry_back()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "phi3", "gemma2"])
def test_step_0_is_the_target_adapter(fused, family):
    module, folder = fused(family, r=3, lora_alpha=4, use_rslora=True)
    plain = with_adapter(tiny.tiny_model(family), folder)
    for mode in (True, False):
        module.train(mode)
        for ids in BATCHES:
            assert torch.equal(module(input_ids=ids, labels=ids)["loss"], plain(input_ids=ids, labels=ids).loss)
    moved = stirred(module.predictor, 0.3)
    assert (
        module.eval()(input_ids=BATCHES[0], labels=BATCHES[0])["loss"] - plain(input_ids=BATCHES[0], labels=BATCHES[0]).loss
    ).abs() > 1e-3
    with torch.no_grad():  # and then it is the target with the predicted B's
        for parameter, up in moved().items():
            plain.get_parameter(f"base_model.model.{parameter.removesuffix('weight')}lora_B.default.weight").copy_(up)
    for ids in BATCHES:
        torch.testing.assert_close(module(input_ids=ids, labels=ids)["loss"], plain(input_ids=ids, labels=ids).loss)


@pytest.mark.parametrize(
    "settings", [SETTINGS, SETTINGS.changed(regulariser=2.0), SETTINGS.changed(regulariser=0.0), SETTINGS.changed(free_down=True)]
)
def test_carried_back_once_the_gradients_are_those_of_the_plain_way(fused, settings):
    module, _ = fused("gpt2", settings)
    stirred(module.predictor)
    plain = copy.deepcopy(module)
    plain.once = False
    got, want = step(module), step(plain)
    assert got.keys() == want.keys()
    assert all(name.startswith("predictor.nets.") for name in got)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6 * float(gradient.abs().max()) + 1e-8, rtol=2e-4)
    assert max(float(each.abs().max()) for each in got.values()) > 1e-3


def test_the_regulariser_counts_once_a_step(fused):
    """Its gradient alone, from the predictor; three micro-batches do not make it three."""
    settings = SETTINGS.changed(regulariser=3.0)
    module, _ = fused("llama", settings)
    bare, _ = fused("llama", settings.changed(regulariser=0.0))
    for each in (module, bare):
        stirred(each.predictor)
    got, without = step(module), step(bare)
    alone = stirred(copy.deepcopy(bare.predictor), 0.0)
    alone.settings = settings
    alone.zero_grad()
    alone()
    (3.0 * alone.penalty).backward()
    for name, parameter in alone.named_parameters():
        if parameter.grad is not None:
            want = parameter.grad + without.get(f"predictor.{name}", 0.0)
            torch.testing.assert_close(got[f"predictor.{name}"], want, atol=1e-5, rtol=1e-4)


def test_the_nets_run_once_a_step_and_once_between_steps(fused, monkeypatch):
    module, _ = fused()
    count, plain = [], module.predictor.forward
    monkeypatch.setattr(module.predictor, "forward", lambda: (count.append(1), plain())[1])
    optimiser = torch.optim.AdamW(module.predictor.parameters(), lr=1e-2)
    for done in (1, 2):
        step(module)
        assert len(count) == done
        optimiser.step()
        optimiser.zero_grad()
    module.eval()
    losses = [float(module(input_ids=ids, labels=ids)["loss"]) for ids in BATCHES]
    assert len(count) == 3
    assert losses == [float(module(input_ids=ids, labels=ids)["loss"]) for ids in BATCHES]
    step(module.train())
    optimiser.step()
    module.eval()
    assert losses != [float(module(input_ids=ids, labels=ids)["loss"]) for ids in BATCHES]
    assert len(count) == 5


def test_training_lowers_the_loss_and_writes_to_nothing_of_the_model(fused):
    module, _ = fused()
    before = {name: parameter.clone() for name, parameter in module.model.named_parameters()}
    optimiser = torch.optim.AdamW([each for each in module.parameters() if each.requires_grad], lr=3e-3)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        step(module)
        optimiser.step()
        with torch.no_grad():
            losses.append(sum(float(module.eval()(input_ids=ids, labels=ids)["loss"]) for ids in BATCHES))
        module.train()
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in module.model.parameters())
    assert not any("lora" in name or "model." in name for name, parameter in module.named_parameters() if parameter.requires_grad)


def test_what_a_forward_tells(fused):
    module, _ = fused(settings=SETTINGS.changed(regulariser=5.0))
    ids = BATCHES[0]
    once = module(input_ids=ids, labels=ids)
    assert not once["penalty"].requires_grad
    assert float(once["penalty"]) == pytest.approx(5 * float(module.predictor.penalty.detach()), rel=1e-6)
    assert set(module.eval()(input_ids=ids, labels=ids)) == {"loss"}
    plain, _ = fused(settings=SETTINGS.changed(regulariser=5.0), once=False)
    assert float(plain(input_ids=ids, labels=ids)["loss"].detach()) == pytest.approx(
        float(once["loss"].detach() + once["penalty"]), rel=1e-6
    )


def test_a_model_without_the_targets_adapter_is_refused(fused, tmp_path):
    module, _ = fused()
    other = tiny.save_lora(tiny.tiny_model("llama"), tmp_path / "other", 12)
    with pytest.raises(MismatchError, match=r"lora_B\.default\.weight: other values"):
        FusedForTraining(with_adapter(tiny.tiny_model("llama"), other), module.predictor)
    with pytest.raises(MismatchError, match="absent"):
        FusedForTraining(tiny.tiny_model("llama"), module.predictor)


def test_a_bfloat16_model_takes_its_own_dtype(fused, tmp_path):
    module, folder = fused()
    narrow = with_adapter(tiny.tiny_model("llama", dtype=torch.bfloat16), folder)
    trained = FusedForTraining(narrow, module.predictor)
    assert step(trained.train())
