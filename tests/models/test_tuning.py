"""Fine-tuning on examples: what trains, the best state by held-out loss, accumulation, epochs, resumption and refusals."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from asterism.core.errors import DataError, MismatchError, SettingsError, StaleError, StorageError
from asterism.core.storage import digest_of
from asterism.models import engine, runs
from asterism.models.engine import Work, settled, work_out
from asterism.models.examples import Example, Examples, padded
from asterism.models.held_out import held_out_loss
from asterism.models.settings import PRESETS, TrainingSettings
from asterism.models.training import train, tune
from tests import tiny

DATA = [Example(text[: len(text) // 2], text[len(text) // 2 :]) for text in tiny.PROBES["medical"]]
HELD = [Example(text[: len(text) // 2], text[len(text) // 2 :]) for text in tiny.PROBES["legal"][:3]]
SHORT = dict(method="lora", steps=6, batch_size=2, max_length=64, learning_rate=1e-2, save_every=2, lora_rank=2, lora_alpha=4)


def fresh(family="gpt2", **changes):
    """The same untrained model every time; GPT-2 with dropout, so that the random state matters."""
    return tiny.tiny_model(family, **({"resid_pdrop": 0.1} if family == "gpt2" else {}), **changes)


def run(out, family="gpt2", examples=DATA, model=None, settings=None, **options):
    own = {name: options.pop(name) for name in list(options) if name in TrainingSettings.model_fields}
    return tune(
        model or fresh(family),
        tiny.tiny_tokenizer(),
        examples,
        out,
        settings or TrainingSettings(**{**SHORT, **own}),
        device="cpu",
        **options,
    )


def factors_of(folder):
    return load_file(folder / "adapter_model.safetensors")


def record_of(folder):
    return json.loads((folder / "training.json").read_text())


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupted_at(monkeypatch, step):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine._Steps, "on_step_end", on_step_end)


def test_settings_that_older_runs_were_made_with_read_the_same():
    """Runs on disk are known by this digest of their settings; a new field at its default must not show."""
    assert digest_of(TrainingSettings().model_dump(mode="json")) == "da1237922347b48a6220e166fe627851f43d7226c13b2147a2eb5297825970e7"
    assert (
        digest_of(TrainingSettings(**PRESETS["router"]).model_dump(mode="json"))
        == "c2acc24573f8c9543abe0b5eda09672e5b9e348ac26f6941fb54a8be4d01e546"
    )
    assert TrainingSettings().digest() == "183cb21f4369b9eddf5c24b5b15bf0c7233a2d7738360b3fd6c4aa8e409b078b"
    assert TrainingSettings(accumulation=8).model_dump()["accumulation"] == 8
    assert TrainingSettings(**TrainingSettings(patience=2).model_dump()) == TrainingSettings(patience=2)
    assert TrainingSettings(accumulation=8).changed(steps=3) == TrainingSettings(accumulation=8, steps=3)


def test_a_run_of_old_settings_has_its_old_origin(monkeypatch):
    monkeypatch.setattr(runs, "_start", lambda model: "start")
    made = runs.origin_of(tiny.tiny_model("llama"), tiny.tiny_tokenizer(), ["one", "two"], TrainingSettings(steps=1, batch_size=2))
    assert made["origin"] == "29d75a28aa939b4dc9439e99c21f76deb6d3dc3181ff680de2ad6154ab1f57d3"
    assert made.keys() == {"origin", "settings", "texts", "start", "tokenizer"}


def test_the_loss_of_the_responses_falls(tmp_path):
    out = run(tmp_path / "out", steps=15, batch_size=4, schedule="constant")
    losses = [entry["loss"] for entry in record_of(out)["history"]]
    assert len(losses) == 15
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_saved_adapter_goes_on_training_and_its_files_stay(tmp_path):
    tiny.save(fresh("llama"), tmp_path / "base")
    given = tiny.save_lora(fresh("llama"), tmp_path / "given", 3, base=str(tmp_path / "base"))
    before = {file.name: file.read_bytes() for file in given.iterdir()}
    both = factors_of(run(tmp_path / "both", "llama", adapter=given))
    ups = factors_of(run(tmp_path / "ups", "llama", adapter=given, up_only=True))
    was = factors_of(given)
    assert was.keys() == both.keys() == ups.keys()
    for name, tensor in was.items():
        assert not torch.equal(tensor, both[name]), name
        assert torch.equal(tensor, ups[name]) == ("lora_A" in name), name
    assert {file.name: file.read_bytes() for file in given.iterdir()} == before
    config = json.loads((tmp_path / "ups" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")


@pytest.mark.parametrize("method", ["full", "mlp"])
def test_whole_models_are_tuned_too(tmp_path, method):
    before = {name: parameter.detach().clone() for name, parameter in fresh("llama").named_parameters()}
    after = load_file(run(tmp_path / "out", "llama", method=method, steps=2) / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in after if method == "full" or ".mlp." in name}


def test_the_best_state_by_held_out_loss_is_what_is_written(tmp_path):
    settings = dict(steps=8, evaluate_every=2, learning_rate=3e-2, schedule="constant")
    out = run(tmp_path / "out", "llama", held_out=HELD, **settings)
    record = record_of(out)
    measured = {entry["step"]: entry["held_out_loss"] for entry in record["history"] if "held_out_loss" in entry}
    assert list(measured) == [0, 2, 4, 6, 8]
    assert record["held_out_loss"] == min(measured.values()) == measured[record["best_step"]]
    from asterism.models.adapters import with_adapter

    data = Examples(tiny.tiny_tokenizer(), HELD, 64)
    loss = held_out_loss(with_adapter(fresh("llama"), out), data, padded(tiny.tiny_tokenizer()), 2, "cpu")
    assert loss == pytest.approx(record["held_out_loss"], abs=1e-6)
    assert any(abs(loss - other) > 1e-3 for other in measured.values())  # the comparison can fail


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    """An adapter that has learnt DATA."""
    root = tmp_path_factory.mktemp("held")
    given = tiny.save_lora(fresh("llama"), root / "given", 3)
    return run(root / "learnt", "llama", adapter=given, steps=20, schedule="constant", save_every=100)


def test_where_training_only_harms_the_start_is_written(tmp_path, held):
    options = dict(adapter=held, held_out=DATA, steps=4, evaluate_every=2, learning_rate=0.3)
    out = run(tmp_path / "out", "llama", examples=HELD, **options)
    assert record_of(out)["best_step"] == 0
    assert same(factors_of(out), factors_of(held))


def test_training_ends_when_the_held_out_loss_gains_no_more(tmp_path, held):
    options = dict(adapter=held, held_out=DATA, steps=20, evaluate_every=2, patience=2, learning_rate=0.3)
    out = run(tmp_path / "out", "llama", examples=HELD, **options)
    assert [entry["step"] for entry in record_of(out)["history"] if "held_out_loss" in entry] == [0, 2, 4]
    with pytest.raises(SettingsError, match=r"Early stopping needs held-out examples.\n  met:  patience 2"):
        run(tmp_path / "other", patience=2)


def test_the_held_out_loss_is_a_mean_over_response_tokens():
    model, tokenizer = fresh("llama"), tiny.tiny_tokenizer()
    data, total, count = Examples(tokenizer, HELD, 64), 0.0, 0
    for ids, prompt in data.rows:
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
        own = [-float(logs[place - 1, ids[place]]) for place in range(prompt, len(ids))]
        total, count = total + sum(own), count + len(own)
    for size in (1, 2, 3):
        assert held_out_loss(model, data, padded(tokenizer), size, "cpu") == pytest.approx(total / count, rel=1e-5)


def test_accumulated_batches_make_the_step_of_one_batch(tmp_path):
    equal = [Example("QZ", "XJKV"), Example("ZQ", "VKJX"), Example("JX", "QZVK"), Example("KV", "ZQXJ")]  # no two of a token
    plain = dict(steps=1, learning_rate=1e-2, clip=0.0)
    lengths = {len(ids) for ids, _ in Examples(tiny.tiny_tokenizer(), equal, 64).rows}
    assert len(lengths) == 1
    at_once = factors_of(run(tmp_path / "at once", "llama", examples=equal, batch_size=4, **plain))
    in_turn = factors_of(run(tmp_path / "in turn", "llama", examples=equal, batch_size=1, accumulation=4, **plain))
    for name, tensor in at_once.items():
        torch.testing.assert_close(tensor, in_turn[name], atol=2e-5, rtol=0)
    one = factors_of(run(tmp_path / "one", "llama", examples=equal, batch_size=1, **plain))
    assert any(not torch.allclose(tensor, one[name], atol=2e-5) for name, tensor in at_once.items())


def test_epochs_are_steps():
    assert settled(TrainingSettings(epochs=3, batch_size=1, accumulation=8), 300, False).steps == 3 * 38
    assert settled(TrainingSettings(epochs=0.5, batch_size=2), 7, False).steps == 2
    assert settled(TrainingSettings(epochs=3, batch_size=1), 10, True).evaluate_every == 3
    assert settled(TrainingSettings(steps=5), 10, False) == TrainingSettings(steps=5)


def test_texts_train_by_epochs_and_with_accumulation_too(tmp_path):
    texts = [text for part in tiny.PROBES.values() for text in part[:3]]
    settings = TrainingSettings(epochs=2, batch_size=1, accumulation=3, max_length=24)
    out = train(tiny.tiny_model("llama"), tiny.tiny_tokenizer(), texts, tmp_path / "out", settings, device="cpu")
    record = record_of(out)
    windows = len(_windows(texts))
    assert record["settings"]["steps"] == len(record["history"]) == 2 * -(-windows // 3)
    assert record["settings"]["accumulation"] == 3


def _windows(texts):
    from asterism.models.windows import Windows

    return Windows(tiny.tiny_tokenizer(), texts, 24)


@pytest.mark.parametrize("options", [dict(accumulation=2, bf16=True), dict(method="mlp")], ids=str)
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch, options):
    options = dict(held_out=HELD, evaluate_every=2, examples=DATA, **options)
    file = "model" if options.get("method") == "mlp" else "adapter_model"
    whole = run(tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    out = run(tmp_path / "out", **options)
    assert same(load_file(out / f"{file}.safetensors"), load_file(whole / f"{file}.safetensors"))
    assert record_of(out)["history"][:3] == record_of(whole)["history"][:3]
    assert record_of(out)["held_out_loss"] == record_of(whole)["held_out_loss"]


def test_a_finished_run_is_not_repeated_and_another_is_refused(tmp_path, monkeypatch):
    out = run(tmp_path / "out", held_out=HELD)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_trainer", None)  # would fail if training began
        assert run(out, held_out=HELD) == out
    for changes, told in {
        "seed": (dict(seed=1), "seed was 42, is 1"),
        "accumulation": (dict(accumulation=2), "accumulation was 1, is 2"),
        "held out": (dict(held_out=HELD[:2]), "other held-out examples"),
        "texts": (dict(examples=DATA[:-1]), "other texts"),
        "up": (dict(up_only=True), "other trained factors"),
    }.values():
        with pytest.raises(StorageError) as caught:
            run(out, **{"held_out": HELD, **changes})
        assert caught.value.met == f"{out}, trained otherwise: {told}"


def test_an_unfinished_run_of_another_adapter_is_refused(tmp_path, monkeypatch):
    first, second = (tiny.save_lora(fresh(), tmp_path / f"given {seed}", seed) for seed in (1, 2))
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", adapter=first)
    with pytest.raises(StaleError, match="other adapter"):
        run(tmp_path / "out", adapter=second)


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="There are no examples to train on"):
        run(tmp_path / "out", examples=[])
    with pytest.raises(DataError, match=r"Held-out examples are among the training examples.\n  met:  1 of them"):
        run(tmp_path / "out", held_out=[*HELD, DATA[0]])
    with pytest.raises(SettingsError, match="Only LoRA trains an adapter"):
        run(tmp_path / "out", method="full", up_only=True)
    with pytest.raises(SettingsError, match="A router learns from texts"):
        run(tmp_path / "out", method="router")
    with pytest.raises(MismatchError, match="The tokenizer has tokens that the model does not know"):
        run(tmp_path / "out", model=tiny.tiny_model("gpt2", vocab_size=200))
    other = tiny.save_lora(tiny.tiny_model("llama", hidden_size=24), tmp_path / "other", 1)
    with pytest.raises(MismatchError, match="A LoRA is of another base"):
        run(tmp_path / "out", "llama", adapter=other)
    assert sorted(os.listdir(tmp_path)) == ["other"]


class Carried(nn.Module):
    """A line fitted to numbers, whose gradient reaches its own parameter only when it is carried back."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.carried = nn.Parameter(torch.zeros(())), 0
        self.leaf = None

    def forward(self, input_ids, attention_mask, labels):
        leaf = self.slope.detach().clone().requires_grad_() if self.leaf is None else self.leaf
        self.leaf = leaf if torch.is_grad_enabled() else None
        return {"loss": ((leaf * input_ids - 2 * input_ids) ** 2).float().mean() / 1e4}

    def carry_back(self) -> None:
        assert self.leaf is not None
        self.slope.grad, self.leaf, self.carried = self.leaf.grad, None, self.carried + 1


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_any_module_trains_and_is_told_once_a_step(tmp_path, clip):
    module, tokenizer = Carried(), tiny.tiny_tokenizer()
    data = Examples(tokenizer, DATA, 64)
    settings = TrainingSettings(
        steps=20, batch_size=1, accumulation=3, learning_rate=0.1, schedule="constant", clip=clip, evaluate_every=10
    )

    def write(folder, weights, record):
        folder.mkdir()
        (folder / "slope.txt").write_text(f"{list(weights)} {float(weights['slope']):.3f}")

    work = Work(module, data, write, parts_alone=True, collate=padded(tokenizer), held_out=data)
    out = work_out(work, tmp_path / "out", settings, {"origin": "mine", "settings": {}, "texts": "", "start": "", "tokenizer": ""}, "cpu")
    assert module.carried == 20
    assert (out / "slope.txt").read_text().startswith("['slope'] 1.")
    assert float(module.slope.detach()) == pytest.approx(2.0, abs=0.4)
