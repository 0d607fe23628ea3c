"""Code that an `auto_map` names: it goes with a merge, or the merge says that it is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from asterism.merge.code import code_of
from asterism.merge.run import merge_recipe
from tests import tiny

MAP = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}


@pytest.fixture
def base(tmp_path) -> Path:
    """A model whose config and tokenizer name code, of which the config's lies there."""
    folder = tiny.save(tiny.tiny_model("qwen2"), tmp_path / "models--org--own" / "snapshots" / "abc")
    named(folder / "config.json", MAP | {"AutoModel": "org/other--modeling.Model"})
    named(folder / "tokenizer_config.json", {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]})
    (folder / "modeling_own.py").write_text("from .configuration_own import OwnConfig\n    from .layers import Own\nimport torch\n")
    (folder / "configuration_own.py").write_text("import .constants\nfrom .configuration_own import x\n")
    for name in ("layers", "constants", "train"):
        (folder / f"{name}.py").write_text("")
    return folder


def named(path: Path, auto_map: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))


def merged(base: Path, out: Path) -> tuple[dict, dict, dict]:
    told = merge_recipe({"merge_method": "passthrough", "models": [{"model": str(base)}]}, out)
    return told, *(json.loads((out / name).read_text()).get("auto_map", {}) for name in ("config.json", "tokenizer_config.json"))


def test_code_goes_with_the_config_that_names_it(base, tmp_path):
    local = shutil.copytree(base, tmp_path / "local")
    told, config, tokenizer = merged(local, tmp_path / "out")
    assert config == MAP | {"AutoModel": "org/other--modeling.Model"}
    copied = {"modeling_own.py", "configuration_own.py", "layers.py", "constants.py"}
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == copied <= set(told["files"])
    assert (tokenizer, told["missing_code"]) == ({}, ["AutoTokenizer"])
    assert "no longer name code for AutoTokenizer" in (tmp_path / "out" / "README.md").read_text()


def test_code_that_was_left_on_the_hub_is_named_there(base, tmp_path):
    told, config, tokenizer = merged(base, tmp_path / "out")
    assert config["AutoModelForCausalLM"] == MAP["AutoModelForCausalLM"]
    assert tokenizer == {"AutoTokenizer": ["org/own--tokenization_own.OwnTokenizer", None]}
    assert told["missing_code"] == []
    assert "auto_map" not in (tmp_path / "out" / "README.md").read_text()


def test_no_name_leads_out_of_the_folder(base):
    (base.parent / "outside.py").write_text("")
    found = code_of({"AutoModel": "../outside.Model"}, shutil.copytree(base, base.parents[2] / "local"))
    assert (found.auto_map, found.files, list(found.missing)) == ({}, (), ["AutoModel"])
