"""A library merged by a method's name and written: the same model as in memory, laid out as a recipe's."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asterism.core.errors import SettingsError, StorageError, UnknownName
from asterism.core.progress import quiet
from asterism.merge import by_name, files, streams
from asterism.merge.by_name import OTHERS, merge_library
from asterism.merge.emr import Emr
from asterism.merge.files import Output
from asterism.merge.learned import learned_merge
from asterism.merge.library import merge
from asterism.merge.soup import greedy_soup
from asterism.models.library import Library
from tests import tiny

NAMES = ("medical", "legal", "code")
TEXTS = {name: list(tiny.PROBES[name][:3]) for name in NAMES}
FEW = {"adamerging": {"steps": 2, "batch_size": 2, "max_length": 24}}


@pytest.fixture(scope="module", params=["full", "lora"])
def library(request, tmp_path_factory) -> Library:
    return tiny.tiny_library(tmp_path_factory.mktemp(request.param), "gpt2", NAMES, request.param)


def assert_same(folder, model) -> None:
    written = AutoModelForCausalLM.from_pretrained(folder)
    for (name, one), other in zip(written.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("method", by_name.BY_DATA)
def test_what_is_learnt_from_texts_is_written_as_a_recipes_merge(library, tmp_path, method):
    out, parameters = tmp_path / "out", FEW.get(method, {})
    with quiet():
        told = merge_library(library, method, out, TEXTS, parameters=parameters, seed=7)
        again = merge_library(library, method, tmp_path / "again", parameters=parameters, seed=7)  # from what was measured
        changes = parameters | ({"seed": 7} if method == "adamerging" else {})
        model = learned_merge(library, method, TEXTS, **changes)
    assert_same(out, model)
    assert_same(tmp_path / "again", model)
    assert AutoTokenizer.from_pretrained(out).get_vocab() == library.tokenizer.get_vocab()
    assert told == json.loads((out / "merge.json").read_text())
    assert set(told["files"]) == {path.name for path in out.iterdir()} >= {"generation_config.json", "tokenizer.json", "README.md"}
    assert (told["method"]["name"], told["recipe"], told["parameters"], told["seed"]) == (method, None, changes, 7)
    assert {name: own["number"] for name, own in told["texts"].items()} == dict.fromkeys(NAMES, 3)
    assert again["texts"] is None
    assert len(told["sources"]) == 1 + len(NAMES)
    assert all(0 < source["distance"] < 0.5 for source in told["sources"])
    card = (out / "README.md").read_text()
    assert f"A merge by {OTHERS[method][0]}" in card
    assert f"asterism merge LIBRARY OUT --method {method}" in card
    assert "## Recipe" not in card


def test_a_soup_is_the_recipe_of_its_members(library, tmp_path):
    with quiet():
        told = merge_library(library, "greedy_soup", tmp_path / "out", TEXTS)
        soup = greedy_soup(library, TEXTS)
    assert_same(tmp_path / "out", soup.model)
    assert told["soup"]["names"] == list(soup.names)
    assert told["soup"]["loss"] == pytest.approx(soup.loss)
    assert [entry["parameters"]["weight"] for entry in told["recipe"]["models"]] == [float(name in soup.names) for name in NAMES]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "A merge by Greedy soup" in card
    assert "## Recipe" in card


def test_a_recipes_method_is_its_recipe(library, tmp_path):
    told = merge_library(library, "ties", tmp_path / "out", parameters={"density": 0.5, "lambda": 0.8}, shard_bytes=20_000)
    assert_same(tmp_path / "out", merge(library, "ties", density=0.5, lambda_=0.8))
    assert told["recipe"]["parameters"] == {"weight": 1.0, "density": 0.5, "lambda": 0.8}
    assert "model.safetensors.index.json" in told["files"]


def test_emr_writes_its_parts(library, tmp_path):
    with quiet():
        told = merge_library(library, "emr", tmp_path / "out")
        emr = Emr.load(library, tmp_path / "out")
    assert told["rescalers"] == emr.rescalers
    assert told["share"] == emr.size.share
    with pytest.raises(StorageError, match="holds something"):
        merge_library(library, "emr", tmp_path / "out")


def test_a_killed_write_goes_on_with_the_same_merge_alone(library, tmp_path, monkeypatch):
    """Another method's tensors, of the same models, are not taken over."""
    monkeypatch.setattr(files, "_SYNC_BYTES", 1)
    monkeypatch.setattr(streams, "ALIGNED", 1)
    monkeypatch.setattr(streams, "HELD", 64)
    monkeypatch.setattr(streams, "_direct", lambda path: None)
    plain, calls = Output.write, []

    def dying(self, *given):
        plain(self, *given)
        calls.append(given[0])
        if len(calls) == 12:
            raise KeyboardInterrupt

    with quiet():
        monkeypatch.setattr(Output, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            merge_library(library, "fisher", tmp_path / "out", TEXTS)
        merge_library(library, "regmean", tmp_path / "out", TEXTS)
        assert_same(tmp_path / "out", learned_merge(library, "regmean", TEXTS))
    assert len(calls) > 12


def test_what_cannot_be_meant_is_refused_before_anything_is_read(library, tmp_path):
    for method, texts, parameters, error, told in (
        ("fischer", None, {}, UnknownName, "did you mean 'fisher'"),
        ("ties", TEXTS, {}, SettingsError, "ties reads no texts"),
        ("emr", TEXTS, {}, SettingsError, "emr reads no texts"),
        ("emr", None, {"density": 1}, SettingsError, "no parameters"),
        ("greedy_soup", None, {}, SettingsError, "tasted on held-out texts"),
        ("greedy_soup", TEXTS, {"max_lenth": 9}, UnknownName, "did you mean 'max_length'"),
        ("fisher", TEXTS, {"flor": 1}, UnknownName, "did you mean 'floor'"),
        ("ties", None, {"densty": 1}, UnknownName, "did you mean 'density'"),
    ):
        with pytest.raises(error, match=told):
            merge_library(library, method, tmp_path / "out", texts, parameters=parameters)
    assert not (tmp_path / "out").exists()
