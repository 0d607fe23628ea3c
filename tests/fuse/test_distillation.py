"""FuseLLM's loss against its definition, and a distillation that runs, resumes, is known again and leaves the target alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError, StorageError
from asterism.fuse import distillation
from asterism.fuse.distillation import DistillationSettings, Distilling, Teacher, distil, divergence
from asterism.models.examples import Example
from asterism.models.responses import response_losses
from asterism.models.settings import TrainingSettings
from tests.fuse.voices import voice
from tests.tiny import PROBES, save_lora, tiny_model, tiny_tokenizer

EXAMPLES = [Example(f"Say {text.split()[0]}:", f" {text[:40]}") for text in (*PROBES["medical"], *PROBES["legal"])]
TRAINING = TrainingSettings(method="lora", steps=4, batch_size=2, accumulation=2, learning_rate=1e-3, save_every=2)


def test_the_divergence_is_kullback_leiblers_over_the_response():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(2, 5, 7)), np.array([[-100, -100, 3, 4, 1], [-100, 2, 6, -100, -100]])
    ids = np.stack([generator.permutation(7)[:3] for _ in range(10)]).reshape(2, 5, 3)
    shares = generator.dirichlet([1, 1, 1], size=(2, 5))
    shares[0, 2] = [1, 0, 0]
    total = []
    for row, place in zip(*np.nonzero(labels != -100), strict=True):
        likely = logits[row, place - 1] - np.log(np.exp(logits[row, place - 1]).sum())
        own = shares[row, place]
        total.append(sum(p * (np.log(p) - likely[id]) for p, id in zip(own, ids[row, place], strict=True) if p))
    found = divergence(*(torch.tensor(each) for each in (logits, labels, ids, shares)))
    assert float(found) == pytest.approx(np.mean(total), abs=1e-6)


def test_the_loss_is_part_plain_and_part_taught_in_training_alone():
    model, ids = tiny_model("gpt2"), torch.tensor([[5, 6, 7, 8]])
    labels = torch.tensor([[-100, -100, 7, 8]])
    taught_ids, taught = torch.tensor([[[0, 1]] * 4]), torch.tensor([[[0.3, 0.7]] * 4])
    given = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    module = Distilling(model, 0.9).train()
    plain = model(**given)
    whole = module(**given, taught_ids=taught_ids, taught=taught)["loss"]
    torch.testing.assert_close(whole, 0.9 * plain.loss + 0.1 * divergence(plain.logits, labels, taught_ids, taught))
    for other in (module(**given), module.eval()(**given, taught_ids=taught_ids, taught=taught)):
        torch.testing.assert_close(other["loss"], plain.loss)


@pytest.fixture
def target(tmp_path):
    return save_lora(tiny_model("llama", 1), tmp_path / "target", 7, base="base")


def teachers(*names: str, opened: list[str] | None = None) -> dict[str, Teacher]:
    def opening(name: str):
        if opened is not None:
            opened.append(name)
        return voice(name).model, voice(name).tokenizer

    return {name: Teacher(name, lambda name=name: opening(name)) for name in names}


def run(target: Path, out: Path, sources, training: TrainingSettings = TRAINING, **more) -> Path:
    return distil((tiny_model("llama", 1), tiny_tokenizer()), target, sources, EXAMPLES[2:], out, training=training, device="cpu", **more)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_distillation_leaves_an_adapter_and_the_target_as_it_was(target, tmp_path):
    before = files(target)
    out = run(target, tmp_path / "out", teachers("larger", "pieces"), held_out=EXAMPLES[:2])
    assert files(target) == before
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(tiny_model("llama", 1), out).eval()
    assert all(loss.isfinite().all() for loss in response_losses(adapted, tiny_tokenizer(), EXAMPLES))
    assert (out / "adapter_model.safetensors").read_bytes() != before["adapter_model.safetensors"]
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_is_finished_is_not_run_again_and_other_work_is_refused(target, tmp_path):
    opened: list[str] = []
    run(target, tmp_path / "out", teachers("larger", opened=opened))
    assert opened == ["larger"]
    run(target, tmp_path / "out", teachers("larger", opened=opened))
    assert opened == ["larger"]
    with pytest.raises(StorageError, match="other teachers"):
        run(target, tmp_path / "out", teachers("pieces"))


def test_a_killed_run_keeps_the_rows_of_its_teachers(target, tmp_path, monkeypatch):
    opened: list[str] = []
    whole = run(target, tmp_path / "whole", teachers("larger", "pieces"))

    def killed(*_args, **_more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(distillation, "work_out", killed)
        with pytest.raises(KeyboardInterrupt):
            run(target, tmp_path / "out", teachers("larger", "pieces", opened=opened))
    assert opened == ["larger", "pieces"]
    again = run(target, tmp_path / "out", teachers("larger", "pieces", opened=opened))
    assert opened == ["larger", "pieces"]
    assert (again / "adapter_model.safetensors").read_bytes() == (whole / "adapter_model.safetensors").read_bytes()


def test_teachers_matter_and_somebody_teaches(target, tmp_path):
    plain = run(target, tmp_path / "plain", {}, settings=DistillationSettings(clm=1.0))
    taught = run(target, tmp_path / "taught", teachers("larger"), settings=DistillationSettings(clm=0.5, target_teaches=False))
    assert (plain / "adapter_model.safetensors").read_bytes() != (taught / "adapter_model.safetensors").read_bytes()
    with pytest.raises(DataError, match="nobody to teach"):
        run(target, tmp_path / "none", {}, settings=DistillationSettings(target_teaches=False))
