"""A LoRA from a full model: errors against NumPy's SVD, and what peft makes of the files."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from asterism.core.errors import DataError, MismatchError, SettingsError, StorageError, UnsupportedError
from asterism.core.storage import alone
from asterism.merge.extract import extract
from asterism.models.anatomy import anatomy_of
from asterism.models.fitting import Fitting
from tests import tiny


def fill(base, folder: Path) -> None:
    """`places`: `full` (all changed), `mlp` (the MLPs alone), `lora` and `tuned`, which is `lora` merged in."""
    tiny.save(tiny.perturbed(base, 1, 0.2), folder / "full")
    tiny.save(tiny.perturbed(base, 2, 0.2, "mlp"), folder / "mlp")
    tiny.save_lora(base, folder / "lora", 3, rank=3, base=str(folder / "base"))
    tiny.save(with_peft(folder / "base", folder / "lora").merge_and_unload(), folder / "tuned")


def with_peft(base: Path, adapter: Path):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a deprecated property
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), adapter).eval()


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(torch.arange(3, 15)[None]).logits


def state(model) -> dict[str, np.ndarray]:
    return {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}


def changes(folder: Path, specialist: str) -> dict[str, np.ndarray]:
    one, other = (state(AutoModelForCausalLM.from_pretrained(folder / name, dtype="auto")) for name in ("base", specialist))
    return {name: other[name] - one[name] for name in one if (other[name] != one[name]).any()}


def got(folder: Path, adapter: Path) -> dict[str, np.ndarray]:
    """What peft adds to the base when it loads an adapter and merges it in."""
    base, merged = (
        state(AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")),
        state(with_peft(folder / "base", adapter).merge_and_unload()),
    )
    return {name: merged[name] - base[name] for name in base if (merged[name] != base[name]).any()}


def values(delta: np.ndarray) -> np.ndarray:
    return np.linalg.svd(delta, compute_uv=False)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "gemma2"])
def test_the_nearest_of_a_rank_and_all_that_it_misses(places, family, tmp_path):
    folder = places(family, torch.float64)
    anatomy = anatomy_of(tiny.tiny_model(family))
    report = extract(folder / "base", folder / "full", tmp_path / "adapter", rank=4)
    want, held = changes(folder, "full"), got(folder, tmp_path / "adapter")
    linear = {name for name in want if anatomy.is_linear(name)}
    assert held.keys() == report.errors.keys() == linear
    assert ("lm_head.weight" in linear) is (family not in tiny.TIED)
    assert report.left_out.keys() == want.keys() - linear
    for name, norm in report.left_out.items():
        assert norm == pytest.approx(np.linalg.norm(want[name]), rel=1e-9)
    for name, error in report.errors.items():
        s = values(want[name])
        assert error == pytest.approx(math.sqrt((s[4:] ** 2).sum() / (s**2).sum()), rel=1e-6)
        assert error == pytest.approx(np.linalg.norm(held[name] - want[name]) / np.linalg.norm(want[name]), rel=1e-4)
    missed, whole = (sum((part(name) ** 2).sum() for name in linear) for part in (lambda n: held[n] - want[n], lambda n: want[n]))
    assert report.error == pytest.approx(math.sqrt(missed / whole), rel=1e-4)
    rest = sum((want[name] ** 2).sum() for name in report.left_out)
    assert report.lost == pytest.approx(math.sqrt((missed + rest) / (whole + rest)), rel=1e-4)
    assert 0.1 < report.error < report.lost < 1


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_energy_gives_every_matrix_its_own_rank(places, share, tmp_path):
    folder = places("llama", torch.float64)
    report = extract(folder / "base", folder / "mlp", tmp_path / "adapter", energy=share)
    for name, change in changes(folder, "mlp").items():
        if change.ndim == 2:
            squares = values(change) ** 2
            rank = report.ranks[name]
            assert squares[:rank].sum() >= share * squares.sum() > squares[: rank - 1].sum()
            assert report.errors[name] <= math.sqrt(1 - share)
    assert all("mlp" in name for name in report.ranks)
    assert len(set(report.ranks.values())) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_all_energy_of_a_merged_lora_is_that_lora(places, family, tmp_path):
    folder = places(family, torch.float64)
    report = extract(folder / "base", folder / "tuned", tmp_path / "adapter", energy=1.0, strict=True)
    assert set(report.ranks.values()) == {3}
    assert report.left_out == {}
    assert report.error < 1e-12
    want = logits(AutoModelForCausalLM.from_pretrained(folder / "tuned", dtype="auto"))
    torch.testing.assert_close(logits(with_peft(folder / "base", tmp_path / "adapter")), want, rtol=0, atol=1e-6)
    assert (want - logits(AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto"))).abs().max() > 0.01


def test_a_rank_beyond_the_matrices_is_their_own(places, tmp_path):
    folder = places("qwen2", torch.float64)
    report = extract(folder / "base", folder / "mlp", tmp_path / "adapter", rank=500, strict=True)
    assert set(report.ranks.values()) == {16}
    assert report.error < 1e-12
    want = logits(AutoModelForCausalLM.from_pretrained(folder / "mlp", dtype="auto"))
    torch.testing.assert_close(logits(with_peft(folder / "base", tmp_path / "adapter")), want, rtol=0, atol=1e-5)


def test_an_adapter_on_the_base_can_be_cut(places, tmp_path):
    folder = places("gpt2", torch.float32)
    report = extract(str(folder / "base"), f"{folder / 'base'}+{folder / 'lora'}", tmp_path / "adapter", rank=1)
    assert set(report.ranks.values()) == {1}
    for name, change in changes(folder, "tuned").items():
        s = values(change)
        assert report.errors[name] == pytest.approx(math.sqrt((s[1:] ** 2).sum() / (s**2).sum()), rel=1e-3)


def test_bfloat16_models_give_float32_factors(places, tmp_path):
    folder = places("llama", torch.bfloat16)
    report = extract(folder / "base", folder / "mlp", tmp_path / "adapter", rank=4)
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()} == {torch.float32}
    for name, change in changes(folder, "mlp").items():
        if change.ndim == 2:
            s = values(change)
            assert report.errors[name] == pytest.approx(math.sqrt((s[4:] ** 2).sum() / (s**2).sum()), rel=1e-4)


def test_the_record_and_the_card_tell_what_was_done(places, tmp_path):
    folder = places("gpt2", torch.float64)
    report = extract(folder / "base", folder / "full", tmp_path / "adapter", rank=4)
    told = json.loads((tmp_path / "adapter" / "extraction.json").read_text())
    assert (told["rank"], told["energy"], told["base"], told["specialist"]) == (4, None, str(folder / "base"), str(folder / "full"))
    assert told["digests"]["base"] != told["digests"]["specialist"]
    assert told["adapter"]["errors"] == report.errors
    assert told["adapter"]["lost"] == report.lost
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"| attn.c_attn | 5 | 4 | {report.kinds()['attn.c_attn'].error:.2g} |" in card
    assert "transformer.wte.weight" in card
    assert f"what {folder / 'full'} changes of it, cut to rank 4." in card
    assert all(f"| {told[model]} | `{told['digests'][model][:16]}` |" in card for model in ("base", "specialist"))
    first = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    extract(folder / "base", folder / "full", tmp_path / "adapter", rank=4)  # an earlier extraction is replaced, by the same bytes
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == first


def test_strict_refuses_what_no_lora_can_hold(places, tmp_path):
    folder = places("gpt2", torch.float64)
    with pytest.raises(UnsupportedError, match=r"no LoRA can hold.\n  met:  transformer.wte.weight \(\d.*more, norms of the change\n"):
        extract(folder / "base", folder / "full", tmp_path / "adapter", rank=4, strict=True)
    with pytest.raises(UnsupportedError, match=r"mlp\.c_fc\.bias"):
        extract(folder / "base", folder / "mlp", tmp_path / "adapter", rank=4, strict=True)
    assert not (tmp_path / "adapter").exists()


def test_names_without_the_prefix_are_the_same_tensors(places, tmp_path):
    folder = places("gpt2", torch.float64)
    tiny.save(AutoModelForCausalLM.from_pretrained(folder / "full", dtype="auto"), tmp_path / "short")
    stored = load_file(tmp_path / "short" / "model.safetensors")
    save_file({n.removeprefix("transformer."): t for n, t in stored.items()}, tmp_path / "short" / "model.safetensors", {"format": "pt"})
    reports = [extract(folder / "base", at, tmp_path / f"out{n}", rank=2) for n, at in enumerate((folder / "full", tmp_path / "short"))]
    assert reports[0] == reports[1]


@pytest.mark.parametrize(("rank", "energy"), [(None, None), (4, 0.9), (0, None), (None, 0.0), (None, 1.5)])
def test_rank_or_energy_and_a_sensible_one(places, rank, energy, tmp_path):
    folder = places("gpt2", torch.float64)
    with pytest.raises(SettingsError, match=r"rank|[Ee]nergy"):
        extract(folder / "base", folder / "full", tmp_path / "adapter", rank=rank, energy=energy)
    assert not (tmp_path / "adapter").exists()


def test_models_that_do_not_belong_together_are_refused(places, tmp_path):
    folder, out = places("gpt2", torch.float64), tmp_path / "out"
    with pytest.raises(SettingsError, match="no parameter changes"):
        extract(folder / "base", folder / "base", out, rank=4)
    with pytest.raises(MismatchError, match="another architecture"):
        extract(folder / "base", places("llama", torch.float64) / "full", out, rank=4)
    with pytest.raises(StorageError, match="MODEL\\+ADAPTER"):
        extract(folder / "base", folder / "lora", out, rank=4)
    extract(folder / "base", folder / "full", out, rank=4)
    with pytest.raises(StorageError, match="made of"):
        extract(folder / "base", f"{folder / 'base'}+{out}", out, rank=4)
    shutil.rmtree(out)
    with pytest.raises(UnsupportedError, match="plain checkpoint"):
        extract(f"{folder / 'base'}+{folder / 'lora'}", folder / "full", out, rank=4)
    broken = AutoModelForCausalLM.from_pretrained(folder / "full", dtype="auto")
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_fc.weight[0, 0] = math.nan
    tiny.save(broken, tmp_path / "broken")
    with pytest.raises(DataError, match=r"h\.1\.mlp\.c_fc\.weight"):
        extract(folder / "base", tmp_path / "broken", out, rank=4)
    only = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="auto")
    with torch.no_grad():
        only.transformer.ln_f.bias += 1
    tiny.save(only, tmp_path / "norm")
    with pytest.raises(SettingsError, match=r"Nothing of this change fits[\s\S]*ln_f.bias"):
        extract(folder / "base", tmp_path / "norm", out, rank=4)
    tiny.save(AutoModelForCausalLM.from_pretrained(folder / "full", dtype="auto"), tmp_path / "twice")
    weights = tmp_path / "twice" / "model.safetensors"
    stored = load_file(weights)
    save_file({**stored, "lm_head.weight": stored["transformer.wte.weight"] + 1}, weights, {"format": "pt"})
    with pytest.raises(MismatchError, match="ties are not equal"):
        extract(folder / "base", tmp_path / "twice", out, rank=4)
    tokenizer = json.loads((tmp_path / "norm" / "tokenizer.json").read_text())
    first, second, *_ = tokenizer["model"]["vocab"]
    words = tokenizer["model"]["vocab"]
    words[first], words[second] = words[second], words[first]
    (tmp_path / "norm" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(MismatchError, match="another tokenizer"):
        extract(folder / "base", tmp_path / "norm", out, rank=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="something else"):
        extract(folder / "base", folder / "full", tmp_path / "mine", rank=4)
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_killed_extraction_goes_on(places, tmp_path, monkeypatch):
    folder = places("llama", torch.float32)
    shutil.copytree(folder / "full", tmp_path / "full")
    extract(folder / "base", tmp_path / "full", tmp_path / "whole", rank=3)
    cut, done = Fitting.cut, []

    def run(rank: int, kill: int | None = None) -> list[str]:
        """The matrices that are cut before it ends or is killed."""
        done.clear()

        def counted(self, parameter, delta):
            if len(done) == kill:
                raise KeyboardInterrupt
            done.append(parameter)
            cut(self, parameter, delta)

        monkeypatch.setattr(Fitting, "cut", counted)
        if kill is None:
            extract(folder / "base", tmp_path / "full", tmp_path / "out", rank=rank)
        else:
            with pytest.raises(KeyboardInterrupt):
                extract(folder / "base", tmp_path / "full", tmp_path / "out", rank=rank)
        return list(done)

    first = run(3, kill=5)
    assert not (tmp_path / "out").exists()
    second = run(3)
    assert len(first) == 5
    assert len(second) > 5
    assert not set(first) & set(second)
    names = ("adapter_model.safetensors", "adapter_config.json", "extraction.json")
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"full", "whole", "out"}

    run(3, kill=5)
    assert len(run(2)) == len(first) + len(second)  # another rank is another work
    run(3, kill=5)
    stored = load_file(tmp_path / "full" / "model.safetensors")
    stored[first[1]][0, 0] += 1
    save_file(stored, tmp_path / "full" / "model.safetensors", {"format": "pt"})
    assert set(run(3)) == {first[1], *second}  # what changed meanwhile is cut again


def test_files_of_a_user_and_of_another_process_are_left_alone(places, tmp_path):
    folder, out = places("gpt2"), tmp_path / "out"
    with alone(out), pytest.raises(StorageError, match="Another process is writing there"):
        extract(folder / "base", folder / "mlp", out, rank=1)
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):  # an earlier extraction alone is replaced
        extract(folder / "base", folder / "mlp", out, rank=1)
    (out / "notes.md").write_text("mine")
    with pytest.raises(StorageError, match=r"the extraction there did not write.\n  met:  .*out: notes.md"):
        extract(folder / "base", folder / "mlp", out, rank=1)
