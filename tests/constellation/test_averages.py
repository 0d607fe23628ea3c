"""One mixture for a domain: composing the mean is the mean of composing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.compose.build import compose
from asterism.constellation.averages import domain_mixture, mean_mixture
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.errors import DataError, SettingsError, UnknownName
from tests.tiny import PROBES, tiny_library, tiny_probes


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"), dtype=torch.float64)


@pytest.fixture(scope="module")
def built(library):
    return Constellation.build(library, tiny_probes())


@pytest.mark.parametrize("mode", ["evidence", "nodes"])
def test_the_composed_mean_is_the_mean_of_the_composed(library, built, mode):
    mixtures = built.mixtures(list(PROBES["legal"])[:3], MixtureSettings(mode=mode, top_k=2))
    assert len({one.specialists for one in mixtures}) > 1
    mean = mean_mixture(mixtures)
    single = [dict(compose(library, one).named_parameters()) for one in mixtures]
    whole = dict(compose(library, mean).named_parameters())
    for name, got in whole.items():
        want = sum(each[name] for each in single) / len(single)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-7, msg=name)  # weights are kept in float32
    assert sum(mean.shares.values()) + mean.generalist == pytest.approx(1, abs=1e-6)
    held = [one for one in mixtures if mean.specialists[-1] in one.specialists]
    own = np.mean([float(one.coefficients[one.specialists.index(mean.specialists[-1])]) for one in held])
    assert float(mean.coefficients[-1]) == pytest.approx(own, rel=1e-6)


def test_a_domain_by_its_fingerprints_and_by_its_texts(built):
    fast = MixtureSettings(mode="fast", top_k=2)
    kept, read = domain_mixture(built, "medical", fast), domain_mixture(built, "medical", fast, PROBES["medical"])
    assert kept.shares == pytest.approx(read.shares, abs=1e-6)
    want = np.mean([one.shares.get("medical", 0.0) for one in built.mixtures(PROBES["medical"], fast)])
    assert kept.shares["medical"] == pytest.approx(float(want), abs=1e-6)
    assert kept.generalist > 0
    evidence = domain_mixture(built, "medical", texts=PROBES["medical"])
    assert abs(evidence.shares["medical"] - kept.shares["medical"]) > 1e-3
    assert domain_mixture(built, "medical").shares == domain_mixture(built, "medical", fast.changed(top_k=3)).shares


def test_what_has_no_mean(built):
    with pytest.raises(SettingsError, match="fingerprints of probes, not their texts"):
        domain_mixture(built, "medical", MixtureSettings())
    with pytest.raises(UnknownName, match="medical"):
        domain_mixture(built, "medicl")
    with pytest.raises(DataError, match="no mixture"):
        mean_mixture([])
    with pytest.raises(SettingsError, match="scale 1, scale 2"):
        mean_mixture([Mixture.fixed({"medical": 1.0}, 16), Mixture.fixed({"medical": 1.0}, 16, scale=2.0)])


def test_shares_as_a_person_writes_them():
    known = ("medical", "legal")
    made = Mixture.given({"legal": 0.25, "medical": 0.5}, known, 16)
    assert made.shares == pytest.approx({"legal": 0.25, "medical": 0.5})
    assert made.generalist == pytest.approx(0.25)
    assert Mixture.given({"legal": 0.9, "generalist": 0.1}, known, 16).generalist == pytest.approx(0.1)
    with pytest.raises(UnknownName, match="'legal'"):
        Mixture.given({"leagl": 1.0}, known, 16)
    for wrong in ({"legal": 0.9, "generalist": 0.2}, {"legal": 0.3, "generalist": 0.2}, {"legal": 0.7, "medical": 0.7}):
        with pytest.raises(SettingsError, match="do not sum to 1"):
            Mixture.given(wrong, known, 16)
    for number in (-0.1, float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="from 0 to 1"):
            Mixture.given({"legal": number}, known, 16)
