"""Checkpoints: headers at opening, values when read, and every kind of damage told by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from asterism.core.errors import DataError, StorageError, UnknownName, UnsupportedError
from asterism.models.checkpoints import Checkpoint


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(1)
    return {"a.weight": torch.randn(3, 4, generator=generator), "a.bias": torch.randn(3, generator=generator).to(torch.bfloat16)}


def sharded(folder, tensors):
    shards = {f"model-{i + 1:05d}-of-{len(tensors):05d}.safetensors": name for i, name in enumerate(tensors)}
    for shard, name in shards.items():
        save_file({name: tensors[name]}, folder / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, name in shards.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return list(shards)


@pytest.mark.parametrize("shards", [False, True])
def test_a_checkpoint_gives_what_was_saved(tmp_path, tensors, shards):
    sharded(tmp_path, tensors) if shards else save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.names) == set(tensors)
    assert len(checkpoint.files) == (2 if shards else 1)
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        assert torch.equal(checkpoint.tensor(name), tensor)
        assert torch.equal(checkpoint.tensor(name, dtype=torch.float64), tensor.double())
    with pytest.raises(UnknownName, match=r"did you mean 'a.weight'"):
        checkpoint.tensor("a.weigth")


def test_opening_reads_no_weights(tmp_path, tensors):
    """A NaN is found when its tensor is read, not before; the other tensors stay usable."""
    tensors["a.weight"][1, 2] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert torch.equal(checkpoint.tensor("a.bias"), tensors["a.bias"])
    with pytest.raises(DataError, match=r"a\.weight") as caught:
        checkpoint.tensor("a.weight")
    assert "not finite" in str(caught.value)


def test_infinity_is_refused_and_so_is_overflow_in_a_narrow_dtype(tmp_path):
    save_file({"a": torch.tensor([1.0, float("-inf")]), "b": torch.tensor([1e6])}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(DataError, match="not finite"):
        checkpoint.tensor("a")
    assert checkpoint.tensor("b").item() == 1e6
    with pytest.raises(DataError, match=r"does not fit in torch.float16"):
        checkpoint.tensor("b", dtype=torch.float16)


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_a_truncated_file_is_named(tmp_path, tensors, keep):
    save_file(tensors, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:keep])
    with pytest.raises(StorageError, match=r"damaged.*\n.*model.safetensors"):
        Checkpoint.open(tmp_path)


def test_a_corrupt_header_is_named(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[8:20] = b"\xff" * 12
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        Checkpoint.open(tmp_path)


def test_a_missing_shard_is_named(tmp_path, tensors):
    shards = sharded(tmp_path, tensors)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(StorageError, match=rf"missing(.|\n)*{shards[1]}"):
        Checkpoint.open(tmp_path)


def test_a_shard_without_its_tensor_is_named(tmp_path, tensors):
    shards = sharded(tmp_path, tensors)
    save_file({"other": torch.ones(1)}, tmp_path / shards[0])
    with pytest.raises(StorageError, match=rf"a.weight in .*{shards[0]}"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/tmp/x.safetensors", "..", "", "sub/x.safetensors", "a\\b"])
def test_a_shard_cannot_leave_its_folder(tmp_path, shard):
    (tmp_path / "c").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    (tmp_path / "c" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(StorageError, match="outside its checkpoint"):
        Checkpoint.open(tmp_path / "c")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_told(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(StorageError, match="damaged"):
        Checkpoint.open(tmp_path)


def test_pickles_are_never_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UnsupportedError, match=r"pytorch_model.bin(.|\n)*save_pretrained"):
        Checkpoint.open(tmp_path)


def test_no_weights_and_no_folder(tmp_path):
    with pytest.raises(StorageError, match=r"no model\.safetensors"):
        Checkpoint.open(tmp_path)
    with pytest.raises(StorageError, match="no such checkpoint folder"):
        Checkpoint.open(tmp_path / "absent")


def test_quantised_codes_are_refused(tmp_path):
    save_file({"a": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match="I8"):
        Checkpoint.open(tmp_path).tensor("a")
