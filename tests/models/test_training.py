"""Training: what trains and what does not, interruption and resumption to the bit, and every refusal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from asterism.core.errors import DataError, MismatchError, SettingsError, StaleError, StorageError
from asterism.models import engine
from asterism.models.anatomy import anatomy_of
from asterism.models.settings import PRESETS, TrainingSettings
from asterism.models.training import freeze_all_but_mlp, train
from asterism.models.windows import Windows
from tests import tiny

TEXTS = [text for part in tiny.PROBES.values() for text in part[:3]]
SHORT = dict(steps=7, batch_size=2, max_length=24, learning_rate=1e-2, save_every=2, warmup=0.2, weight_decay=0.01)


def fresh(family="gpt2", **changes):
    """The same untrained model every time; GPT-2 with dropout, so that the random state matters."""
    return tiny.tiny_model(family, **({"resid_pdrop": 0.1} if family == "gpt2" else {}), **changes)


def run(out, family="gpt2", texts=TEXTS, model=None, base=None, **changes):
    return train(
        model or fresh(family), tiny.tiny_tokenizer(), texts, out, TrainingSettings(**{**SHORT, **changes}), base=base, device="cpu"
    )


def weights_of(folder, name="model"):
    return load_file(Path(folder) / f"{name}.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupted_at(monkeypatch, step, stop=KeyboardInterrupt):
    """Make training stop in its `step`-th step, before that step's state is saved."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise stop

    monkeypatch.setattr(engine._Steps, "on_step_end", on_step_end)


def test_windows_are_the_texts_joined_and_cut():
    tokenizer = tiny.tiny_tokenizer()
    stream = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    windows = Windows(tokenizer, iter(TEXTS), 24)
    assert len(windows) == len(stream) // 24 > 5
    got = [token for index in range(len(windows)) for token in windows[index]["input_ids"].tolist()]
    assert got == stream[: len(got)]
    assert all(torch.equal(windows[index]["labels"], windows[index]["input_ids"]) for index in range(len(windows)))
    assert windows[0]["input_ids"].dtype == torch.int64


def test_full_training_changes_every_parameter_and_lowers_the_loss(tmp_path):
    start = {name: parameter.detach().clone() for name, parameter in fresh().named_parameters()}
    out = run(tmp_path / "out", steps=30, schedule="constant", warmup=0.0)
    model = AutoModelForCausalLM.from_pretrained(out)
    changed = {name: not torch.equal(parameter, start[name]) for name, parameter in model.named_parameters()}
    assert changed.keys() == start.keys()
    assert all(changed.values())
    record = json.loads((out / "training.json").read_text())
    losses = [entry["loss"] for entry in record["history"]]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert record["settings"]["steps"] == 30
    assert {"model.safetensors", "config.json", "tokenizer.json", "training.json"} <= {path.name for path in out.iterdir()}
    assert os.listdir(tmp_path) == ["out"]  # no state folder, no temporary left


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_mlp_training_changes_the_mlps_alone(tmp_path, family):
    start = fresh(family)
    roles = anatomy_of(start).roles
    before = {name: parameter.detach().clone() for name, parameter in start.named_parameters()}
    after = dict(AutoModelForCausalLM.from_pretrained(run(tmp_path / "out", family, method="mlp")).named_parameters())
    for name, role in roles.items():
        assert torch.equal(before[name], after[name]) == (role != "mlp"), name


def test_freezing_counts_what_trains():
    model = fresh("llama")
    count = freeze_all_but_mlp(model)
    assert count == 3 * (3 * 16 * 40 + 40 + 40 + 16)
    assert {".mlp." in name for name, parameter in model.named_parameters() if parameter.requires_grad} == {True}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora_training_writes_an_adapter_and_leaves_the_generalist(tmp_path, family):
    from peft import PeftModel

    generalist = tiny.save(fresh(family), tmp_path / "generalist")
    out = run(tmp_path / "out", family, base=str(generalist), method="lora", lora_rank=3, lora_alpha=6)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, str(generalist))
    assert not (out / "model.safetensors").exists()
    factors = weights_of(out, "adapter_model")
    assert all(factor.abs().max() > 0 for name, factor in factors.items() if "lora_B" in name)
    base = AutoModelForCausalLM.from_pretrained(generalist)
    before = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    merged = PeftModel.from_pretrained(base, out).merge_and_unload()
    anatomy = anatomy_of(fresh(family))
    for name, parameter in merged.named_parameters():
        inside = anatomy.block_of(name) is not None and parameter.ndim == 2
        assert torch.equal(parameter, before[name]) != inside, name


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch, method):
    file = "adapter_model" if method == "lora" else "model"
    whole = weights_of(run(tmp_path / "whole", method=method), file)
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", method=method)
    assert not (tmp_path / "out").exists()
    state = tmp_path / ".training-out"
    assert [path.name for path in state.glob("checkpoint-*")] == ["checkpoint-4"]
    half = state / "checkpoint-6"  # as if killed while saving: weights without the Trainer's state, or half of that
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (half / "trainer_state.json").write_text('{"epoch": ')
    steps = []
    monkeypatch.setattr(engine._Steps, "on_step_end", lambda self, args, state, control, **kwargs: steps.append(state.global_step))
    resumed = weights_of(run(tmp_path / "out", method=method), file)
    assert steps == [5, 6, 7]
    assert same(resumed, whole)
    assert not same(resumed, weights_of(run(tmp_path / "other", method=method, seed=1), file))  # the comparison can fail
    assert sorted(os.listdir(tmp_path)) == ["other", "out", "whole"]


KILLED = """
import os, signal, sys
from pathlib import Path
from asterism.models import engine
from tests.models.test_training import run
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
engine._Steps.on_step_end = on_step_end
run(Path(sys.argv[1]))
"""


def test_a_killed_process_leaves_a_run_that_resumes_to_the_same_bits(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "out"], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert os.listdir(tmp_path) == [".training-out"]
    assert same(weights_of(run(tmp_path / "out")), weights_of(run(tmp_path / "whole")))


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    out = run(tmp_path / "out")
    monkeypatch.setattr(engine, "_trainer", None)  # would fail if training began
    assert run(out) == out


def test_an_unfinished_run_of_other_settings_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out")
    state = tmp_path / ".training-out"
    others = {
        "learning_rate was 0.01, is 0.02, seed was 42, is 7": dict(learning_rate=0.02, seed=7),
        "other texts": dict(texts=[*TEXTS, "one more"]),
        "other starting weights": dict(model=tiny.tiny_model("gpt2", seed=5)),
    }
    for told, changes in others.items():
        with pytest.raises(StaleError) as caught:
            run(tmp_path / "out", **changes)
        assert str(caught.value) == (
            f"An unfinished run of another origin lies there.\n  met:  {state}: {told}\n"
            f"  mend: go on with the same settings, texts and start, or remove {state}"
        )
    assert run(tmp_path / "out").exists()  # and nothing was lost


def test_an_occupied_place_is_refused(tmp_path):
    run(tmp_path / "out")
    with pytest.raises(StorageError, match="The output place holds something else") as caught:
        run(tmp_path / "out", seed=1)
    assert caught.value.met == f"{tmp_path / 'out'}, trained otherwise: seed was 42, is 1"
    (tmp_path / "out" / "training.json").write_text("[]")
    with pytest.raises(StorageError, match="something else") as caught:
        run(tmp_path / "out")
    assert caught.value.met == tmp_path / "out"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("folder", "file"):
        with pytest.raises(StorageError, match="The output place holds something else"):
            run(tmp_path / place)
    assert (tmp_path / "folder" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (run(tmp_path / "empty") / "model.safetensors").exists()


def test_another_tokenizer_is_another_run(tmp_path):
    from asterism.models.tokenizers import train_tokenizer

    run(tmp_path / "out")
    other = train_tokenizer(["zebra zebra zebra quagga quagga"], 300)
    with pytest.raises(StorageError, match="holds something else"):
        train(fresh(), other, TEXTS, tmp_path / "out", TrainingSettings(**SHORT), device="cpu")


@pytest.mark.parametrize("when", ["during", "at the end"])
def test_a_diverged_run_leaves_nothing(tmp_path, monkeypatch, when):
    if when == "during":
        told, changes = "the loss is nan at step", dict(learning_rate=1e30, clip=0.0)
    else:
        told, changes = "transformer.wpe.weight is not finite", {}

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 7:
                model.transformer.wpe.weight.data[3] = torch.inf

        monkeypatch.setattr(engine._Steps, "on_step_end", on_step_end)
    with pytest.raises(DataError, match=f"^Training diverged.\n  met:  {told}.*\n  mend: lower the learning rate; nothing was saved$"):
        run(tmp_path / "out", **changes)
    assert os.listdir(tmp_path) == []


def test_too_little_text(tmp_path):
    for texts, tokens in (([], 0), (["Yes"], len(tiny.tiny_tokenizer()("Yes")["input_ids"]) + 1)):
        with pytest.raises(DataError) as caught:
            run(tmp_path / "out", texts=texts)
        assert str(caught.value) == f"Too little text to train on.\n  met:  {tokens} tokens\n  mend: give at least one window of 24 tokens"
    assert os.listdir(tmp_path) == []


def test_windows_beyond_the_positions_and_foreign_tokens(tmp_path):
    with pytest.raises(SettingsError, match=r"Windows are longer than the model's positions.\n  met:  max_length 129\n  mend: at most 128"):
        run(tmp_path / "out", texts=TEXTS * 3, max_length=129)
    with pytest.raises(MismatchError, match=r"The tokenizer has tokens that the model does not know.\n  met:  token 3.., 300 embeddings"):
        run(tmp_path / "out", model=tiny.tiny_model("gpt2", vocab_size=300))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator is here")
def test_a_device_that_is_not_here(tmp_path):
    with pytest.raises(SettingsError, match=r"No such device here.\n  met:  cuda"):
        train(fresh(), tiny.tiny_tokenizer(), TEXTS, tmp_path / "out", TrainingSettings(**SHORT), device="cuda")


@pytest.mark.parametrize("resumed", [False, True])
def test_checkpoints_are_kept(tmp_path, monkeypatch, resumed):
    if resumed:
        with monkeypatch.context() as patch:
            interrupted_at(patch, 7)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "out", steps=8, save_every=2, keep_every=4)
        assert {path.name for path in (tmp_path / ".training-out").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    out = run(tmp_path / "out", steps=8, save_every=2, keep_every=4)
    kept = out / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    assert {path.suffix for path in (kept / "checkpoint-4").iterdir()} == {".json", ".safetensors"}
    assert not (kept / "checkpoint-4" / "trainer_state.json").exists()
    final = dict(AutoModelForCausalLM.from_pretrained(out).named_parameters())
    at_8 = dict(AutoModelForCausalLM.from_pretrained(kept / "checkpoint-8").named_parameters())
    at_4 = dict(AutoModelForCausalLM.from_pretrained(kept / "checkpoint-4").named_parameters())
    assert same(final, at_8)
    assert not same(final, at_4)
    assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk_is_told_and_the_run_can_go_on(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer.Trainer._save_rng_state", full)
        with pytest.raises(
            StorageError, match=r"^Could not write.\n  met:  .*\.training-out: No space left on device\n  mend: free some space"
        ):
            run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
        with pytest.raises(StorageError, match=r"^Could not write.\n  met:  .*/out: No space left on device"):
            run(tmp_path / "out")
    assert os.listdir(tmp_path) == [".training-out"]
    assert same(weights_of(run(tmp_path / "out")), weights_of(run(tmp_path / "whole")))


def test_training_says_nothing_of_its_own(tmp_path, capfd):
    logging.enable_progress_bar()
    before = logging.get_verbosity()
    try:
        run(tmp_path / "out")
        assert logging.is_progress_bar_enabled()
    finally:
        logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
    assert logging.get_verbosity() == before


def test_a_models_own_gradients_do_not_matter(tmp_path):
    frozen = fresh().requires_grad_(False)
    assert same(weights_of(run(tmp_path / "a", model=frozen)), weights_of(run(tmp_path / "b")))


def test_presets_are_settings():
    assert TrainingSettings(**PRESETS["paper"]) == TrainingSettings(steps=2000, batch_size=4, learning_rate=5e-5, max_length=256)
    assert TrainingSettings(**PRESETS["mlp"]).method == "mlp"
    with pytest.raises(SettingsError, match="keep_every must be a multiple of save_every"):
        TrainingSettings(save_every=3, keep_every=4)
