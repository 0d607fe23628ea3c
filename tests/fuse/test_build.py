"""Fusion from end to end: what is written, what stays, resumption, the control, stages, and every refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from asterism.core.errors import DataError, MismatchError, SettingsError, StaleError, StorageError, UnsupportedError
from asterism.fuse import build
from asterism.fuse.build import _named, show_alignment
from asterism.fuse.recipe import Recipe
from asterism.fuse.replay import template_at
from asterism.fuse.settings import FusionSettings
from asterism.fuse.stages import alignments, fuse_recipe
from asterism.models import engine
from asterism.models.adapters import read_adapter, with_lora
from asterism.models.anatomy import anatomy_of
from asterism.models.examples import Example
from asterism.models.settings import TrainingSettings
from tests import tiny
from tests.fuse import small
from tests.fuse.small import DATA, Small

IDS = torch.tensor([[5, 17, 250, 3, 90, 41], [8, 8, 120, 300, 2, 61]])


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Small:
    """A fusion `out` and its control; looked at and not written to."""
    here = small.made(tmp_path_factory.mktemp("done"))
    before = contents(here.root)
    here.fuse("out")
    here.control("control")
    after = contents(here.root)
    assert {name: after.get(name) for name in before} == before  # what went in stays, byte for byte
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"out", "control"}
    return here


@pytest.fixture
def here(done, tmp_path) -> Small:
    """A copy of it."""
    shutil.copytree(done.root, tmp_path / "here")
    return Small(tmp_path / "here")


def factors(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


def told(folder):
    return json.loads((Path(folder) / "fusion.json").read_text())


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def interrupted_at(monkeypatch, step):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(engine._Steps, "on_step_end", on_step_end)


def test_only_the_targets_b_changes(done):
    out, was = factors(done.root / "out"), factors(done.root / "target")
    assert out.keys() == was.keys()
    changed = {name for name in out if not torch.equal(out[name], was[name])}
    assert changed
    assert all("lora_B" in name for name in changed)
    assert (done.root / "out" / "adapter_config.json").read_bytes() == (done.root / "target" / "adapter_config.json").read_bytes()


def test_peft_loads_it_onto_the_backbone(done):
    from peft import PeftModel

    adapter = read_adapter(done.root / "out")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(done.root / "llama"), adapter.folder).eval()
    merged = AutoModelForCausalLM.from_pretrained(done.root / "llama")
    parameters = dict(merged.named_parameters())
    with torch.no_grad():
        for parameter, change in adapter.fitted(anatomy_of(merged), merged.base_model_prefix).changes.items():
            parameters[parameter] += change.up @ change.down
        torch.testing.assert_close(adapted(IDS).logits, merged(IDS).logits, atol=1e-4, rtol=1e-4)


def test_the_record_tells_what_was_made_from_what(done):
    record = told(done.root / "out")
    assert record["settings"]["width"] == 16
    assert record["training"]["steps"] == 6
    assert record["target"]["base"] == "org/llama"
    assert {name: (facts["family"], facts["rank"]) for name, facts in record["sources"].items()} == {
        "gpt2": ("gpt2", 5),
        "qwen2": ("qwen2", 6),
    }
    assert record["openness"].keys() == {"gpt2", "qwen2"}
    assert all(0 <= each["open"] <= 1 for each in record["openness"].values())
    assert {"block", "function", "norm_ratio", "condition_before", "condition_after"} <= record["slots"][0].keys()
    assert max(slot["norm_ratio"] for slot in record["slots"]) <= 1 + 1e-5
    assert record["examples"] == {"learnt": 10, "held_out": 3}
    measured = [entry["held_out_loss"] for entry in record["history"] if "held_out_loss" in entry]
    assert record["start_loss"] == measured[0]
    assert record["held_out_loss"] == min(measured)
    assert record["alignment"]["pairs"]
    card = (done.root / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
    assert "HeteroFusion" in card


def test_the_first_measurement_is_the_targets_own(done):
    """Zero-initialised: at step 0 the fused model is the target with its adapter, to the bit that the loss shows."""
    record = json.loads((done.root / "control" / "training.json").read_text())
    assert told(done.root / "out")["start_loss"] == next(e["held_out_loss"] for e in record["history"] if "held_out_loss" in e)


def test_fusing_lowers_the_loss(here):
    here.fuse("long", steps=16, schedule="constant", held_out=0, save_every=100)
    losses = [entry["loss"] for entry in told(here.root / "long")["history"]]
    assert sum(losses[-4:]) < 0.98 * sum(losses[:4])


def test_fusion_and_control_see_the_same_batches(here, monkeypatch):
    seen: list[list[int]] = []
    original = engine._Trainer.training_step

    def watched(self, model, inputs, num_items_in_batch=None):
        seen.append(inputs["input_ids"].tolist())
        return original(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(engine._Trainer, "training_step", watched)
    here.fuse("short", steps=3)
    first = list(seen)
    seen.clear()
    here.control("like it", steps=3)
    assert len(first) == 6
    assert first == seen


def test_the_control_trains_both_factors_or_b_alone(here):
    was = factors(here.root / "target")
    both, ups = (factors(here.control(f"control {only}", up_only=only, steps=2, held_out=0).folder) for only in (False, True))
    assert all(not torch.equal(was[name], both[name]) for name in was)
    assert all(torch.equal(was[name], ups[name]) == ("lora_A" in name) for name in was)


def test_with_a_free_the_targets_a_changes_too(here):
    out, was = factors(here.fuse("free", settings={"free_down": True}, steps=2, held_out=0).folder), factors(here.root / "target")
    assert {name.split(".")[-2] for name in out if not torch.equal(out[name], was[name])} == {"lora_A", "lora_B"}


def test_an_interrupted_fusion_resumes_to_the_same_bits(here, monkeypatch):
    (here.root / "out").rename(here.root / "whole")
    with monkeypatch.context() as patch:
        interrupted_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            here.fuse("out")
    assert not (here.root / "out").exists()
    with pytest.raises(StaleError, match="other sources"):
        here.fuse("out", sources=list(here.sources.values())[1:])
    assert same(factors(here.fuse("out").folder), factors(here.root / "whole"))
    assert told(here.root / "out")["history"] == told(here.root / "whole")["history"]
    assert not same(factors(here.fuse("other", seed=1).folder), factors(here.root / "whole"))


def test_other_arithmetic_and_ablations_resume_too(here, monkeypatch):
    options = dict(bf16=True, settings={"gate": False, "regulariser": 0}, held_out=0)
    whole = here.fuse("whole", **options)
    assert told(whole.folder)["openness"] == {}
    with monkeypatch.context() as patch:
        interrupted_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            here.fuse("half", **options)
    assert same(factors(here.fuse("half", **options).folder), factors(whole.folder))


def test_a_finished_fusion_is_not_repeated_and_another_is_refused(here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_trainer", None)  # would fail if training began
        here.fuse("out")
    for changes, why in (
        (dict(settings={"alpha": 0.5}), "other fusion settings"),
        (dict(sources=dict(list(here.sources.items())[:1])), "other sources"),
        (dict(steps=7), "steps was 6, is 7"),
        (dict(held_out=0.5), "other texts, other held-out examples"),
    ):
        with pytest.raises(StorageError) as caught:
            here.fuse("out", **changes)
        assert caught.value.met == f"{here.root / 'out'}, trained otherwise: {why}"


def test_sources_in_a_list_take_the_names_of_their_folders(here):
    gpt2 = (tiny.tiny_config("gpt2"), here.root / "gpt2")  # a config may be given as such
    here.fuse("list", sources=[gpt2, here.sources["qwen2"], gpt2], steps=1, held_out=0)
    assert list(told(here.root / "list")["sources"]) == ["gpt2", "qwen2", "gpt2 2"]
    assert list(_named([("a", "x 2"), ("b", "x"), ("c", "x"), ("d", "y/x")])) == ["x 2", "x", "x 3", "x 4"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_it_trains_on_cuda(here):
    out, was = factors(here.fuse("on cuda", device="cuda", steps=2).folder), factors(here.root / "target")
    assert {name.split(".")[-2] for name in out if not torch.equal(out[name], was[name])} == {"lora_B"}


def test_a_fresh_target_learns_too(here):
    fresh = with_lora(tiny.tiny_model("llama"), rank=2, alpha=4, base="org/llama")
    fresh.save_pretrained(here.root / "fresh")
    was = factors(here.root / "fresh")
    assert not any(tensor.any() for name, tensor in was.items() if "lora_B" in name)
    out = factors(here.fuse("from fresh", target=(here.root / "llama", here.root / "fresh"), steps=1, held_out=0).folder)
    assert any(tensor.any() for name, tensor in out.items() if "lora_B" in name)
    assert {slot["norm_ratio"] for slot in told(here.root / "from fresh")["slots"]} == {None}
    assert f"It changes {len(told(here.root / 'from fresh')['slots'])} modules." in (here.root / "from fresh" / "README.md").read_text()


def test_layers_may_be_paired_by_what_both_backbones_make_of_the_texts(here, monkeypatch):
    tiny.save(tiny.tiny_model("gpt2"), here.root / "whole gpt2")
    source = {"gpt2": (here.root / "whole gpt2", here.root / "gpt2")}
    read: list[list[str]] = []
    original = build.layer_similarity
    monkeypatch.setattr(build, "layer_similarity", lambda to, source, texts: read.append(list(texts)) or original(to, source, texts))
    here.fuse("cka", sources=source, settings={"layers": "cka"}, steps=1)
    layers = told(here.root / "cka")["alignment"]["layers"]
    assert len(layers["gpt2"]) == 3
    settings = FusionSettings(**small.SETTINGS, layers="cka")
    shown = show_alignment(here.target, source, settings, DATA, TrainingSettings(**small.TRAINING), held_out=0.25).to_dict()
    assert {source: {str(to): block for to, block in own.items()} for source, own in shown["layers"].items()} == layers
    assert read[0] == read[1]  # what is shown is what a fusion does: the examples that it learns from
    assert len(read[0]) == 10
    here.fuse("cka", sources=source, settings={"layers": "cka"}, steps=1)
    assert len(read) == 2  # finished: nothing is compared again
    tiny.save(tiny.tiny_model("gpt2", seed=5), here.root / "whole gpt2")
    with pytest.raises(StorageError, match="source models"):
        here.fuse("cka", sources=source, settings={"layers": "cka"}, steps=1)
    with pytest.raises(SettingsError, match="layers: cka needs the similarity of the layers"):
        show_alignment(here.target, source, settings)
    with pytest.raises(SettingsError, match="layers: cka reads both backbones"):
        here.fuse("other", settings={"layers": "cka"}, steps=1)


def test_stages_follow_one_another(here):
    root = here.root
    sources = [{"name": name, "config": str(config), "adapter": str(adapter)} for name, (config, adapter) in here.sources.items()]
    training = {**small.TRAINING, "steps": 2}
    content = {
        "target": {"model": "llama", "adapter": "target"},
        "settings": small.SETTINGS,
        "training": training,
        "held_out": 0,
        "stages": [{"name": "one", "sources": sources[:1], "data": "rows.jsonl"}, {"sources": sources[1:], "data": ["rows.jsonl"]}],
    }
    found = fuse_recipe(Recipe.of(content, root), root / "staged", device="cpu")
    assert list(found) == ["one", "stage-2"]
    first = root / "staged.stages" / "one"
    assert found["one"]["target"]["adapter"] == str(root / "target")
    assert found["stage-2"]["target"]["adapter"] == str(first)
    start, middle, end = factors(root / "target"), factors(first), factors(root / "staged")
    assert not same(start, middle)
    assert not same(middle, end)
    assert list(alignments(Recipe.of(content, root))) == ["one", "stage-2"]


def test_neither_target_nor_sources_are_written_to(here):
    for out in ("target", "target/inside", "llama/inside", "gpt2/inside", "."):
        with pytest.raises(StorageError, match="The output would lie in or over what it is made from"):
            here.fuse(out)
    with pytest.raises(StorageError, match="The output would lie in or over"):
        here.control("target")


def test_empty_replay_data(here):
    (here.root / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="The replay data is empty"):
        here.fuse("out", data=[])
    with pytest.raises(DataError, match=r"There are no examples.\n  met:  .*none.jsonl"):
        here.fuse("out", data=here.root / "none.jsonl")
    with pytest.raises(DataError, match=r"A row is no example.\n  met:  row 2 holds question"):
        here.fuse("out", data=[DATA[0], {"question": "who?"}])
    with pytest.raises(DataError, match="Too few examples to hold some out"):
        here.fuse("out", data=DATA[:1])
    with pytest.raises(DataError, match="Held-out examples are among the training examples"):
        here.fuse("out", held_out=DATA[:2])


def test_replay_data_in_several_forms(here):
    mixed = [here.root / "rows.jsonl", Example("a", "b"), {"prompt": "c", "response": "d"}]
    here.fuse("mixed", data=mixed, held_out=[Example("e", "f")], steps=1)
    assert told(here.root / "mixed")["examples"] == {"learnt": len(DATA) + 2, "held_out": 1}


def test_an_adapter_of_another_base(here):
    config = here.root / "target" / "adapter_config.json"
    config.write_text(config.read_text().replace("org/llama", "org/other"))
    with pytest.raises(MismatchError, match=r"A LoRA is of another base.\n  met:  org/other"):
        here.fuse("out")
    with pytest.raises(MismatchError, match="A LoRA is of another base: its shapes differ"):
        here.fuse("out", sources={"odd": (here.root / "llama", here.root / "qwen2")})


def test_unequal_chat_templates(here):
    tiny.tiny_tokenizer().save_pretrained(here.root / "target")
    here.fuse("same", steps=1, held_out=0)
    (here.root / "target" / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(MismatchError) as caught:
        here.fuse("other")
    assert "The target's model and adapter have unequal chat templates" in str(caught.value)
    assert caught.value.met == f"{here.root / 'llama'}: none; {here.root / 'target'}: '{{{{ messages }}}}'"
    with pytest.raises(MismatchError, match="unequal chat templates"):
        here.control("out")
    (here.root / "target" / "chat_template.jinja").unlink()
    several = {"chat_template": [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]}
    (here.root / "target" / "tokenizer_config.json").write_text(json.dumps(several))
    assert template_at(here.root / "target") == {"default": "a", "tools": "b"}  # as a tokenizer holds them


def test_nothing_that_pairs(here):
    tiny.save_lora(tiny.tiny_model("qwen2"), here.root / "mlp", 5, target_modules=["up_proj"])
    tiny.save_lora(tiny.tiny_model("llama"), here.root / "q alone", 6, target_modules=["q_proj"], base="org/llama")
    (here.root / "three.json").write_text(tiny.tiny_model("qwen2").config.to_json_string())
    with pytest.raises(DataError) as caught:
        here.fuse(
            "other", target=(here.root / "llama", here.root / "q alone"), sources={"mlp": (here.root / "three.json", here.root / "mlp")}
        )
    assert caught.value.wrong == "No module of a source pairs with the target's."
    assert "q in blocks 0-2" in str(caught.value.met)
    assert "mlp: up in blocks 0-2" in str(caught.value.met)


def test_sources_that_cannot_be_read(here):
    tensors = factors(here.root / "gpt2")
    name = next(iter(tensors))
    for folder, tensor, error, why in (
        ("nan", torch.full_like(tensors[name], torch.nan), DataError, "A weight is not finite"),
        ("zero", None, DataError, "there is nothing to transfer"),
    ):
        shutil.copytree(here.root / "gpt2", here.root / folder)
        own = {key: torch.zeros_like(value) for key, value in tensors.items()} if tensor is None else {**tensors, name: tensor}
        save_file(own, here.root / folder / "adapter_model.safetensors")
        with pytest.raises(error, match=why):
            here.fuse("out", sources={"odd": (here.sources["gpt2"][0], here.root / folder)})
    shutil.copytree(here.root / "gpt2", here.root / "dora")
    config = json.loads((here.root / "dora" / "adapter_config.json").read_text()) | {"use_dora": True}
    (here.root / "dora" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="DoRA"):
        here.fuse("out", sources={"odd": (here.sources["gpt2"][0], here.root / "dora")})
    (here.root / "dora" / "adapter_config.json").unlink()
    with pytest.raises(StorageError, match="A file is missing"):
        here.fuse("out", sources={"odd": (here.sources["gpt2"][0], here.root / "dora")})
    with pytest.raises(DataError, match="There is nothing to fuse"):
        here.fuse("out", sources=[])
