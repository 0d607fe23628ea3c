"""A composition travels as text and comes out the same; what cannot be read is refused."""

from __future__ import annotations

import json

import pytest
import torch

from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.serve.jobs import Composition
from asterism.serve.vllm.payload import composition_from, is_even, payload_of, salt_of

NAMES = ("medical", "legal")


def even(**changes) -> Composition:
    return Composition(
        Mixture.fixed({"medical": 0.3, "legal": 0.5}, 8, generalist=0.2, scale=1.1), CompositionSettings(layers=(0, 2), **changes)
    )


def uneven() -> Composition:
    weights = torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    return Composition(
        Mixture(NAMES, weights, weights.mean(1), {"model.layers.0.mlp": weights[:, :3]}), CompositionSettings(node_map="per_module")
    )


@pytest.mark.parametrize("made", [even(), uneven()], ids=["even", "uneven"])
def test_a_composition_comes_back_the_same(made):
    found = composition_from(payload_of(made), 8, NAMES)
    assert found.key == made.key
    assert torch.equal(found.mixture.weights, made.mixture.weights)
    assert is_even(found) == is_even(made)


def test_specialists_may_go_by_other_names():
    found = composition_from(payload_of(even(), rename=lambda name: f"{name}#2"), 8, [f"{name}#2" for name in NAMES])
    assert found.mixture.specialists == ("medical#2", "legal#2")
    assert found.key != even().key


@pytest.mark.parametrize(
    "payload",
    [
        None,
        7,
        "",
        "{",
        "[]",
        '{"specialists": ["medical"]}',
        '{"specialists": ["medical"], "shares": [1e999]}',
        '{"specialists": ["medical"], "shares": [0.5, 0.5]}',
        '{"specialists": ["medical"], "shares": ["x"]}',
        '{"specialists": ["medical"], "shares": [1], "scale": NaN}',
        '{"specialists": ["medical"], "shares": [1], "more": 1}',
        '{"specialists": ["medical"], "weights": {"shape": [1, 8], "float32": "AAAA"}}',
        '{"specialists": ["medical"], "weights": {"shape": [1, 8], "float32": "%%"}}',
    ],
)
def test_what_cannot_be_read_is_refused(payload):
    with pytest.raises(DataError, match="cannot be read"):
        composition_from(payload, 8, NAMES)


def test_settings_tell_their_own_field():
    with pytest.raises(SettingsError, match="layers"):
        composition_from('{"specialists": ["medical"], "shares": [1], "settings": {"layers": -1}}', 8, NAMES)


def test_an_unknown_specialist_is_named():
    with pytest.raises(UnknownName, match="legal"):
        composition_from(payload_of(even()), 8, ["medical", "legl"])


def test_a_mixtures_salt_is_its_own():
    other = Composition(even().mixture)
    salts = {salt_of(None), salt_of(None, "mine"), salt_of(even()), salt_of(even(), "mine"), salt_of(other), salt_of(uneven())}
    assert len(salts) == 6
    assert salt_of(even()) == salt_of(composition_from(payload_of(even()), 8, NAMES))
    assert salt_of(None) is None


def test_even_weights_travel_as_numbers():
    assert json.loads(payload_of(even()))["shares"] == pytest.approx([0.3, 0.5])
