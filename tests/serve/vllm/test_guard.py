"""Every request is checked and salted where it comes in."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import DataError, SettingsError, StorageError, UnknownName
from asterism.models.anatomy import anatomy_of, skeleton
from asterism.serve.jobs import Composition
from asterism.serve.vllm import guard
from asterism.serve.vllm.payload import FIELD, payload_of, salt_of
from tests import tiny

MADE = Composition(Mixture.fixed({"medical": 1.0}, tiny.HIDDEN))
ANATOMY = anatomy_of(skeleton(tiny.tiny_config("qwen2")))


def request(extra=None, salt=None, params=True):
    return SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra) if params else None, cache_salt=salt)


def test_a_mixture_salts_its_request():
    found = guard.checked(request({FIELD: payload_of(MADE)}, "mine"), ANATOMY, ["medical"])
    assert found.cache_salt == salt_of(MADE, "mine")


@pytest.mark.parametrize("asked", [request(), request({"other": 1}), request(params=False)])
def test_a_request_without_a_mixture_stays_as_it_is(asked):
    assert guard.checked(asked, ANATOMY, ["medical"]).cache_salt is None


def test_a_mixture_that_cannot_run_is_refused():
    with pytest.raises(UnknownName, match="medical"):
        guard.checked(request({FIELD: payload_of(MADE)}), ANATOMY, ["legal"])
    with pytest.raises(DataError, match="cannot be read"):
        guard.checked(
            request({FIELD: payload_of(Composition(Mixture(("medical",), torch.arange(8.0)[None], torch.ones(1))))}), ANATOMY, ["medical"]
        )
    with pytest.raises(SettingsError, match="fewer blocks"):
        guard.checked(request({FIELD: payload_of(Composition(MADE.mixture, CompositionSettings(layers=9)))}), ANATOMY, ["medical"])
    with pytest.raises(SettingsError, match="per_module"):
        guard.checked(
            request({FIELD: payload_of(Composition(MADE.mixture, CompositionSettings(node_map="per_module")))}), ANATOMY, ["medical"]
        )


def test_weights_by_node_are_refused_where_graphs_are_replayed():
    weights = torch.arange(tiny.HIDDEN)[None] / tiny.HIDDEN
    asked = request({FIELD: payload_of(Composition(Mixture(("medical",), weights, weights.mean(1))))})
    assert guard.checked(asked, ANATOMY, ["medical"]).cache_salt
    with pytest.raises(SettingsError, match="graphs"):
        guard.checked(asked, ANATOMY, ["medical"], graphs=True)


@pytest.mark.parametrize("given", [None, {}, {"asterism": 3}, {"asterism": {"library": 3}}])
def test_a_vllm_without_a_library_is_told_how(given):
    with pytest.raises(DataError, match="additional-config"):
        guard.library_of(SimpleNamespace(additional_config=given))


def test_names_come_from_the_manifest(tmp_path):
    (tmp_path / "library.json").write_text(json.dumps({"specialists": [{"name": "a"}, {"name": "b"}]}))
    assert guard.names_of(tmp_path) == ["a", "b"]
    (tmp_path / "library.json").write_text("{}")
    with pytest.raises(StorageError):
        guard.names_of(tmp_path)


class Processor:
    """As vLLM's input processor."""

    def __init__(self, root, cudagraphs="NONE") -> None:
        told = {"asterism": {"library": str(root)}} if root else {}
        kinds = SimpleNamespace(cudagraph_mode=SimpleNamespace(name=cudagraphs))
        own = SimpleNamespace(hf_config=tiny.tiny_config("qwen2"))
        self.vllm_config = SimpleNamespace(additional_config=told, model_config=own, compilation_config=kinds)

    def process_inputs(self, asked):
        return asked


def test_the_hook_is_put_in_once_and_an_engine_names_its_own_specialists(tmp_path, monkeypatch):
    class Refused(Exception):  # noqa: N818
        def __init__(self, told, parameter) -> None:
            super().__init__(told)

    kind = type("InputProcessor", (Processor,), {"process_inputs": Processor.process_inputs})
    monkeypatch.setitem(sys.modules, "vllm.exceptions", SimpleNamespace(VLLMValidationError=Refused))
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.input_processor", SimpleNamespace(InputProcessor=kind))
    (tmp_path / "library.json").write_text(json.dumps({"specialists": [{"name": "medical"}]}))
    guard.install()
    guard.plugin()
    asked = request({FIELD: payload_of(MADE)}, "mine")
    assert kind(tmp_path).process_inputs(asked).cache_salt == salt_of(MADE, "mine")
    assert kind(None).process_inputs(request({FIELD: "anything"})).cache_salt is None
    monkeypatch.setitem(guard.KNOWN, tmp_path, lambda: ["medical#1"])
    with pytest.raises(Refused, match="did you mean 'medical#1'"):
        kind(tmp_path).process_inputs(request({FIELD: payload_of(MADE)}))
    other = request({FIELD: payload_of(MADE, rename=lambda name: f"{name}#1")})
    assert kind(tmp_path).process_inputs(other).cache_salt not in (None, salt_of(MADE))
