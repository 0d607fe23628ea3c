"""Untrained gates from files are those of their own functions, with the experts and the scale of the settings."""

from __future__ import annotations

import json

import pytest
import torch

from asterism.core.errors import DataError, SettingsError, StorageError, UnknownName
from asterism.route.arrow import arrow_gates
from asterism.route.settings import RouterSettings
from asterism.route.untrained import average_activation_gates, prompt_gates
from asterism.route.ways import gates_by, read_prompts
from tests import tiny

PROMPTS = {"medical": ["What dose of insulin?"], "code": {"prompts": ["def add(a, b):"], "negative": ["The court"]}}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny.tiny_library(tmp_path_factory.mktemp("library"), "qwen2", ("medical", "legal", "code"), "mlp")


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(PROMPTS))
    return tmp_path / "prompts.json"


@pytest.fixture
def texts(tmp_path):
    for name in ("general", "medical", "legal"):
        rows = [json.dumps({"text": text}) + "\n" for text in tiny.PROBES[name]]
        (tmp_path / f"{name}.train.jsonl").write_text("".join(rows))
    return tmp_path


def same(gates, want, scale):
    torch.testing.assert_close(gates.weights, want.weights)
    assert (gates.experts, gates.mode, gates.scale) == (want.experts, want.mode, scale)


def test_arrow_needs_nothing_and_keeps_the_experts_named(library):
    gates, read = gates_by(library, "arrow", RouterSettings(experts=("code", "medical"), scale=4))
    want = arrow_gates(library)
    assert gates.experts == ("medical", "code")
    torch.testing.assert_close(gates.weights, want.weights[:, [0, 2]])
    assert (gates.scale, read) == (4, [])
    same(gates_by(library, "arrow", RouterSettings(with_generalist=True))[0], arrow_gates(library, with_generalist=True), 1)


def test_average_reads_the_experts_training_texts(library, texts):
    settings = RouterSettings(experts=("medical", "legal"), with_generalist=True, scale=10)
    gates, read = gates_by(library, "average", settings, data=texts)
    own = {name: list(tiny.PROBES[domain]) for name, domain in (("medical", "medical"), ("legal", "legal"), ("generalist", "general"))}
    same(gates, average_activation_gates(library, own), 10)
    assert read == [text for texts in own.values() for text in texts]
    with pytest.raises(DataError, match=r"no texts[^\0]*code"):
        gates_by(library, "average", RouterSettings(), data=texts)


def test_prompts_name_the_experts_unless_the_settings_do(library, prompts):
    gates, _ = gates_by(library, "prompts", RouterSettings(scale=2), prompts=prompts)
    same(gates, prompt_gates(library, {"medical": PROMPTS["medical"], "code": ["def add(a, b):"]}, {"code": ["The court"]}), 2)
    with pytest.raises(DataError, match=r"no prompts[^\0]*legal"):
        gates_by(library, "prompts", RouterSettings(experts=("medical", "legal")), prompts=prompts)


def test_what_is_missing_or_another_mode_is_told(library):
    with pytest.raises(SettingsError, match="--data"):
        gates_by(library, "average", RouterSettings())
    with pytest.raises(SettingsError, match="--prompts"):
        gates_by(library, "prompts", RouterSettings())
    with pytest.raises(SettingsError, match="mode of their own"):
        gates_by(library, "arrow", RouterSettings(mode="cosine"))
    with pytest.raises(UnknownName, match="did you mean 'legal'"):
        gates_by(library, "arrow", RouterSettings(experts=("legl",)))


@pytest.mark.parametrize("given", ["medical: a prompt", "medical: {positive: [a]}", "medical: [1, 2]", "medical: {prompts: a}"])
def test_prompts_of_another_form_are_told(given, tmp_path):
    (tmp_path / "prompts.yaml").write_text(given)
    with pytest.raises(DataError, match=r"Prompts are lists of texts[^\0]*expert: \['a prompt', 'another'\]"):
        read_prompts(tmp_path / "prompts.yaml")


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "open.yaml").write_text("medical: [What dose?]")
    (tmp_path / "list.yaml").write_text("[a prompt]")
    for name in ("absent", "open", "list"):
        with pytest.raises(StorageError, match="file of prompts cannot be read"):
            read_prompts(tmp_path / f"{name}.yaml")
