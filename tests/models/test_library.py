"""A library gives what transformers loads, shares what is equal, keeps its order, and reads no weights when opened."""

from __future__ import annotations

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from asterism.core.errors import MismatchError, StorageError, UnknownName
from asterism.models import digests, likeness
from asterism.models.changes import Dense, LowRank
from asterism.models.checkpoints import Checkpoint
from asterism.models.library import Library
from tests import tiny

IDS = torch.tensor([[5, 17, 250, 3, 90, 41]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def loaded(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_are_those_that_transformers_loads(tmp_path, family, dtype):
    """Bit for bit, buffers that no checkpoint stores (rotary frequencies, embedding scales) included."""
    tiny.tiny_library(tmp_path, family, names=("medical",))
    library = Library.open(tmp_path, dtype=dtype)
    for name, folder in ((None, "generalist"), ("medical", "medical")):
        ours, theirs = library.model(name), loaded(tmp_path / folder, dtype)
        assert torch.equal(logits(ours), logits(theirs))
        buffers = dict(theirs.named_buffers())
        assert all(torch.equal(buffer, buffers[key]) and buffer.dtype == buffers[key].dtype for key, buffer in ours.named_buffers())
        assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]  # tied weights stay tied
        assert not ours.training
        assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert not torch.equal(logits(library.model()), logits(library.model("medical")))
    assert library.anatomy.model_type == family
    assert library.dtype == dtype


def test_a_model_generates_with_its_own_generation_config(tmp_path):
    tiny.tiny_library(tmp_path, names=("medical", "legal"))
    GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=319).save_pretrained(tmp_path / "generalist")
    (tmp_path / "medical" / "generation_config.json").unlink()
    GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=319).save_pretrained(tmp_path / "legal")
    library = Library.open(tmp_path)
    assert [library.model(name).generation_config.max_new_tokens for name in (None, "medical", "legal")] == [3, 3, 2]
    assert library.model().generate(IDS).shape == (1, 9)
    reloaded = library.model("legal")
    reloaded.save_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(reloaded))


def test_equal_tensors_are_shared_and_changes_tell_only_what_differs(tmp_path):
    library = tiny.tiny_library(tmp_path, kind="mlp", names=("medical",))
    generalist, specialist = library.model(), library.model("medical")
    for name, parameter in specialist.named_parameters():
        change = library.change("medical", name)
        assert (library.anatomy.role_of(name) == "mlp") == isinstance(change, Dense)
        shared = parameter.data_ptr() == generalist.get_parameter(name).data_ptr()
        assert shared == (change is None)
        assert generalist.get_parameter(name).data_ptr() == library.tensor(name).data_ptr()
        if isinstance(change, Dense):
            assert torch.equal(change.tensor, parameter)
    assert library.change("medical", name) is None  # again, now without comparing


def test_a_lora_specialist_is_the_generalist_plus_its_delta_in_float32(tmp_path):
    tiny.tiny_library(tmp_path, "llama", kind="lora", names=("medical", "legal"))
    library = Library.open(tmp_path, dtype=torch.bfloat16)
    model, name = library.model("legal"), "model.layers.1.mlp.up_proj.weight"
    change = library.change("legal", name)
    assert isinstance(change, LowRank)
    assert (change.rank, change.up.dtype) == (3, torch.float32)
    stored = load_file(tmp_path / "legal" / "adapter_model.safetensors")
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    delta = 6 / 3 * stored[f"{stem}.lora_B.weight"] @ stored[f"{stem}.lora_A.weight"]
    want = (library.tensor(name).float() + delta).bfloat16()
    assert (model.get_parameter(name).float() - want.float()).abs().max() <= 2**-8 * want.float().abs().max()
    assert not torch.equal(model.get_parameter(name), library.tensor(name))
    norm = "model.norm.weight"
    assert library.change("legal", norm) is None
    assert model.get_parameter(norm).data_ptr() == library.tensor(norm).data_ptr()
    doubled = Library.open(tmp_path, dtype=torch.float64).change("legal", name)
    torch.testing.assert_close(doubled.delta(0), delta.double(), atol=1e-6, rtol=0)
    assert doubled.up.dtype == torch.float64


def test_order_addition_and_removal_are_kept(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("science", "medical"))
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2"), 5, 0.1), tmp_path / "later")
    library.add("legal", tmp_path / "later")
    assert library.names == Library.open(tmp_path).names == ("science", "medical", "legal")
    assert torch.equal(logits(library.model("legal")), logits(loaded(tmp_path / "later")))
    library.model("science")
    library.remove("science")
    assert library.names == Library.open(tmp_path).names == ("medical", "legal")
    assert (tmp_path / "science" / "model.safetensors").exists()
    with pytest.raises(UnknownName, match="medical"):
        library.model("science")
    library.add("science", "later")
    assert torch.equal(logits(library.model("science")), logits(library.model("legal")))


def test_what_another_process_changed_is_taken_over(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("science", "medical", "code"))
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2"), 5, 0.1), tmp_path / "later")
    library.model("code")
    other = Library.open(tmp_path)
    for name in ("medical", "code"):
        other.remove(name)
    for name in ("legal", "code"):
        other.add(name, "later")
    assert library.take_over(Library.open(tmp_path)) == (("medical", "code"), ("legal", "code"))
    assert library.names == ("science", "legal", "code")
    assert torch.equal(logits(library.model("code")), logits(loaded(tmp_path / "later")))
    assert library.take_over(Library.open(tmp_path)) == ((), ())
    with pytest.raises(UnknownName):
        library.model("medical")
    with pytest.raises(MismatchError, match="another generalist"):
        library.take_over(Library.create(tmp_path / "other", tmp_path / "later", {}))
    assert library.names == ("science", "legal", "code")


def test_threads_may_open_libraries_and_build_models_at_one_time(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("science",))
    want = logits(library.model("science"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: logits(Library.open(tmp_path).model("science")), range(12)))
    assert all(torch.equal(one, want) for one in found)


def test_a_library_may_be_moved_and_may_name_folders_elsewhere(tmp_path):
    tiny.tiny_library(tmp_path / "here", names=("medical",))
    elsewhere = shutil.copytree(tmp_path / "here" / "medical", tmp_path / "elsewhere")
    Library.open(tmp_path / "here").add("legal", elsewhere)
    manifest = json.loads((tmp_path / "here" / "library.json").read_text())
    assert manifest == {
        "format_version": 1,
        "generalist": "generalist",
        "specialists": [{"name": "medical", "source": "medical"}, {"name": "legal", "source": str(elsewhere)}],
    }
    shutil.move(tmp_path / "here", tmp_path / "there")
    library = Library.open(tmp_path / "there")
    assert torch.equal(logits(library.model("medical")), logits(library.model("legal")))
    assert library.generalist == str(tmp_path / "there" / "generalist")


def test_opening_reads_no_weights_and_creating_reads_all(tmp_path, monkeypatch):
    tiny.tiny_library(tmp_path, names=("medical", "legal"))
    read = []
    tensor = Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name, **how: read.append((self.folder.name, name)) or tensor(self, name, **how))
    library = Library.open(tmp_path)
    assert read == []
    library.tensor("transformer.wpe.weight")
    library.tensor("transformer.wpe.weight")
    assert read == [("generalist", "transformer.wpe.weight")]
    (tmp_path / "library.json").unlink()
    read.clear()
    Library.create(tmp_path, "generalist", {"medical": "medical"})
    assert set(read) == {(folder, name) for folder in ("generalist", "medical") for name in library.anatomy.shapes}


def test_few_models_stay_in_memory(tmp_path):
    tiny.tiny_library(tmp_path, names=("medical", "legal", "code"))
    library = Library.open(tmp_path, max_models=2)
    medical, legal = library.model("medical"), library.model("legal")
    assert library.model("medical") is medical
    library.model("code")  # legal was used longest ago
    assert library.model("medical") is medical
    assert library.model("legal") is not legal
    assert library.model() is library.model()


def test_a_fresh_model_may_be_overwritten(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("medical",))
    before = logits(library.model())
    fresh = library.fresh_model()
    assert torch.equal(logits(fresh), before)
    for parameter in fresh.parameters():
        parameter.zero_()
    assert torch.equal(logits(library.model()), before)
    assert torch.equal(logits(library.fresh_model()), before)
    assert fresh.lm_head.weight is fresh.transformer.wte.weight


def test_the_digest_is_of_the_content_and_weights_are_hashed_once(tmp_path, monkeypatch):
    library = tiny.tiny_library(tmp_path, names=("medical", "legal"))
    shutil.copytree(tmp_path / "generalist", tmp_path / "copy")
    library.add("same", "copy")
    first = {name: library.digest(name) for name in (None, *library.names)}
    assert first[None] == first["same"]
    assert len(set(first.values())) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in first.values())
    with monkeypatch.context() as patch:
        patch.setattr(digests, "file_digest", lambda path: pytest.fail(f"read {path} again"))
        assert {name: Library.open(tmp_path).digest(name) for name in first} == first
    tensors = load_file(tmp_path / "medical" / "model.safetensors")
    tensors["transformer.wpe.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "medical" / "model.safetensors", {"format": "pt"})  # of the same size
    assert library.digest("medical") != first["medical"]
    assert library.digest("legal") == first["legal"]
    (tmp_path / ".digests.json").write_text("{broken")
    assert library.digest("legal") == first["legal"]
    config = json.loads((tmp_path / "legal" / "config.json").read_text())
    (tmp_path / "legal" / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))
    assert library.digest("legal") != first["legal"]


def rewritten(folder: Path, change) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def test_names_without_prefix_old_buffers_and_a_stored_tied_head_are_understood(tmp_path):
    """The first gpt2 on the Hub has all three."""
    tiny.tiny_library(tmp_path, names=("medical",))
    before = logits(Library.open(tmp_path).model("medical"))

    def old(tensors):
        named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        mask = torch.ones(1, 1, 8, 8)
        named |= {f"h.{block}.attn.bias": mask.clone() for block in range(5)}
        named |= {f"h.{block}.attn.masked_bias": torch.tensor(-1e4) for block in range(5)}
        return named | {"lm_head.weight": named["wte.weight"].clone()}

    rewritten(tmp_path / "medical", old)
    rewritten(tmp_path / "generalist", old)
    library = Library.open(tmp_path)
    assert torch.equal(logits(library.model("medical")), before)
    rewritten(tmp_path / "medical", lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "wte.weight"})
    assert torch.equal(logits(Library.open(tmp_path).model("medical")), before)  # the head alone stands for both


def test_a_sharded_specialist_is_read(tmp_path):
    library = tiny.tiny_library(tmp_path, "llama", names=("medical",))
    loaded(tmp_path / "medical").save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    library.add("legal", "shards")
    assert torch.equal(logits(library.model("legal")), logits(library.model("medical")))


def test_fields_that_do_not_shape_the_model_may_differ(tmp_path):
    tiny.tiny_library(tmp_path, "llama", names=("medical",))
    path = tmp_path / "medical" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            {
                **config,
                "eos_token_id": 7,
                "use_cache": False,
                "attention_dropout": 0.1,
                "transformers_version": "4.40.0",
                "max_position_embeddings": 4096,
            }
        )
    )
    assert Library.open(tmp_path).names == ("medical",)


def test_tokenizer_files_may_differ_in_what_does_not_matter(tmp_path, monkeypatch):
    tiny.tiny_library(tmp_path, names=("medical",))
    path = tmp_path / "medical" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [" ".join(merge) if isinstance(merge, list) else merge.split(" ") for merge in content["model"]["merges"]]
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content))
    library = Library.open(tmp_path)
    parsed = []
    monkeypatch.setattr(likeness, "_tokenizing", lambda path: parsed.append(path) or {})
    library.add("legal", shutil.copytree(tmp_path / "medical", tmp_path / "legal"))
    assert parsed == []  # a file found alike is not parsed again
    for file in (tmp_path / "medical").glob("tokenizer*"):
        file.unlink()
    assert Library.open(tmp_path).names == ("medical", "legal")
    assert len(parsed) == 2
    assert Library.open(tmp_path).tokenizer("the patient")["input_ids"] == tiny.tiny_tokenizer()("the patient")["input_ids"]


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of folders: org/name lies in tmp_path/hub/name; snapshots are copied to a cache, as the client does."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    calls = []

    def snapshot_download(name, *, revision=None, allow_patterns=None, local_files_only=False):
        calls.append((name, revision, local_files_only))
        cached = tmp_path / "cache" / name.replace("/", "--") / SHA
        if not local_files_only and (tmp_path / "hub" / name).is_dir():
            assert not any(pattern.endswith((".bin", ".py", "*")) and pattern in ("*", "*.bin", "*.py") for pattern in allow_patterns)
            shutil.copytree(tmp_path / "hub" / name, cached, dirs_exist_ok=True)
        if not cached.is_dir():
            raise LocalEntryNotFoundError(f"no {name} here")
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_hub_ids_are_pinned_to_their_commit_and_opened_from_the_cache(tmp_path, hub):
    model = tiny.tiny_model("gpt2")
    tiny.save(model, tmp_path / "hub" / "org" / "base")
    tiny.save_lora(model, tmp_path / "hub" / "org" / "lora", 3, base="org/base")
    library = Library.create(tmp_path / "library", "org/base", {"medical": "org/lora@main"})
    manifest = json.loads((tmp_path / "library" / "library.json").read_text())
    assert manifest["generalist"] == f"hub:org/base@{SHA}"
    assert manifest["specialists"] == [{"name": "medical", "source": f"hub:org/lora@{SHA}"}]
    assert library.generalist == "org/base"
    assert ("org/lora", "main", False) in hub
    hub.clear()
    assert Library.open(tmp_path / "library").names == ("medical",)
    assert hub == [("org/base", SHA, True), ("org/lora", SHA, True)]
    (tmp_path / "cache" / "org--lora" / SHA / "adapter_model.safetensors").unlink()  # an interrupted download
    assert Library.open(tmp_path / "library").change("medical", "transformer.h.0.mlp.c_fc.weight") is not None
    assert hub[-1] == ("org/lora", SHA, False)


def test_what_is_neither_folder_nor_on_the_hub_is_told(tmp_path, hub):
    for source, told in (
        ("org/absent", "org/absent"),
        ("a/b/c", "No model lies there"),
        ("", "empty source"),
        (tmp_path / "x", "No model"),
    ):
        with pytest.raises(StorageError, match=told):
            Library.create(tmp_path / "library", source, {})
        assert not (tmp_path / "library" / "library.json").exists()
