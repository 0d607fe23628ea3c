"""Mixtures by evidence: Bayes' rule against NumPy, what is read and what is not, and what is kept with the index."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asterism.constellation.calibration import Calibration
from asterism.constellation.evidence import Evidence, evidence_mixtures, prior_basis, standardised
from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.errors import SettingsError, StaleError, UnknownName
from asterism.models.likelihood import read
from tests.tiny import CROSS, DOMAINS, FAMILIES, HIDDEN, tiny_library, tiny_model, tiny_probes, tiny_tokenizer

TEXTS = [text for text, _ in CROSS]
NUMBERS = Calibration(temperature=0.03, prior=0.7, generalist=-0.4, scale=1.3, fast_prior=1.5, fast_generalist=0.2, fast_scale=0.9)


@pytest.fixture
def library(tmp_path):
    return tiny_library(tmp_path)


@pytest.fixture
def built(library):
    return Constellation.build(library, tiny_probes()).with_calibration(NUMBERS)


def loss_of(library, name, text) -> float:
    ids = library.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = library.model(name)(ids).logits[0].double().numpy()
    shifted = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
    chosen = shifted[np.arange(len(shifted)), ids[0, 1:].numpy()]
    return float((np.log(np.exp(shifted).sum(axis=1)) - chosen).mean())


def prior_of(built, text, chosen) -> np.ndarray:
    """Standardised coefficients of the chosen and, last, of general text: NumPy, Loewdin over N + 1 centred centroids by an SVD."""
    rows = np.vstack([built.centroids.double().numpy(), built.general_mean.double().numpy()])
    offset = rows.mean(axis=0)
    units = (rows - offset) / np.linalg.norm(rows - offset, axis=1, keepdims=True)
    left, _, right = np.linalg.svd(units, full_matrices=False)
    basis = left[:, :-1] @ right[:-1]  # centred rows span one direction less
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    centred = lambda alpha: alpha - alpha.mean(axis=-1, keepdims=True)  # noqa: E731
    unit = np.sqrt(np.mean(centred((rows - offset) @ basis.T) ** 2))
    z = centred((built.fingerprint(text).double().numpy() - offset) @ basis.T) / unit
    return np.append(z[chosen], z[-1])


@pytest.mark.parametrize("text", TEXTS[:3])
def test_evidence_is_prior_times_likelihood(library, built, text):
    mixture = built.mixture(text)
    chosen = [DOMAINS.index(name) for name in mixture.specialists]
    losses = np.array([loss_of(library, name, text) for name in (*mixture.specialists, None)])
    scores = 0.7 * prior_of(built, text, chosen) + np.append(np.zeros(len(chosen)), -0.4) - losses / 0.03
    want = np.exp(scores - scores.max())
    want /= want.sum()
    np.testing.assert_allclose([*mixture.shares.values(), mixture.generalist], want, atol=2e-3)
    np.testing.assert_allclose([mixture.losses[name] for name in (*mixture.specialists, "")], losses, atol=1e-4)
    assert mixture.scale == 1.3
    assert mixture.weights.shape == (3, HIDDEN)
    assert want.max() - want.min() > 0.05  # the losses do decide something
    assert mixture.entropy == pytest.approx(-(want * np.log2(want)).sum(), abs=5e-3)


def test_fast_is_the_prior_alone_and_loads_no_specialist(library, built, monkeypatch):
    loaded, real = [], library.model
    monkeypatch.setattr(library, "model", lambda name=None: loaded.append(name) or real(name))
    mixture = built.mixture(TEXTS[0], mode="fast", top_k=2)
    assert loaded == [None]
    chosen = [DOMAINS.index(name) for name in mixture.specialists]
    want = np.exp(1.5 * prior_of(built, TEXTS[0], chosen) + np.append(np.zeros(len(chosen)), 0.2))
    np.testing.assert_allclose([*mixture.shares.values(), mixture.generalist], want / want.sum(), atol=1e-4)
    assert mixture.scale == 0.9
    assert not mixture.losses


@pytest.mark.parametrize("mode", ["evidence", "fast"])
def test_noise_on_the_weights_moves_shares_and_keeps_their_sum(built, mode):
    plain = built.with_settings(IndexSettings())
    noisy = built.with_settings(IndexSettings(noise_site="weights", noise=0.5))
    one, moved = plain.mixture(TEXTS[0], mode=mode), noisy.mixture(TEXTS[0], mode=mode)
    assert abs(moved.generalist - one.generalist) + max(abs(moved.shares[n] - one.shares[n]) for n in one.shares) > 0.02
    assert sum(moved.shares.values()) + moved.generalist == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(noisy.mixtures(TEXTS, mode=mode)[0].weights, moved.weights, atol=1e-4, rtol=0)


def test_only_the_shortlisted_read_and_neighbours_change_nothing(built):
    asked = {}
    losses = torch.linspace(3, 4, len(TEXTS))

    def reader(name, rows):
        asked[name] = list(rows)
        return losses[list(rows)]

    found = built.mixture_from(built.fingerprint(TEXTS), settings=MixtureSettings(top_k=1), evidence=Evidence(losses, reader))
    assert asked == {name: [row for row, mixture in enumerate(found) if mixture.specialists == (name,)] for name in asked}
    together = built.mixtures(TEXTS)
    for text, one in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(one.weights, built.mixture(text).weights, atol=1e-4, rtol=0)


def test_a_text_too_short_for_evidence_goes_by_its_prior():
    coefficients, short = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), torch.tensor([torch.nan, 3.0])
    evidence = Evidence(short, dict.fromkeys("abc", short))
    settings, index, numbers = MixtureSettings(top_k=2), IndexSettings(), Calibration(prior=1.0, generalist=0.0)
    standard = torch.tensor([[1.0, 0.0, -1.0, 0.0]]).expand(2, -1)
    first, second = evidence_mixtures("abc", coefficients, evidence, settings, index, numbers, standard=standard, nodes=2)
    torch.testing.assert_close(first.weights, second.weights)  # equal losses say nothing either
    want = np.exp([1.0, 0.0, 0.0])
    np.testing.assert_allclose([*first.shares.values(), first.generalist], want / want.sum(), rtol=1e-5)


def test_an_extreme_temperature_takes_the_best_or_nobody():
    evidence = Evidence(torch.tensor([3.0]), {"a": torch.tensor([2.0]), "b": torch.tensor([4.0])})
    given = ("ab", torch.tensor([[1.0, 1.0]]), evidence, MixtureSettings(top_k=2), IndexSettings())
    cold = evidence_mixtures(*given, Calibration(temperature=1e-6, generalist=0), standard=None, nodes=1)[0]
    assert cold.shares == {"a": 1.0, "b": 0.0}
    warm = evidence_mixtures(*given, Calibration(temperature=1e6, generalist=0), standard=None, nodes=1)[0]
    np.testing.assert_allclose([*warm.shares.values(), warm.generalist], [1 / 3] * 3, rtol=1e-5)


def test_one_domain_has_a_unit_too_and_without_general_probes_the_generalist_is_average(built):
    assert prior_basis(torch.tensor([[5.0, 1.0]]), None)[1] == 1.0
    without = built.without_domain("general").with_calibration(NUMBERS)
    found = standardised(without.fingerprint(TEXTS), *prior_basis(without.centroids, None), 4)
    assert found.shape == (len(TEXTS), 5)
    assert bool((found[:, -1] == 0).all())
    mixture = without.mixture(TEXTS[0], mode="fast", top_k=4)
    assert mixture.generalist == pytest.approx(float(torch.softmax(torch.cat([1.5 * found[0, :4], torch.tensor([0.2])]), 0)[-1]), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_gives_the_fingerprint_and_the_loss_in_every_family(family):
    from asterism.constellation.fingerprints import fingerprints

    tokenizer, model = tiny_tokenizer(), tiny_model(family)
    states, losses = read(model, tokenizer, TEXTS[:5])
    torch.testing.assert_close(states, fingerprints(model, tokenizer, TEXTS[:5]), atol=1e-5, rtol=1e-4)
    for text, loss in zip(TEXTS[:5], losses.tolist(), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert loss == pytest.approx(float(model(ids, labels=ids).loss), abs=1e-4)


def test_a_block_is_read_like_the_final_state(library):
    block = Constellation.build(library, tiny_probes(), IndexSettings(layer=1))
    torch.testing.assert_close(block._read(None, TEXTS[:3])[0], block.fingerprint(TEXTS[:3]), atol=1e-5, rtol=1e-4)


# ---- kept with the index


def test_a_fitted_calibration_is_saved_and_dropped_when_the_index_changes(library, built, tmp_path):
    fitted = built.with_calibration(NUMBERS.changed(probes=("x",), specialists={"medical": library.digest("medical")}))
    fitted.save(tmp_path / "index")
    assert Constellation.load(tmp_path / "index", library).calibration == fitted.calibration
    assert fitted.without_domain("code").calibration == Calibration()
    assert fitted.with_settings(IndexSettings.paper()).calibration == Calibration()
    built.save(tmp_path / "unfitted")
    assert Constellation.load(tmp_path / "unfitted", library).calibration == Calibration()


def test_a_calibration_of_other_specialists_or_unreadable_is_stale(library, built, tmp_path):
    built.with_calibration(NUMBERS.changed(probes=("x",), specialists={"legal": "0" * 64})).save(tmp_path / "index")
    with pytest.raises(StaleError, match=r"since it was fitted.*\n.*legal"):
        Constellation.load(tmp_path / "index", library)
    record = tmp_path / "index" / "index.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"calibration": {"temperature": -1}}))
    with pytest.raises(StaleError, match="cannot be read"):
        Constellation.load(tmp_path / "index", library)


def test_what_does_not_go_together_is_refused(built):
    with pytest.raises(SettingsError, match="mode: nodes"):
        MixtureSettings(per_module=True)
    with pytest.raises(SettingsError, match="evidence="):
        built.mixture_from(built.fingerprint(TEXTS[:1]))
    with pytest.raises(UnknownName, match="among the losses"):
        built.mixture_from(built.fingerprint(TEXTS[:1]), evidence=Evidence(torch.ones(1), {}))
    noisy = built.with_settings(built.settings.changed(noise_site="weights"))
    with pytest.raises(SettingsError, match="drawn from each text"):
        noisy.mixture_from(built.fingerprint(TEXTS[:1]), settings=MixtureSettings(mode="fast"))
    with pytest.raises(SettingsError, match="1 <= top_k <= 4"):
        built.mixture(TEXTS[0], top_k=5)
    with pytest.raises(SettingsError, match="temperature"):
        Calibration(temperature=0)
