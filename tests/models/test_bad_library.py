"""Bad libraries: each is one clear error that names the field, tensor or file, and nothing on disk changes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from asterism.core import storage
from asterism.core.errors import AsterismError, DataError, MismatchError, SettingsError, StorageError, UnknownName, UnsupportedError
from asterism.models.library import Library
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Libraries made once; tests damage copies."""
    folder = tmp_path_factory.mktemp("made")
    tiny.tiny_library(folder / "gpt2", names=("medical", "legal"))
    tiny.tiny_library(folder / "llama", "llama", names=("medical",))
    tiny.save_lora(tiny.tiny_model("gpt2"), folder / "lora", 3)
    return folder


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made / "gpt2", tmp_path / "library")


def retensored(folder, change, file="model.safetensors"):
    save_file(change(load_file(folder / file)), folder / file, {"format": "pt"})


def reconfigured(folder, file="config.json", **fields):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(root, error, *told):
    """Opening fails with all of `told`, and so does adding the damaged folder to a sound library, which stays as it was."""
    with pytest.raises(error) as caught:
        Library.open(root)
    message = str(caught.value)
    assert all(part in message for part in told), message
    assert [line.split(":")[0] for line in message.splitlines()[1:]] == ["  met", "  mend"]
    (root / "library.json").write_text(json.dumps({"format_version": 1, "generalist": "generalist", "specialists": []}))
    before = (root / "library.json").read_text()
    with pytest.raises(error):
        Library.open(root).add("medical", "medical")
    assert (root / "library.json").read_text() == before
    (root / "library.json").unlink()
    with pytest.raises(error):
        Library.create(root, "generalist", {"medical": "medical"})
    assert not (root / "library.json").exists()


@pytest.mark.parametrize(
    ("field", "value"), [("n_head", 4), ("activation_function", "relu"), ("layer_norm_epsilon", 1e-3), ("tie_word_embeddings", False)]
)
def test_another_architecture_names_the_field(root, field, value):
    reconfigured(root / "medical", **{field: value})
    refused(root, MismatchError, field, repr(value), "medical")


def test_another_family_and_another_size_are_refused(root, made):
    shutil.rmtree(root / "medical")
    shutil.copytree(made / "llama" / "medical", root / "medical")
    refused(root, MismatchError, "model_type is 'llama'", "'gpt2' in the generalist")


def test_another_vocabulary_is_refused(root):
    bigger = tiny.tiny_model("gpt2", vocab_size=330)
    shutil.rmtree(root / "medical")
    bigger.save_pretrained(root / "medical")
    refused(root, MismatchError, "vocab_size is 330", "320 in the generalist")


def test_a_tensor_of_another_shape_is_named(root):
    retensored(root / "medical", lambda tensors: {**tensors, "transformer.wpe.weight": torch.zeros(7, tiny.HIDDEN)})
    refused(root, MismatchError, "transformer.wpe.weight", "[7, 16]", "[128, 16]")


def test_a_missing_and_an_extra_tensor_are_named(root):
    name = "transformer.h.2.mlp.c_fc.weight"
    retensored(root / "medical", lambda tensors: {key: value for key, value in tensors.items() if key != name})
    retensored(root / "legal", lambda tensors: {**tensors, "transformer.h.2.mlp.c_gate.weight": torch.zeros(1)})
    with pytest.raises(MismatchError, match=r"c_gate\.weight"):
        Library.create(root / "new", root / "generalist", {"legal": root / "legal"})
    refused(root, MismatchError, "lacks", name)


def test_a_tied_head_that_differs_from_its_embedding_is_met_when_read_whole(root):
    retensored(root / "medical", lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"] + 1})
    library = Library.open(root)
    with pytest.raises(MismatchError, match=r"lm_head\.weight"):
        library.model("medical")
    with pytest.raises(MismatchError, match=r"lm_head\.weight"):
        Library.create(root / "new", root / "generalist", {"medical": root / "medical"})
    assert not (root / "new").exists()


@pytest.mark.parametrize("part", ["vocabulary", "added tokens", "merges", "pre_tokenizer"])
def test_another_tokenizer_names_the_part(root, part):
    path = root / "medical" / "tokenizer.json"
    content = json.loads(path.read_text())
    if part == "vocabulary":
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        told = "'a' is"
    elif part == "added tokens":
        content["added_tokens"].append({**content["added_tokens"][0], "id": 320, "content": "<pad>"})
        told = "<pad>"
    elif part == "merges":
        content["model"]["merges"].reverse()
        told = "merges differs"
    else:
        content["pre_tokenizer"] = {"type": "Whitespace"}
        told = "pre_tokenizer"
    path.write_text(json.dumps(content))
    refused(root, MismatchError, part, told, "medical")


def test_a_damaged_tokenizer_and_a_missing_one_are_told(root):
    (root / "medical" / "tokenizer.json").write_text("{")
    refused(root, StorageError, "tokenizer.json")
    for file in (root / "generalist").glob("tokenizer*"):
        file.unlink()
    library = Library.create(root / "new", root / "generalist", {})
    with pytest.raises(StorageError, match="tokenizer is missing"):
        _ = library.tokenizer
    shutil.copy(root / "legal" / "tokenizer.json", root / "generalist")
    assert len(library.tokenizer) == 320


def test_a_tokenizer_larger_than_the_embedding_is_refused(root):
    content = json.loads((root / "generalist" / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 320, "content": "<pad>"})
    (root / "generalist" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(MismatchError, match=r"'<pad>' is 320(.|\n)*320 rows"):
        _ = Library.create(root / "new", root / "generalist", {}).tokenizer


@pytest.mark.parametrize("keep", [0, 100, -8])
def test_truncated_weights_are_named(root, keep):
    path = root / "medical" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(root, StorageError, "damaged", str(path))


def test_pickled_weights_are_not_read(root):
    (root / "medical" / "model.safetensors").rename(root / "medical" / "pytorch_model.bin")
    refused(root, UnsupportedError, "pytorch_model.bin", "save_pretrained")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("folder", ["medical", "generalist"])
def test_weights_that_are_not_finite_are_met_when_read(root, value, folder):
    name = "transformer.h.1.ln_2.weight"

    def spoilt(tensors):
        tensors[name][3] = value
        return tensors

    retensored(root / folder, spoilt)
    library = Library.open(root)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        library.model("medical")
    (root / "library.json").unlink()
    with pytest.raises(DataError, match=folder):
        Library.create(root, "generalist", {"legal": "legal", "medical": "medical"})
    assert not (root / "library.json").exists()
    if folder == "medical":
        sound = Library.create(root, "generalist", {"legal": "legal"})
        with pytest.raises(DataError, match="not finite"):
            sound.add("medical", "medical")
        assert sound.names == Library.open(root).names == ("legal",)
        with pytest.raises(UnknownName):
            sound.model("medical")


def test_nan_in_an_adapter_is_met_when_read(root, made):
    shutil.copytree(made / "lora", root / "lora")
    retensored(root / "lora", lambda tensors: {key: value * float("nan") for key, value in tensors.items()}, "adapter_model.safetensors")
    with pytest.raises(DataError, match="lora_"):
        Library.open(root).add("science", "lora")
    assert Library.open(root).names == ("medical", "legal")


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "a\\b", "..", ".hidden", "general", "Generalist", "a\nb", " medical", "-x", "a=b", "x" * 101, 3]
)
def test_unusable_names_are_refused(root, name):
    library = Library.open(root)
    with pytest.raises(SettingsError):
        library.add(name, "medical")
    with pytest.raises(SettingsError):
        Library.create(root / "new", root / "generalist", {name: root / "medical"})
    assert not (root / "new").exists()
    assert library.names == ("medical", "legal")


def test_a_name_cannot_be_given_twice_and_an_unknown_one_offers_the_nearest(root):
    library = Library.open(root)
    with pytest.raises(SettingsError, match="already"):
        library.add("legal", "medical")
    for ask in (library.model, library.digest, library.remove, lambda name: library.change(name, "transformer.wpe.weight")):
        with pytest.raises(UnknownName, match="did you mean 'medical'"):
            ask("medicine")
    for ask in (library.tensor, lambda parameter: library.change("medical", parameter)):
        with pytest.raises(UnknownName, match="did you mean"):
            ask("transformer.wpe.weights")


def manifest(*specialists, **fields) -> str:
    entries = [{"name": name, "source": source} for name, source in specialists]
    return json.dumps({"format_version": 1, "generalist": "generalist", "specialists": entries, **fields})


MANIFESTS = {
    "[]": "not an object",
    "{": "damaged",
    manifest(format_version=2): "another version",
    manifest(generalist=""): "generalist is not a source",
    manifest(specialists={}): "specialists is not a list",
    manifest(specialists=["medical"]): "not a name with a source",
    manifest(("general", "medical")): "something else",
    manifest(("a", "medical"), ("a", "legal")): "twice",
    manifest(("a", "../secret")): "leaves its folder",
    manifest(("a", "absent")): "missing",
    manifest(generalist="/absent/folder"): "/absent/folder",
}


@pytest.mark.parametrize("text", MANIFESTS)
def test_a_bad_manifest_is_told(root, text):
    shutil.copytree(root / "medical", root.parent / "secret")
    (root / "library.json").write_text(text)
    with pytest.raises(AsterismError, match=MANIFESTS[text]):
        Library.open(root)


def test_a_link_out_of_the_library_is_refused(root):
    shutil.move(root / "medical", root.parent / "outside")
    (root / "medical").symlink_to(root.parent / "outside")
    with pytest.raises(StorageError, match="leaves its folder"):
        Library.open(root)


def test_no_library_and_one_already_there(root, tmp_path):
    with pytest.raises(StorageError, match="no library here"):
        Library.open(tmp_path / "absent")
    before = (root / "library.json").read_text()
    with pytest.raises(StorageError, match="already"):
        Library.create(root, "generalist", {})
    assert (root / "library.json").read_text() == before
    with pytest.raises(SettingsError, match="max_models"):
        Library.open(root, max_models=0)


def test_a_full_disk_leaves_the_library_as_it_was(root, monkeypatch):
    library = Library.open(root)
    before = (root / "library.json").read_text()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_sync_one", full)
    with pytest.raises(StorageError, match="No space left"):
        library.add("science", "medical")
    with pytest.raises(StorageError, match="No space left"):
        library.remove("legal")
    monkeypatch.undo()
    assert (root / "library.json").read_text() == before
    assert library.names == Library.open(root).names == ("medical", "legal")
    assert not list(root.glob(".library*"))


def test_configs_that_cannot_be_used_are_told(root):
    config = root / "medical" / "config.json"
    sound = config.read_text()
    for text, error, told in (
        ("{", StorageError, "damaged"),
        ("[]", StorageError, "damaged"),
        ('{"model_type": "no_such_model"}', UnsupportedError, "cannot be used"),
        ('{"auto_map": {"AutoConfig": "code.Config"}, "model_type": "mine"}', UnsupportedError, "cannot be used"),
        (json.dumps({**json.loads(sound), "quantization_config": {"quant_method": "gptq"}}), UnsupportedError, "unquantised"),
    ):
        config.write_text(text)
        with pytest.raises(error, match=told):
            Library.open(root)
    config.unlink()
    with pytest.raises(StorageError, match=r"config\.json is missing"):
        Library.open(root)


@pytest.fixture
def with_adapter(root, made):
    def make(base, generalist="generalist"):
        shutil.copytree(made / "lora", root / "lora", dirs_exist_ok=True)
        reconfigured(root / "lora", "adapter_config.json", base_model_name_or_path=base)
        return Library.create(root / "new", root / generalist, {"science": root / "lora"})

    return make


def test_a_lora_of_another_base_is_refused_with_the_mend(root, with_adapter):
    for base in ("gpt2", "org/other-generalist", str(root / "legal"), "/absent/medical"):
        with pytest.raises(MismatchError, match=r"another base(.|\n)*base_model_name_or_path") as caught:
            with_adapter(base)
        assert base in str(caught.value)
    assert not (root / "new").exists()


@pytest.mark.parametrize("kind", ["source", "basename", "copy", "hub-like", "unnamed"])
def test_a_lora_of_this_base_is_known_by_name_or_content(root, with_adapter, kind):
    shutil.copytree(root / "generalist", root.parent / "a copy")
    names = {
        "source": root / "generalist",
        "basename": "/absent/generalist",
        "copy": root.parent / "a copy",
        "hub-like": "org/generalist",
        "unnamed": None,
    }
    assert with_adapter(names[kind] and str(names[kind])).names == ("science",)


def test_a_lora_of_another_shape_or_family_is_refused(root, made, tmp_path):
    wider = tiny.tiny_model("gpt2", n_embd=32)
    tiny.save_lora(wider, root / "wide", 1)
    with pytest.raises(MismatchError, match=r"another base: its shapes differ(.|\n)*\[96, 32\]"):
        Library.create(root / "new", root / "generalist", {"science": root / "wide"})
    tiny.save_lora(tiny.tiny_model("llama"), root / "llama", 1)
    with pytest.raises(MismatchError, match=r"module that the generalist has not(.|\n)*down_proj"):
        Library.create(root / "new", root / "generalist", {"science": root / "llama"})
    with pytest.raises(UnsupportedError, match="generalist is an adapter"):
        Library.create(root / "new", root / "wide", {})
