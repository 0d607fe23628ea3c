"""Training of gates: they alone change and the loss falls; interruption and resumption; every refusal."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from asterism.core.errors import DataError, SettingsError, StaleError, StorageError
from asterism.models import engine
from asterism.models.library import Library
from asterism.models.settings import PRESETS, TrainingSettings
from asterism.models.training import freeze_all_but_gates, train
from asterism.route.build import load_router, route
from asterism.route.training import split, train_router
from tests import tiny

TEXTS = [text for part in tiny.PROBES.values() for text in part[:3]]
SHORT = dict(
    method="router", steps=7, batch_size=2, max_length=24, learning_rate=1e-2, save_every=2, schedule="cosine_to_tenth", weight_decay=0.1
)
IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Library:
    return tiny.tiny_library(tmp_path_factory.mktemp("library"), "gpt2", ("a", "b"), "mlp")


def run(library, out, texts=TEXTS, model=None, **changes):
    model = model or route(library, with_generalist=True)
    return train_router(model, library.tokenizer, texts, out, TrainingSettings(**{**SHORT, **changes}), device="cpu")


def gates_of(folder):
    return load_file(folder / "router.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("routed", [dict(), dict(scope="single", depth=2, balance=0.01), dict(gate="mlp", top_k=1)], ids=str)
def test_gates_alone_train_and_the_loss_falls(library, tmp_path, routed):
    model = route(library, with_generalist=True, **routed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    out = run(library, tmp_path / "out", model=model, steps=40, learning_rate=0.03)
    gates = model.gate_state()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (name in gates), name
    losses = [entry["loss"] for entry in json.loads((out / "training.json").read_text())["history"]]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert sorted(os.listdir(out)) == ["router.json", "router.safetensors", "training.json"]
    assert not model.training
    with torch.no_grad():
        assert torch.equal(load_router(out, library)(IDS).logits, model(IDS).logits)


def test_an_interrupted_run_resumes_to_the_same_bits_from_small_states(library, tmp_path, monkeypatch, capfd):
    whole = gates_of(run(library, tmp_path / "whole"))

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._Steps, "on_step_end", on_step_end)
        with pytest.raises(KeyboardInterrupt):
            run(library, tmp_path / "out")
    state = tmp_path / ".training-out" / "checkpoint-4"
    assert set(load_file(state / "model.safetensors")) == set(whole)  # no expert is written again and again
    steps = []
    monkeypatch.setattr(engine._Steps, "on_step_end", lambda self, args, state, control, **kwargs: steps.append(state.global_step))
    assert same(gates_of(run(library, tmp_path / "out")), whole)
    assert steps == [5, 6, 7]
    assert not same(gates_of(run(library, tmp_path / "other", seed=1)), whole)  # the comparison can fail
    assert capfd.readouterr() == ("", "")


def test_a_finished_run_is_not_repeated_and_gives_its_gates(library, tmp_path, monkeypatch):
    out = run(library, tmp_path / "out")
    monkeypatch.setattr(engine, "_trainer", None)  # would fail if training began
    model = route(library, with_generalist=True)
    assert run(library, out, model=model) == out
    assert same(dict(model.gate_state()), gates_of(out))
    others = {
        "top_k was None, is 1": dict(top_k=1),
        "balance was 0.0, is 0.1": dict(balance=0.1),
        "mode was 'softmax'": dict(mode="cosine"),
    }
    for told, other in others.items():  # the same weights to start from, used in another way
        with pytest.raises(StorageError, match=f"holds something else(.|\n)*out, trained otherwise: {told}"):
            run(library, out, model=route(library, with_generalist=True, **other))


def test_kept_checkpoints_are_routers(library, tmp_path):
    out = run(library, tmp_path / "out", steps=8, keep_every=4)
    kept = sorted((out / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["checkpoint-4", "checkpoint-8"]
    at_4, at_8, last = (load_router(folder, library).gate_state() for folder in (*kept, out))
    assert same(at_8, last)
    assert not same(at_4, last)


def test_another_start_or_library_does_not_go_on(library, tmp_path, monkeypatch):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine._Steps, "on_step_end", on_step_end)
        with pytest.raises(KeyboardInterrupt):
            run(library, tmp_path / "out")
    swapped = Library.create(tmp_path / "swapped", library.folder(), {"a": library.folder("b"), "b": library.folder("a")})
    others = {
        r"\.training-out: seed was 42, is 3\n": route(library, with_generalist=True, seed=3),
        r"\.training-out: another library \(a, b differ\)\n": route(swapped, with_generalist=True),
        r"experts was \['a', 'b'\], is \['b'\]": route(library, with_generalist=True, experts=("b",)),
        "attention was 'refuse', is 'mean'": route(library, with_generalist=True, attention="mean", top_k=1),
    }
    for told, model in others.items():
        with pytest.raises(StaleError, match=told):
            run(library, tmp_path / "out", model=model)
    mark = tmp_path / ".training-out" / "origin.json"
    mark.write_text(json.dumps({name: value for name, value in json.loads(mark.read_text()).items() if name != "routed"}))
    with pytest.raises(StaleError, match="other starting weights"):  # of a run that an earlier version began
        run(library, tmp_path / "out", model=route(swapped, with_generalist=True))


def test_refusals(library, tmp_path):
    model = route(library)
    for texts, told in ((["a text", " "], r"A text is empty.\n  met:  text 1: ' '"), ([], "Too little text"), (["Yes"], "Too little text")):
        with pytest.raises(DataError, match=told):
            run(library, tmp_path / "out", texts)
    with pytest.raises(SettingsError, match=r"A router trains its gates alone.\n  met:  method 'full'"):
        run(library, tmp_path / "out", method="full")
    for other in (route(library, gate="fixed"), tiny.tiny_model("gpt2")):
        with pytest.raises(SettingsError, match=rf"There are no gates to train.\n  met:  {type(other).__name__}"):
            train(other, library.tokenizer, TEXTS, tmp_path / "out", TrainingSettings(**SHORT), device="cpu")
        with pytest.raises(SettingsError, match="no gates to train"):
            run(library, tmp_path / "out", model=other)
    with pytest.raises(DataError, match=r"A router learns from a list of texts.\n  met:  'one text'"):
        run(library, tmp_path / "out", "one text")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds something else"):
        run(library, tmp_path / "mine", model=model)
    assert os.listdir(tmp_path) == ["mine"]


def test_freezing_counts_what_trains(library):
    assert freeze_all_but_gates(route(library, depth=2)) == 5 * 4 * 16
    assert freeze_all_but_gates(route(library, depth=2, scope="single")) == 4 * 16
    assert freeze_all_but_gates(route(library, gate="mlp")) == 5 * (16 * 16 + 2 * 16)


def test_the_learning_rate_ends_at_a_tenth_and_decay_reaches_biases(library, tmp_path, monkeypatch):
    seen = []

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        seen.append(([group["weight_decay"] for group in optimizer.param_groups if group["params"]], lr_scheduler.get_last_lr()[0]))

    monkeypatch.setattr(engine._Steps, "on_step_end", on_step_end)
    settings = TrainingSettings(**{**SHORT, "method": "mlp", "steps": 10})
    train(tiny.tiny_model("gpt2"), library.tokenizer, TEXTS, tmp_path / "mlp", settings, device="cpu")
    assert all(decays == [0.1] for decays, _ in seen)
    assert seen[-1][1] == pytest.approx(1e-3)
    assert seen[4][1] == pytest.approx((1e-2 + 1e-3) / 2)  # half way down the cosine


def test_presets_of_the_paper():
    router, expert, target = (TrainingSettings(**PRESETS[name]) for name in ("router", "mlp", "target"))
    assert (router.method, router.steps, router.batch_size, router.learning_rate) == ("router", 1739, 92, 5e-3)
    assert target == expert.changed(learning_rate=8e-5)
    for settings in (router, expert, target):
        assert (settings.schedule, settings.weight_decay, settings.beta2, settings.warmup) == ("cosine_to_tenth", 0.1, 0.99, 0.0)


def test_texts_are_split_by_the_seed():
    texts = [f"text {row}" for row in range(20)]
    train_on, held_out = split(texts, 0.25)
    assert (len(train_on), len(held_out)) == (15, 5)
    assert sorted(train_on + held_out) == sorted(texts)
    assert train_on == [text for text in texts if text in train_on]  # in the order given
    assert split(texts, 0.25) == (train_on, held_out) != split(texts, 0.25, seed=1)
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(SettingsError, match="a share of the texts"):
            split(texts, share)
    for few, share in ((["one"], 0.5), (texts, 0.01), ([], 0.5)):
        with pytest.raises(DataError, match=rf"Too few texts to hold some out.\n  met:  {len(few)} texts, {share} of them held out"):
            split(few, share)
    with pytest.raises(DataError, match=r"text 20: ''"):
        split([*texts, ""], 0.25)
