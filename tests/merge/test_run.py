"""Whole merges: recipes on tiny checkpoints of every family, compared with plain arithmetic, with mergekit, and with themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from asterism.core.errors import AsterismError, DataError, MismatchError, SettingsError, StorageError, UnknownName
from asterism.merge import files, run, streams
from asterism.merge.chat import TEMPLATES, check_template
from asterism.merge.files import Output
from asterism.merge.library import merge
from asterism.merge.recipe import Recipe
from asterism.merge.run import Merge, merge_recipe
from asterism.models.library import Library
from tests import tiny

BASE, A, B = "base", "medical", "legal"
MODELS = [A, B]


def fill(base, folder: Path) -> None:
    """`places`: two models tuned from the base, and an adapter."""
    for number, name in enumerate(MODELS):
        tiny.save(tiny.perturbed(base, number + 1, 0.2), folder / name)
    tiny.save_lora(base, folder / "lora", 7, base=str(folder / BASE))


def recipe(folder: Path, method: str, *, base: bool = True, models=MODELS, each: dict | None = None, **more) -> dict:
    content = {"merge_method": method, "models": [{"model": str(folder / name), "parameters": each or {}} for name in models], **more}
    return content | ({"base_model": str(folder / BASE)} if base else {})


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_mean_of_two_models_of_every_family(places, tmp_path, family):
    folder = places(family)
    told = merge_recipe(recipe(folder, "linear", base=False, each={"weight": 1.0}), tmp_path / "out")
    one, other, merged = (AutoModelForCausalLM.from_pretrained(place) for place in (folder / A, folder / B, tmp_path / "out"))
    for (name, mean), x, y in zip(merged.named_parameters(), one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mean, (x + y) / 2, msg=name)
    assert merged.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).shape == (1, 6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tiny.tiny_tokenizer().get_vocab()
    assert [source["model"] for source in told["sources"]] == [str(folder / A), str(folder / B)]
    assert 0 < told["sources"][0]["distance"] < 0.2
    assert told == json.loads((tmp_path / "out" / "merge.json").read_text())
    assert "| " + str(folder / A) in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("task_arithmetic", {"weight": 0.7, "lambda": 0.9}), ("ties", {"weight": 0.5, "density": 0.4}), ("slerp", {"t": 0.3}),
        ("breadcrumbs", {"weight": 0.6, "density": 0.7, "gamma": 0.05}), ("model_stock", {}), ("sce", {"select_topk": 0.5}),
        ("nuslerp", {"weight": 0.4}), ("karcher", {}), ("arcee_fusion", {}), ("nearswap", {"t": 0.01}), ("ram", {}),
        ("multislerp", {"weight": 1.0}),
    ],
)  # fmt: skip
def test_a_recipe_runs_as_in_mergekit(places, tmp_path, method, parameters):
    """Their whole program on the same YAML; TIES and its kin up to entries that sit on the threshold."""
    pytest.importorskip("mergekit")
    folder = places("llama", tie_word_embeddings=False, attention_bias=False, mlp_bias=False)
    models = MODELS[:1] if method in ("slerp", "arcee_fusion", "nearswap") else MODELS
    content = recipe(folder, method, base=method != "karcher", models=models, parameters=parameters)
    if method == "slerp":
        content["parameters"] = {"t": [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"filter": "mlp", "value": [1, 0.2]}, {"value": 0.5}]}
    if method == "task_arithmetic":
        content["models"][0]["parameters"] = {"weight": [0.2, 0.9]}
    merge_recipe(content, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        run_merge(MergeConfiguration.model_validate(content), str(tmp_path / "theirs"), MergeOptions(quiet=True, copy_tokenizer=False))
    ours, theirs = state(tmp_path / "ours"), state(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-6, rtol=1e-4, msg=lambda told, name=name: f"{name}: {told}")


def test_layers_are_stacked_as_slices_say(places, tmp_path):
    folder = places("gemma3_text")
    content = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(folder / A), "layer_range": [0, 2]}]},
            {"sources": [{"model": str(folder / B), "layer_range": [1, 3]}]},
        ],
    }
    merge_recipe(content, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
    merged, one, other = state(tmp_path / "out"), state(folder / A), state(folder / B)
    name = "model.layers.{}.mlp.up_proj.weight"
    for place, (source, number) in enumerate([(one, 0), (one, 1), (other, 1), (other, 2)]):
        assert torch.equal(merged[name.format(place)], source[name.format(number)])
    assert torch.equal(merged["model.norm.weight"], other["model.norm.weight"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4


@pytest.mark.parametrize("method", ["dare_ties", "della", "ties", "linear"])
def test_the_same_recipe_gives_the_same_bytes(places, tmp_path, method):
    """Whatever the order of the models, the settings of other tensors, the shards, or what this process drew before."""
    folder = places("qwen2", dtype=torch.bfloat16)
    each = {"weight": 0.6} | ({} if method == "linear" else {"density": 0.5})
    content = recipe(folder, method, base=method != "linear", each=each)
    merge_recipe(content, tmp_path / "first")
    torch.rand(10)
    turned = content | {"models": content["models"][::-1]}
    merge_recipe(turned, tmp_path / "turned", shard_bytes=20_000)
    assert len(list((tmp_path / "turned").glob("*.safetensors"))) > 1
    first, again = state(tmp_path / "first"), state(tmp_path / "turned")
    assert all(torch.equal(first[name], again[name]) for name in first)
    if "density" not in each:
        return
    each = {"weight": 0.6, "density": [{"filter": "mlp", "value": 0.3}, {"value": 0.5}]}
    merge_recipe(recipe(folder, method, each=each), tmp_path / "other")
    other = state(tmp_path / "other")
    assert {name for name in first if not torch.equal(first[name], other[name])} == {name for name in first if ".mlp." in name}
    if method != "ties":
        merge_recipe(content, tmp_path / "seeded", seed=7)
        assert not torch.equal(state(tmp_path / "seeded")["model.norm.weight"], first["model.norm.weight"])


AGAIN = """
import sys, torch
from asterism.merge.run import merge_recipe
assert torch.get_num_threads() == 2
for place in sys.argv[1:]:
    merge_recipe(place + ".yaml", place)
"""
WATCHED = """
import sys
from asterism.merge.files import Output
from asterism.merge.run import merge_recipe
seen, write = [], Output.write
def watched(self, *given):
    lines = open("/proc/self/status").read().splitlines()
    seen.append(int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024)
    write(self, *given)
Output.write = watched
merge_recipe(sys.argv[1] + ".yaml", sys.argv[1])
print(len(seen), max(seen) - seen[0])
"""


def elsewhere(program: str, *merges: tuple[dict, Path]) -> str:
    """Recipes merged by a program in a process of its own, with another hash seed and two threads; what it prints."""
    for content, out in merges:
        Path(f"{out}.yaml").write_text(json.dumps(content))
    environment = {**os.environ, "PYTHONHASHSEED": "11", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    command = [sys.executable, "-c", program, *(str(out) for _, out in merges)]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def plain(folder: Path, seed: int, layers: int, width: int) -> str:
    """A checkpoint of matrices [width, width], one a layer."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    names = [f"model.layers.{number}.mlp.up_proj.weight" for number in range(layers)]
    save_file({name: torch.randn(width, width, generator=generator).bfloat16() for name in names}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "num_hidden_layers": layers}))
    return str(folder)


def test_neither_threads_nor_the_hash_seed_nor_the_order_change_a_byte(tmp_path):
    """On tensors large enough to be shared out among threads."""
    models = [{"model": plain(tmp_path / f"model-{seed}", seed, 1, 400)} for seed in range(3)]
    base = plain(tmp_path / "base", 7, 1, 400)
    again, places = [], {}
    for method, parameters in (
        ("della", {"weight": 0.4, "density": 0.5}), ("ties", {"weight": 0.4, "density": 0.3}), ("model_stock", {}),
        ("sce", {"select_topk": 0.3}), ("karcher", {}), ("linear", {"weight": 0.7}),
    ):  # fmt: skip
        content = {"merge_method": method, "models": models, "parameters": parameters}
        content |= {} if run.named(method).base == "none" else {"base_model": base}
        places[method] = tmp_path / method, tmp_path / f"{method}-again"
        merge_recipe(content, places[method][0])
        again.append((content | {"models": models[::-1]}, places[method][1]))
    elsewhere(AGAIN, *again)
    for method, (one, other) in places.items():
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes(), method


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="this system does not tell how much memory is anonymous")
def test_memory_follows_the_tensors_not_the_models(tmp_path):
    """Anonymous memory grows by less than a few tensors, while the output is of 16 and the models of 48."""
    width, layers = 1000, 16
    base, *models = (plain(tmp_path / name, seed, layers, width) for seed, name in enumerate(("base", "one", "two")))
    content = {"merge_method": "ties", "base_model": base, "models": [{"model": model} for model in models]}
    printed = elsewhere(WATCHED, (content | {"parameters": {"weight": 0.4, "density": 0.5}}, tmp_path / "out"))
    written, growth = map(int, printed.split())
    assert written == layers
    assert growth < 6 * 2 * width * width


def test_an_adapter_is_merged_where_it_is_named(places, tmp_path):
    from peft import PeftModel

    folder = places("gpt2")
    content = recipe(folder, "linear", base=False, models=[BASE, f"{BASE}+{folder}/lora"], each={"weight": 1.0})
    merge_recipe(content, tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(folder / BASE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / BASE), folder / "lora").merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, mean), x in zip(merged.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mean, (x + adapted.get_parameter(name)) / 2, msg=name)


def test_an_adapter_is_put_on_its_own_base_alone(places, tmp_path):
    folder = places("gpt2")
    lora = shutil.copytree(folder / "lora", tmp_path / "lora")
    config = json.loads((lora / "adapter_config.json").read_text())

    def tried(named: str, base: Path) -> None:
        (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
        Merge(Recipe.of(recipe(folder, "linear", base=False, models=[A, f"{base}+{lora}"], each={"weight": 1.0})))

    for other in ("org/other", str(folder / B)):
        with pytest.raises(MismatchError, match=rf"another base.\n  met:  .*lora is of {other}, not of .*base\n  mend: write {other}\+"):
            tried(other, folder / BASE)
    assert not (lora / ".digests.json").exists()
    tried("org/base", folder / BASE)
    copied = shutil.copytree(folder / BASE, tmp_path / "copied")
    tried(str(copied), folder / BASE)
    tried("org/tiny", shutil.copytree(copied, tmp_path / "models--org--tiny" / "snapshots" / "abc"))


def test_equal_tensors_pass_through(places, tmp_path, monkeypatch):
    folder = places("qwen2")
    same = tiny.save(tiny.perturbed(tiny.tiny_model("qwen2"), 5, 0.2, "mlp"), tmp_path / "mlp")
    merged = []
    known = run.named("ties")
    monkeypatch.setattr(type(known), "into", lambda self, out, tensors, base=None, **given: (merged.append(given["name"]), out.copy_(base)))
    merge_recipe(recipe(folder, "ties", models=[str(same)], each={"weight": 1.0, "density": 0.5}), tmp_path / "out")
    assert merged
    assert all(".mlp." in name for name in merged)


def test_a_killed_merge_goes_on(places, tmp_path, monkeypatch):
    folder = places("qwen2")
    content = recipe(folder, "ties", each={"weight": 1.0, "density": 0.5})
    merge_recipe(content, tmp_path / "whole")
    monkeypatch.setattr(files, "_SYNC_BYTES", 1)
    monkeypatch.setattr(streams, "ALIGNED", 1)
    monkeypatch.setattr(streams, "HELD", 64)
    monkeypatch.setattr(streams, "_direct", lambda path: None)
    monkeypatch.setattr(Output, "write", _killing(9))
    with pytest.raises(KeyboardInterrupt):
        merge_recipe(content, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(run, "_one", lambda *given, own=run._one: seen.append(given[1].piece.name) or own(*given))
    told = merge_recipe(content, tmp_path / "out")
    assert 0 < len(seen) < len(state(tmp_path / "whole"))
    whole, out = state(tmp_path / "whole"), state(tmp_path / "out")
    assert all(torch.equal(whole[name], out[name]) for name in whole)
    assert told["sources"] == json.loads((tmp_path / "whole" / "merge.json").read_text())["sources"]


def _killing(after: int):
    """A stand-in for writing that is killed at the n-th tensor."""
    plain, calls = Output.write, []

    def write(self, *given):
        plain(self, *given)
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt

    return write


def test_a_tokenizer_rule_maps_embeddings_by_token(places, tmp_path):
    folder = places("qwen2")
    larger = tiny.tiny_model("qwen2", vocab_size=len(tiny.tiny_tokenizer()) + 2)
    tokenizer = AutoTokenizer.from_pretrained(folder / BASE)
    tokenizer.add_tokens(["<one>", "<two>"])
    larger.save_pretrained(tmp_path / "larger")
    tokenizer.save_pretrained(tmp_path / "larger")
    content = recipe(folder, "linear", base=False, models=[A, str(tmp_path / "larger")], each={"weight": 1.0})
    with pytest.raises(MismatchError, match="tokenizer"):
        merge_recipe(content, tmp_path / "out")
    merge_recipe(content | {"tokenizer": {"source": "union", "pad_to_multiple_of": 8}}, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.get_vocab() == tokenizer.get_vocab()
    rows = merged.get_input_embeddings().weight
    assert rows.shape[0] == merged.config.vocab_size == -(-len(tokenizer) // 8) * 8
    own = larger.get_input_embeddings().weight
    torch.testing.assert_close(rows[tokenizer.convert_tokens_to_ids("<two>")], own[-1])


def test_a_union_does_not_depend_on_the_order_or_the_hash_seed(places, tmp_path):
    """New tokens have the same numbers and rows, and of templates that are equally frequent it is the same."""
    folder = places("qwen2", dtype=torch.bfloat16)
    for number, (name, tokens) in enumerate({"x": ["<1>", "<2>"], "y": ["<3>", "<2>"], "z": ["<2>", "<4>", "<1>"]}.items()):
        tokenizer = AutoTokenizer.from_pretrained(folder / BASE)
        tokenizer.add_tokens(tokens)
        tokenizer.chat_template = "{{ messages[0].content }} " + name
        tiny.tiny_model("qwen2", number, torch.bfloat16, vocab_size=len(tokenizer)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    models = [str(tmp_path / name) for name in ("z", "x", "y")]
    content = recipe(
        folder, "dare_ties", models=models, each={"weight": 0.3, "density": 0.5}, tokenizer_source="union", chat_template="auto"
    )
    merge_recipe(content, tmp_path / "first")
    elsewhere(AGAIN, (content | {"models": content["models"][::-1]}, tmp_path / "again"))
    for path in (tmp_path / "first").iterdir():
        if path.name not in ("merge.json", "README.md"):  # they tell the recipe as it was given
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    assert len(AutoTokenizer.from_pretrained(tmp_path / "first")) == len(tiny.tiny_tokenizer()) + 4


@pytest.mark.parametrize(("asked", "part"), [("chatml", "<|im_start|>"), ("{{ messages[0].content }} of my own", "of my own")])
def test_a_chat_template_is_set(places, tmp_path, asked, part):
    content = recipe(places("qwen2"), "linear", base=False, each={"weight": 1.0}, chat_template=asked)
    merge_recipe(content, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert part in tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages[0].content }}\n{% for m in messages %}\nno end", "line 2, '{% for m in messages %}': .*endfor"),
        (
            "{{ bos_token }}\n\n{{ messages[0].content | shout }}",
            r"line 3, '{{ messages\[0\].content \| shout }}': No filter named 'shout'",
        ),
        ("{{ messages[0 }}", "line 1, .*"),
    ],
)
def test_a_chat_template_that_is_not_jinja_is_refused_with_its_line(places, tmp_path, template, told):
    content = recipe(places("qwen2"), "linear", base=False, each={"weight": 1.0})
    with pytest.raises(SettingsError, match=rf"chat_template is not Jinja.\n  met:  {told}"):
        merge_recipe(content | {"chat_template": template}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_chat_templates_may_say_what_transformers_reads():
    text = "{%- for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    check_template(text + "{{ strftime_now('%Y') }}{{ raise_exception('no') }}")
    for known in TEMPLATES.values():
        check_template(known)


def test_merging_a_library_is_the_recipe_in_memory(tmp_path):
    library = tiny.tiny_library(tmp_path / "library", "gpt2", kind="lora")
    merged = merge(library, "ties", density=0.5, weight=dict.fromkeys(library.names, 0.5) | {"code": 1.0}, lambda_=0.8)
    models = [
        {"model": f"{library.folder()}+{library.folder(name)}", "parameters": {"weight": 1.0 if name == "code" else 0.5}}
        for name in library.names
    ]
    content = {"merge_method": "ties", "base_model": str(library.folder()), "models": models, "parameters": {"density": 0.5, "lambda": 0.8}}
    merge_recipe(content, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, mine), theirs in zip(merged.named_parameters(), written.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    with pytest.raises(UnknownName, match="medical"):
        merge(library, "ties", weight={"medcal": 1.0})
    with pytest.raises(SettingsError, match="lacks a specialist"):
        merge(library, "ties", weight={"medical": 1.0})
    with pytest.raises(UnknownName, match="density"):
        merge(library, "ties", densty=0.5)


def broken(folder: Path, name: str, change) -> Path:
    """A copy of a model with its tensors changed."""
    tensors = state(folder / A)
    change(tensors)
    place = tiny.save(tiny.tiny_model("qwen2"), folder / name)
    save_file(tensors, place / "model.safetensors", {"format": "pt"})
    return place


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda tensors: tensors["model.norm.weight"].fill_(float("nan")), DataError, "model.norm.weight"),
        (lambda tensors: tensors.pop("model.norm.weight"), MismatchError, "norm.weight"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), MismatchError, "norm.weight"),
    ],
)
@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_a_bad_model_leaves_nothing(places, tmp_path, method, change, error, told):
    folder = places("qwen2")
    bad = broken(folder, f"bad-{told}-{error.__name__}", change)
    each = {"slerp": {}, "linear": {"weight": 1.0}}.get(method, {"weight": 1.0, "density": 0.5})
    content = recipe(folder, method, base=method != "linear", models=[str(bad)] if method == "slerp" else [A, str(bad)], each=each)
    with pytest.raises(error, match=told):
        merge_recipe(content | ({"parameters": {"t": 0.5}} if method == "slerp" else {}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_before_anything_is_opened(places, tmp_path):
    folder = places("qwen2")
    good = recipe(folder, "linear", base=False, each={"weight": 1.0})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="something else"):
        merge_recipe(good, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    with pytest.raises(UnknownName, match="ties"):
        merge_recipe(good | {"merge_method": "tise"}, tmp_path / "out")
    with pytest.raises(StorageError):
        merge_recipe(recipe(folder, "linear", base=False, models=[A, "nowhere"], each={"weight": 1.0}), tmp_path / "out")
    with pytest.raises(UnknownName, match="chatml"):
        merge_recipe(good | {"chat_template": "chat_ml"}, tmp_path / "out")
    other = tiny.save(tiny.tiny_model("qwen2", num_attention_heads=2, num_key_value_heads=1), tmp_path / "heads")
    with pytest.raises(MismatchError, match="num_attention_heads"):
        merge_recipe(recipe(folder, "linear", base=False, models=[A, str(other)], each={"weight": 1.0}), tmp_path / "out")
    hollow = shutil.copytree(folder / A, tmp_path / "hollow")
    save_file({}, hollow / "model.safetensors", {"format": "pt"})
    with pytest.raises(StorageError, match=r"no weights.\n  met:  .*hollow: no tensor"):
        merge_recipe(recipe(folder, "linear", base=False, models=[str(hollow)], each={"weight": 1.0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_lies_beside_the_weights_is_checked_before_them(places, tmp_path, monkeypatch):
    """A template for no tokenizer, a config that does not say how many layers it has: told while nothing is written."""
    folder = places("qwen2")
    monkeypatch.setattr(run, "writing", None)
    bare = shutil.copytree(folder / A, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(SettingsError, match=r"needs a tokenizer.\n  met:  .*bare holds no tokenizer_config.json"):
        merge_recipe(
            recipe(folder, "linear", base=False, models=[str(bare)], each={"weight": 1.0}, chat_template="chatml"), tmp_path / "out"
        )
    untold = shutil.copytree(folder / A, tmp_path / "untold")
    config = json.loads((untold / "config.json").read_text())
    (untold / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "num_hidden_layers"}))
    slices = [{"sources": [{"model": str(untold), "layer_range": [0, 2]}]}]
    with pytest.raises(StorageError, match="how many layers"):
        merge_recipe({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tie_word_embeddings": True}, "lm_head.weight is in the merge, not in"),
        ({"vocab_size": 384}, r"model.embed_tokens.weight is \[320, 16\], \[384, 16\] in"),
        ({"intermediate_size": 48}, r"mlp.down_proj.weight is \[16, 32\], \[16, 48\] in"),
        ({"hidden_size": 32}, r"model.embed_tokens.weight is \[320, 16\], \[320, 32\] in"),
        ({"num_hidden_layers": 5}, None),
    ],
)
def test_slices_fit_the_config_that_they_take(places, tmp_path, monkeypatch, changes, told):
    """Also where it is of a base that they do not merge, or of the first of several models."""
    folder = places("qwen2")
    donor = tiny.save(tiny.tiny_model("qwen2", **changes), tmp_path / "donor")
    slices = [{"sources": [{"model": str(folder / name), "layer_range": [0, 2]}]} for name in MODELS]
    content = {"merge_method": "passthrough", "base_model": str(donor), "slices": slices}
    if told is None:
        merge_recipe(content, tmp_path / "out")
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4
        return
    monkeypatch.setattr(run, "writing", None)
    with pytest.raises(MismatchError, match=rf"does not fit the config that it takes.\n  met:  .*{told} .*donor"):
        merge_recipe(content, tmp_path / "out")
    if "intermediate_size" in changes:
        first = [{"sources": [{"model": str(donor), "layer_range": [0, 1]}]}, *slices]
        with pytest.raises(MismatchError, match=told):
            merge_recipe({"merge_method": "passthrough", "slices": first}, tmp_path / "out")


def test_a_base_without_a_tokenizer_takes_the_one_that_the_others_share(places, tmp_path):
    folder = places("qwen2")
    bare = shutil.copytree(folder / BASE, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    content = recipe(folder, "task_arithmetic", base=False, each={"weight": 1.0}, base_model=str(bare), chat_template="chatml")
    merge_recipe(content, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / A / "tokenizer.json").read_bytes()
    assert "im_start" in (tmp_path / "out" / "chat_template.jinja").read_text()


@pytest.mark.parametrize("shard_bytes", [files.SHARD_BYTES, 20_000])
def test_files_that_a_user_put_beside_a_merge_are_not_lost(places, tmp_path, shard_bytes):
    content, out = recipe(places("qwen2"), "linear", base=False, each={"weight": 1.0}), tmp_path / "out"
    told = merge_recipe(content, out, shard_bytes=shard_bytes)
    assert told["files"] == sorted(path.name for path in out.iterdir())
    merge_recipe(content, out, seed=7)  # an earlier merge alone is replaced
    (out / "notes.md").write_text("mine")
    (out / "scores").mkdir()
    with pytest.raises(StorageError, match=r"that the merge there did not write.\n  met:  .*out: notes.md, scores\n  mend: move them"):
        merge_recipe(content, out)
    assert (out / "notes.md").read_text() == "mine"


def test_no_merge_takes_the_place_of_what_it_is_made_of(places, tmp_path):
    folder, out = places("qwen2"), tmp_path / "out"
    merge_recipe(recipe(folder, "linear", base=False, each={"weight": 1.0}), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for place, models in ((out, [A, str(out)]), (tmp_path / "link", [str(out)]), (out, [str(tmp_path / "link"), A])):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(out)
        with pytest.raises(StorageError, match=r"made of.\n  met:  .*, where .*(out|link) lies\n  mend: choose another folder"):
            merge_recipe(recipe(folder, "linear", base=False, models=models, each={"weight": 1.0}), place)
    inner = shutil.copytree(folder / B, out / "inner")
    with pytest.raises(StorageError, match="did not write"):
        merge_recipe(recipe(folder, "linear", base=False, models=[str(inner)], each={"weight": 1.0}), out)
    shutil.rmtree(inner)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    merge_recipe(recipe(folder, "linear", base=False, models=[str(out)], each={"weight": 1.0}), out / "merged")  # inside it is beside it


def test_tied_and_untied_heads_are_told(places, tmp_path):
    tied, untied = places("llama", tie_word_embeddings=True), places("llama", tie_word_embeddings=False)
    content = recipe(tied, "linear", base=False, models=[A, str(untied / A)], each={"weight": 1.0})
    with pytest.raises(AsterismError, match="lm_head"):
        merge_recipe(content, tmp_path / "out")
    stored = state(tied / A)
    twin = tiny.save(tiny.tiny_model("llama", tie_word_embeddings=True), tmp_path / "twin")
    save_file(stored | {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}, twin / "model.safetensors", {"format": "pt"})
    pieces = Merge(run.Recipe.of(recipe(tied, "linear", base=False, models=[A, str(twin)], each={"weight": 1.0}))).pieces
    assert "lm_head.weight" not in [piece.name for piece in pieces]
    save_file(
        stored | {"lm_head.weight": torch.zeros_like(stored["model.embed_tokens.weight"])}, twin / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(MismatchError, match="ties"):
        merge_recipe(recipe(tied, "linear", base=False, models=[A, str(twin)], each={"weight": 1.0}), tmp_path / "out")


def test_a_stale_library_folder_is_not_needed(tmp_path):
    """A library opened from a folder merges with whatever method knows no base."""
    library = tiny.tiny_library(tmp_path / "library", "qwen2")
    mean = merge(Library.open(tmp_path / "library"), "uniform")
    parameters = [dict(library.model(name).named_parameters()) for name in library.names]
    for name, mine in mean.named_parameters():
        torch.testing.assert_close(mine, torch.stack([own[name] for own in parameters]).mean(0), atol=1e-6, rtol=1e-5)
