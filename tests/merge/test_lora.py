"""Adapters merged into one: against NumPy on raw files, against merged checkpoints, and as peft loads them."""

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

from asterism.core.errors import MismatchError, SettingsError, StorageError, UnsupportedError
from asterism.core.storage import alone
from asterism.merge.library import recipe_of
from asterism.merge.lora import merge_adapters
from asterism.merge.run import merge_recipe
from asterism.models.adapters import read_adapter
from asterism.models.anatomy import anatomy_of
from asterism.models.fitting import Fitting
from tests import tiny

NAMES = ("one", "two", "three")
KINDS = {
    "one": dict(rank=2),
    "two": dict(rank=4, lora_alpha=6, use_rslora=True),
    "three": dict(rank=3, lora_alpha=5),
}
PATTERNS = {
    "gpt2": {"rank_pattern": {"c_attn": 5, r"h\.1\.mlp\.c_fc": 1}, "alpha_pattern": {"c_attn": 7, "transformer.h.2.mlp.c_proj": 3}},
    "llama": {"rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.down_proj": 1}, "alpha_pattern": {"q_proj": 9, "k_proj": 1}},
}
FAMILIES = tuple(PATTERNS)


def fill(base, folder: Path) -> None:
    """`places`: three adapters, plain, rank-stabilised, and with rank and alpha patterns."""
    for number, (name, config) in enumerate(KINDS.items()):
        more = PATTERNS[base.config.model_type] if name == "three" else {}
        tiny.save_lora(base, folder / name, 7 + number, base=str(folder / "base"), **config, **more)


def recipe(folder: Path, method: str, names=NAMES, *, base: str | None = "base", each=None, **more) -> dict:
    """Adapters by name on the base; `each`: one mapping of parameters a model. `base` may itself be among `names`."""
    models = [{"model": place(folder, name), "parameters": dict((each or [{}] * 3)[number])} for number, name in enumerate(names)]
    return {"merge_method": method, "models": models, **more} | ({"base_model": place(folder, base)} if base else {})


def place(folder: Path, name: str) -> str:
    return str(folder / "base") if name == "base" else f"{folder / 'base'}+{folder / name}"


def state(folder: Path) -> dict[str, np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}


def raw_deltas(folder: Path, anatomy) -> dict[str, np.ndarray]:
    """B A times PEFT's scale, from the file and its config, in the parameters' layout."""
    config, stored = json.loads((folder / "adapter_config.json").read_text()), load_file(folder / "adapter_model.safetensors")
    deltas = {}
    for key, down in stored.items():
        if ".lora_A." in key:
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")

            def told(field, usual, module=module):
                hits = [v for part, v in (config.get(field) or {}).items() if module.endswith(part.replace("\\", ""))]
                return hits[0] if hits else usual

            rank, alpha = told("rank_pattern", config["r"]), told("alpha_pattern", config["lora_alpha"])
            assert len(down) == rank
            scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            product = scale * stored[key.replace("lora_A", "lora_B")].double().numpy() @ down.double().numpy()
            deltas[f"{module}.weight"] = product if anatomy.output_axes[f"{module}.weight"] == 0 else product.T
    return deltas


def written(out: Path, anatomy) -> dict[str, np.ndarray]:
    return raw_deltas(out, anatomy)


def assert_close(got: dict, want: dict, atol: float) -> None:
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=atol, err_msg=name)
    assert max(np.abs(value).max() for value in want.values()) > 1000 * atol


@pytest.fixture(scope="module")
def anatomies():
    return {family: anatomy_of(tiny.tiny_model(family)) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_combinations_are_exact_in_the_space_of_deltas(places, anatomies, family, tmp_path):
    folder, anatomy = places(family, torch.float64), anatomies[family]
    deltas = [raw_deltas(folder / name, anatomy) for name in NAMES]
    weights = (0.7, -0.3, 0.5)
    each = [{"weight": weight} for weight in weights]
    report = merge_adapters(recipe(folder, "task_arithmetic", each=each, parameters={"lambda": 0.9}), tmp_path / "sum")
    want = {name: 0.9 * sum(w * d[name] for w, d in zip(weights, deltas, strict=True)) for name in deltas[0]}
    assert_close(written(tmp_path / "sum", anatomy), want, 1e-14)
    assert set(report.errors.values()) == {0.0}
    assert report.error == report.lost == 0.0
    own = [read_adapter(folder / name).changes for name in NAMES]
    assert report.ranks == {name: min(sum(changes[name].rank for changes in own), *want[name].shape) for name in want}
    assert {2 + 4 + 3, 2 + 4 + 1} < set(report.ranks.values()) <= {2 + 4 + 3, 2 + 4 + 5, 2 + 4 + 1, 8}  # key and value have 8 rows in llama
    for name, norm in report.norms.items():
        assert norm == pytest.approx(np.linalg.norm(want[name]), rel=1e-9)
    merge_adapters(recipe(folder, "linear", base=None, each=[{"weight": w} for w in (1, 2, 5)]), tmp_path / "mean")
    want = {name: sum(w * d[name] for w, d in zip((1 / 8, 2 / 8, 5 / 8), deltas, strict=True)) for name in deltas[0]}
    assert_close(written(tmp_path / "mean", anatomy), want, 1e-14)
    merge_adapters(recipe(folder, "lerp", NAMES[:2], base=None, parameters={"t": 0.3}), tmp_path / "lerp")
    assert_close(written(tmp_path / "lerp", anatomy), {name: 0.7 * deltas[0][name] + 0.3 * deltas[1][name] for name in want}, 1e-14)


SEEN = [
    ("model_stock", {}), ("model_stock", {"filter_wise": True}), ("multislerp", {"weight": 0.4}),
    ("nuslerp", {"weight": 0.4}), ("nuslerp", {"weight": 0.4, "nuslerp_flatten": False}),
    ("nuslerp", {"weight": 0.4, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
]  # fmt: skip
FULL = [
    ("ties", {"weight": 0.6, "density": 0.4}), ("dare_ties", {"weight": 0.6, "density": 0.5}), ("della", {"weight": 1, "density": 0.5}),
    ("breadcrumbs", {"weight": 0.6, "density": 0.7, "gamma": 0.05}), ("sce", {"select_topk": 0.5}), ("ram", {}), ("karcher", {}),
    ("slerp", {"t": 0.3}), ("nearswap", {"t": 0.01}), ("arcee_fusion", {}), ("nuslerp", {"weight": 0.5}),
]  # fmt: skip
BASELESS = ("karcher", "nuslerp")


def small(folder: Path, method: str, parameters: dict, *, based: bool) -> dict:
    """A recipe with as many models as the method takes."""
    names = {"nearswap": ("one",), "arcee_fusion": ("base", "two"), "slerp": ("one", "two"), "nuslerp": ("one", "two")}.get(method, NAMES)
    base = {"slerp": "one"}.get(method, "base")
    return recipe(folder, method, names, base=base if based else None, parameters=parameters)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "parameters"), SEEN)
def test_combinations_that_look_at_the_deltas_agree_with_merged_checkpoints(places, anatomies, family, method, parameters, tmp_path):
    folder = places(family)
    content = small(folder, method, parameters, based=True)
    report = merge_adapters(content, tmp_path / "adapter")
    assert set(report.errors.values()) == {0.0}
    merge_recipe(content, tmp_path / "model")
    base, merged = state(folder / "base"), state(tmp_path / "model")
    got = written(tmp_path / "adapter", anatomies[family])
    assert_close(got, {name: merged[name] - base[name] for name in got}, 2e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "parameters"), FULL)
def test_other_merges_are_the_nearest_of_a_rank(places, anatomies, family, method, parameters, tmp_path):
    folder = places(family)
    content = small(folder, method, parameters, based=method not in BASELESS)
    with pytest.raises(SettingsError, match="not of low rank"):
        merge_adapters(content, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    merge_recipe(content, tmp_path / "model")
    base, merged = state(folder / "base"), state(tmp_path / "model")
    for rank, loose in ((99, 2e-6), (3, 2e-6)):
        report = merge_adapters(content, tmp_path / "adapter", rank=rank)
        got = written(tmp_path / "adapter", anatomies[family])
        assert report.left_out == {}
        assert got.keys() == {name for name, value in base.items() if not np.array_equal(value, merged[name])}
        for name, change in got.items():
            full = merged[name] - base[name]
            u, s, vt = np.linalg.svd(full, full_matrices=False)
            best = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
            assert report.errors[name] == pytest.approx(best, rel=1e-3, abs=2e-6)
            assert report.ranks[name] == min(rank, *full.shape)
            np.testing.assert_allclose(change, (u[:, :rank] * s[:rank]) @ vt[:rank], rtol=0, atol=1e-4 if rank == 3 else loose)
        total = sum(norm**2 for norm in report.norms.values())
        assert report.error == pytest.approx(math.sqrt(sum((report.errors[n] * report.norms[n]) ** 2 for n in got) / total))
    assert report.error > 0.1


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(torch.arange(3, 15)[None]).logits


def with_peft(base: Path, adapter: Path):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a deprecated property
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "rank"), [("task_arithmetic", None), ("ties", 32)])
def test_peft_gives_the_logits_of_the_merged_checkpoint(places, family, method, rank, tmp_path):
    folder = places(family)
    content = recipe(folder, method, parameters={"weight": 0.6})
    merge_adapters(content, tmp_path / "adapter", rank=rank)
    merge_recipe(content, tmp_path / "model")
    want = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"))
    torch.testing.assert_close(logits(with_peft(folder / "base", tmp_path / "adapter")), want, rtol=0, atol=1e-4)
    assert (want - logits(AutoModelForCausalLM.from_pretrained(folder / "base"))).abs().max() > 0.05
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder / "base")


def test_what_a_merge_of_models_does_to_the_rest_is_told(places, anatomies, tmp_path):
    """Weights that sum to 1.5 scale the base too: its norms and embeddings fit in no LoRA."""
    folder, anatomy = places("gpt2"), anatomies["gpt2"]
    content = recipe(folder, "linear", base=None, each=[{"weight": 0.5}] * 3, parameters={"normalize": False})
    with pytest.raises(SettingsError, match="give a rank"):
        merge_adapters(content, tmp_path / "none")
    report = merge_adapters(content, tmp_path / "adapter", rank=16)
    base = state(folder / "base")
    assert report.left_out.keys() == {name for name in base if not anatomy.is_linear(name)}
    for name, norm in report.left_out.items():
        assert norm == pytest.approx(0.5 * np.linalg.norm(base[name]), rel=1e-6)
    deltas = [raw_deltas(folder / name, anatomy) for name in NAMES]
    want = {name: 0.5 * base[name] + 0.5 * sum(delta[name] for delta in deltas) for name in deltas[0]}
    assert_close(written(tmp_path / "adapter", anatomy), want, 2e-6)
    assert report.error < 1e-5 < 0.1 < report.lost < 1
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "Left out, for no LoRA holds it" in card
    assert "transformer.wte.weight" in card


def test_passthrough_shortens_one_adapter(places, anatomies, tmp_path):
    folder, anatomy = places("llama"), anatomies["llama"]
    content = recipe(folder, "passthrough", ("two",), base=None)
    assert merge_adapters(content, tmp_path / "same").error == 0.0
    two = raw_deltas(folder / "two", anatomy)
    assert_close(written(tmp_path / "same", anatomy), two, 1e-7)
    report = merge_adapters(content, tmp_path / "short", rank=1)
    for name, delta in two.items():
        s = np.linalg.svd(delta, compute_uv=False)
        assert report.errors[name] == pytest.approx(np.sqrt((s[1:] ** 2).sum() / (s**2).sum()), rel=1e-4)


def test_adapters_of_other_modules_leave_each_others_alone(places, anatomies, tmp_path):
    folder, anatomy = places("gpt2"), anatomies["gpt2"]
    base = tiny.tiny_model("gpt2")
    places_of = {"attention": ["c_attn"], "mlp": ["c_fc"]}
    for number, (name, modules) in enumerate(places_of.items()):
        tiny.save_lora(base, tmp_path / name, number, rank=12, base=str(folder / "base"), target_modules=modules)
    tiny.save_lora(base, tmp_path / "too", 9, rank=11, base=str(folder / "base"), target_modules=["c_fc"])
    models = [{"model": f"{folder / 'base'}+{tmp_path / name}", "parameters": {"weight": 0.5}} for name in ("attention", "mlp", "too")]
    content = {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models}
    report = merge_adapters(content, tmp_path / "adapter")
    deltas = [raw_deltas(tmp_path / name, anatomy) for name in ("attention", "mlp", "too")]
    want = {name: 0.5 * value for name, value in deltas[0].items()}
    want |= {name: 0.5 * (value + deltas[2][name]) for name, value in deltas[1].items()}
    assert_close(written(tmp_path / "adapter", anatomy), want, 1e-6)
    assert set(report.ranks.values()) == {12, 16}  # 12 + 11 is more than [16, 32] has
    assert max(report.errors.values()) < 1e-6
    cut = merge_adapters({**content, "merge_method": "ties"}, tmp_path / "ties", rank=16)
    assert cut.ranks.keys() == want.keys()


def test_a_base_may_have_an_adapter_too(places, anatomies, tmp_path):
    folder, anatomy = places("llama"), anatomies["llama"]
    one, two = (raw_deltas(folder / name, anatomy) for name in ("one", "two"))
    content = recipe(folder, "task_arithmetic", ("two",), base="one", parameters={"weight": 0.4})
    merge_adapters(content, tmp_path / "sum")
    assert_close(written(tmp_path / "sum", anatomy), {name: 0.6 * one[name] + 0.4 * two[name] for name in one}, 1e-7)
    content = recipe(folder, "ties", ("two", "three"), base="one", parameters={"weight": 0.4, "density": 0.5})
    merge_adapters(content, tmp_path / "ties", rank=99)
    merge_recipe(content, tmp_path / "model")
    base, merged = state(folder / "base"), state(tmp_path / "model")
    got = written(tmp_path / "ties", anatomy)
    assert_close(got, {name: merged[name] - base[name] for name in got}, 2e-6)


def test_the_recipes_dtype_is_the_factors_and_its_rounding_is_counted(places, anatomies, tmp_path):
    folder, anatomy = places("gpt2"), anatomies["gpt2"]
    deltas = [raw_deltas(folder / name, anatomy) for name in NAMES]
    report = merge_adapters(recipe(folder, "task_arithmetic", parameters={"weight": 0.5}, dtype="bfloat16"), tmp_path / "adapter")
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values()} == {torch.bfloat16}
    got = written(tmp_path / "adapter", anatomy)
    for name, error in report.errors.items():
        want = 0.5 * sum(delta[name] for delta in deltas)
        assert error == pytest.approx(np.linalg.norm(got[name] - want) / np.linalg.norm(want), rel=1e-3)
        assert 1e-4 < error < 1e-2


def test_a_librarys_adapters_merge_by_name(tmp_path):
    library = tiny.tiny_library(tmp_path / "library", "gpt2", ("medical", "legal"), kind="lora")
    weight = {"medical": 1.0, "legal": 0.5}
    report = merge_adapters(recipe_of(library, "task_arithmetic", weight=weight), tmp_path / "adapter")
    assert set(report.ranks.values()) == {2 + 3}
    got = written(tmp_path / "adapter", library.anatomy)
    name = "transformer.h.1.mlp.c_fc.weight"
    want = library.change("medical", name).delta(1) + 0.5 * library.change("legal", name).delta(1)
    np.testing.assert_allclose(got[name], want.numpy(), atol=1e-6)
    told = json.loads((tmp_path / "adapter" / "merge.json").read_text())
    assert told["kind"] == "adapter"
    assert [source["tensors"] for source in told["sources"]] == [40, 40]
    assert told["adapter"]["ranks"] == report.ranks
    assert told["adapter"]["error"] == 0.0
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "| mlp.c_fc | 5 | 5 | 0 |" in card
    assert "Task arithmetic" in card
    assert all(f"| {source['model']} | `{source['digest'][:16]}` |" in card for source in told["sources"])
    library.add("both", tmp_path / "adapter")  # what is written is read
    torch.testing.assert_close(library.change("both", name).delta(1), want, rtol=0, atol=1e-6)


def test_the_same_recipe_gives_the_same_bytes(places, tmp_path):
    content = recipe(places("gpt2"), "dare_ties", parameters={"weight": 0.5, "density": 0.3})
    other = {**content, "models": content["models"][::-1]}
    for name, recipe_given, seed in (("a", content, 1), ("b", content, 1), ("c", other, 1), ("d", content, 2)):
        merge_adapters(recipe_given, tmp_path / name, rank=4, seed=seed)
    a, b, c, d = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abcd")
    assert a == b == c
    assert a != d


def test_slices_that_move_nothing_are_a_merge_of_adapters(places, anatomies, tmp_path):
    folder = places("llama")

    def sliced(*ranges, of=("one", "two")) -> dict:
        slices = [{"sources": [{"model": place(folder, name), "layer_range": list(each)} for name in of]} for each in ranges]
        return {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1.0}}

    merge_adapters(sliced((0, 1), (1, 3)), tmp_path / "whole")
    merge_adapters(recipe(folder, "linear", NAMES[:2], base=None, parameters={"weight": 1.0}), tmp_path / "plain")
    got, want = (written(tmp_path / name, anatomies["llama"]) for name in ("whole", "plain"))
    assert_close(got, want, 1e-9)
    for moved in (sliced((0, 2), (0, 1)), sliced((0, 2)), sliced((0, 3), (1, 3))):
        with pytest.raises(UnsupportedError, match="own layers"):
            merge_adapters(moved, tmp_path / "moved")


def test_what_is_no_merge_of_adapters_is_refused(places, tmp_path):
    folder = places("gpt2")
    good = recipe(folder, "task_arithmetic", parameters={"weight": 1.0})
    shutil.copytree(folder / "base", tmp_path / "other")
    elsewhere = {**good, "base_model": str(tmp_path / "other")}
    with pytest.raises(MismatchError, match="different bases"):
        merge_adapters(elsewhere, tmp_path / "out")
    with pytest.raises(SettingsError, match="merges no adapters"):
        merge_adapters(recipe(folder, "passthrough", ("base",), base=None), tmp_path / "out")
    with pytest.raises(SettingsError, match="Nothing is left of this merge"):
        merge_adapters(recipe(folder, "task_arithmetic", parameters={"weight": 0.0}), tmp_path / "out")
    with pytest.raises(SettingsError, match="at least 1"):
        merge_adapters(good, tmp_path / "out", rank=0)
    for key, value in (("tokenizer_source", "base"), ("chat_template", "chatml"), ("tokenizer", {"source": "union"})):
        with pytest.raises(UnsupportedError, match=f"{key} is not supported"):
            merge_adapters({**good, key: value}, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="something else"):
        merge_adapters(good, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]
    merge_adapters(good, tmp_path / "out")
    with pytest.raises(StorageError, match="made of"):
        merge_adapters(recipe(folder, "uniform", ("one", str(tmp_path / "out")), base=None), tmp_path / "out")
    with pytest.raises(StorageError, match=r"adapter_config.json is missing.\n  met:  .*base: a whole model: name it by itself"):
        merge_adapters(recipe(folder, "uniform", ("one", str(folder / "base")), base=None), tmp_path / "third")
    merge_adapters(good, tmp_path / "out", rank=1)  # an earlier merge is replaced
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["rank"] == 1


def test_an_adapter_that_changes_nothing_counts_as_zero(places, anatomies, tmp_path):
    folder, anatomy = places("gpt2"), anatomies["gpt2"]
    shutil.copytree(folder / "one", tmp_path / "idle")
    stored = load_file(tmp_path / "idle" / "adapter_model.safetensors")
    still = {name: torch.zeros_like(tensor) if ".lora_B." in name else tensor for name, tensor in stored.items()}
    save_file(still, tmp_path / "idle" / "adapter_model.safetensors", {"format": "pt"})
    models = [{"model": f"{folder / 'base'}+{place}"} for place in (tmp_path / "idle", folder / "two")]
    content = {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models, "parameters": {"weight": 1.0}}
    merge_adapters(content, tmp_path / "sum")
    assert_close(written(tmp_path / "sum", anatomy), raw_deltas(folder / "two", anatomy), 1e-6)
    alone = {**content, "models": models[:1]}
    with pytest.raises(SettingsError, match="Nothing is left of this merge"):
        merge_adapters(alone, tmp_path / "none")
    with pytest.raises(SettingsError, match="no parameter changes"):  # a zero delta is orthogonal to every other: the base
        merge_adapters({**content, "merge_method": "model_stock", "parameters": {}}, tmp_path / "none")


def test_a_killed_merge_of_adapters_goes_on(places, tmp_path, monkeypatch):
    folder = places("gpt2")
    content = recipe(folder, "ties", parameters={"weight": 1.0, "density": 0.5})
    merge_adapters(content, tmp_path / "whole", rank=3)
    cut, calls = Fitting.cut, []

    def dying(self, parameter, delta):
        calls.append(parameter)
        if len(calls) == 5:
            raise KeyboardInterrupt
        cut(self, parameter, delta)

    monkeypatch.setattr(Fitting, "cut", dying)
    with pytest.raises(KeyboardInterrupt):
        merge_adapters(content, tmp_path / "out", rank=3)
    report = merge_adapters(content, tmp_path / "out", rank=3)
    assert len(calls) == 1 + len(report.ranks) == 1 + len(set(calls))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    for name in json.loads((tmp_path / "out" / "merge.json").read_text())["files"]:
        if name != "README.md":  # its title is the folder's name
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_files_of_a_user_and_of_another_process_are_left_alone(places, tmp_path):
    content, out = recipe(places("gpt2"), "task_arithmetic", parameters={"weight": 1.0}), tmp_path / "out"
    with alone(out), pytest.raises(StorageError, match="Another process is writing there"):
        merge_adapters(content, out)
    assert list(tmp_path.iterdir()) == []
    merge_adapters(content, out)
    (out / "notes.md").write_text("mine")
    with pytest.raises(StorageError, match=r"the merge there did not write.\n  met:  .*out: notes.md"):
        merge_adapters(content, out)
