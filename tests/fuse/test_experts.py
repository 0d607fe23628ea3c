"""Experts are read from a config and an adapter alone, cut by function; what cannot be an expert is told."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from asterism.core.errors import DataError, MismatchError, StorageError, UnsupportedError
from asterism.fuse.experts import open_expert
from asterism.models.adapters import read_adapter
from tests import tiny


def edited(folder, change):
    """Rewrite an adapter's tensors."""
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: change(name, tensor) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def made(tmp_path):
    """A config on disk and an adapter's folder."""

    def make(family="llama", **config):
        model = tiny.tiny_model(family)
        model.config.save_pretrained(tmp_path / "base")
        return tmp_path / "base", tiny.save_lora(model, tmp_path / "adapter", 3, base="base", **config)

    return make


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_slots_put_together_are_the_adapters_change(made, family):
    base, folder = made(family)
    assert [file.name for file in base.iterdir() if file.suffix == ".safetensors"] == []
    expert = open_expert(base, folder)
    changes = read_adapter(folder).changes
    assert set(expert.factors) == set(expert.slots)
    seen = set()
    for slot, (up, down) in expert.factors.items():
        name = slot.parameter if slot.parameter in changes else next(n for n in changes if slot.parameter.endswith(n))
        whole = changes[name].up @ changes[name].down
        torch.testing.assert_close(up @ down, slot.of(whole))
        assert (up.shape, down.shape) == ((slot.outputs, 2), (2, slot.inputs))
        seen.add(name)
    assert seen == set(changes)
    assert expert.rank == 2
    assert expert.name == "adapter"


@pytest.mark.parametrize(
    ("config", "scale"), [({"r": 4, "lora_alpha": 6}, 1.5), ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(4))]
)
def test_scales_are_taken_into_up_and_stored_leaves_them_out(made, config, scale):
    expert = open_expert(*made("llama", **config))
    slot = next(slot for slot in expert.slots if slot.function == "v")
    up, down = expert.stored(slot.parameter)
    torch.testing.assert_close(expert.factors[slot][0], scale * up)
    assert torch.equal(expert.factors[slot][1], down)


def test_a_config_file_and_a_config_do_as_well_as_a_folder(made):
    base, folder = made("phi3")
    one, two, three = (open_expert(each, folder) for each in (base, base / "config.json", tiny.tiny_config("phi3")))
    assert one.slots == two.slots == three.slots
    assert (one.n_blocks, one.hidden_size) == (3, 16)


def test_an_adapter_that_does_not_fit_its_config_is_refused(made):
    _, folder = made("llama")
    with pytest.raises(MismatchError, match="of another base: its shapes differ"):
        open_expert(tiny.tiny_config("llama", hidden_size=32), folder)
    with pytest.raises(MismatchError, match="a module that the generalist has not"):
        open_expert(tiny.tiny_config("gpt2"), folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_adapter_with_nan_is_refused(made, value):
    base, folder = made("llama")
    edited(folder, lambda name, tensor: torch.full_like(tensor, value) if "2.mlp.up_proj.lora_B" in name else tensor)
    with pytest.raises(DataError, match="not finite"):
        open_expert(base, folder)


def test_an_adapter_that_is_zero_has_nothing_to_transfer_but_may_be_a_fresh_target(made):
    base, folder = made("llama")
    edited(folder, lambda name, tensor: torch.zeros_like(tensor) if "lora_B" in name else tensor)
    with pytest.raises(DataError, match="there is nothing to transfer"):
        open_expert(base, folder)
    assert len(open_expert(base, folder, is_target=True).factors) == 21
    edited(folder, lambda name, tensor: torch.zeros_like(tensor))
    with pytest.raises(DataError, match="nothing that a fusion could change"):
        open_expert(base, folder, is_target=True)


def test_a_sources_modules_without_change_are_left_out(made):
    base, folder = made("llama")
    edited(folder, lambda name, tensor: torch.zeros_like(tensor) if "q_proj.lora_B" in name else tensor)
    assert {slot.function for slot in open_expert(base, folder).factors} == {"k", "v", "o", "gate", "up", "down"}


def test_an_adapter_of_the_head_alone_is_refused_and_a_head_beside_blocks_takes_no_part(made):
    base, folder = made("llama", target_modules=["lm_head"])
    with pytest.raises(DataError, match="nothing in the blocks"):
        open_expert(base, folder)


def test_the_head_takes_no_part(made):
    expert = open_expert(*made("llama", target_modules=["lm_head", "q_proj"]))
    assert expert.others == ("lm_head.weight",)
    assert {slot.function for slot in expert.factors} == {"q"}


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [({"use_dora": True}, UnsupportedError, "DoRA"), ({"r": 0}, MismatchError, "rank 0"), (None, StorageError, "adapter_config.json")],
)
def test_dora_rank_0_and_a_missing_config_are_refused(made, change, kind, told):
    base, folder = made("llama")
    path = folder / "adapter_config.json"
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(kind, match=told):
        open_expert(base, folder)


def test_a_missing_place_is_told(made, tmp_path):
    base, folder = made("llama")
    with pytest.raises(StorageError, match=r"config\.json is missing"):
        open_expert(tmp_path / "nowhere", folder)
    with pytest.raises(StorageError, match="No model lies there"):
        open_expert(base, tmp_path / "nowhere")
    with pytest.raises(StorageError, match="No model lies there"):
        open_expert("no such/place at/all", folder)


def test_of_a_source_on_the_hub_only_the_config_is_fetched(made, tmp_path, monkeypatch):
    import huggingface_hub

    base, folder = made("llama")
    asked = []

    def snapshot_download(name, *, revision=None, allow_patterns=None, local_files_only=False):
        asked.append((name, revision, allow_patterns))
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_expert("org/base@v1", folder).n_blocks == 3
    assert asked == [("org/base", "v1", ["config.json"])]


def test_a_config_may_have_any_name(made, tmp_path):
    base, folder = made("llama")
    (base / "config.json").rename(tmp_path / "backbone.json")
    assert open_expert(tmp_path / "backbone.json", folder).n_blocks == 3
