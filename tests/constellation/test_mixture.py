"""From a text to a mixture: Eq. 4-8 end to end against NumPy, whatever the text comes together with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.constellation.fingerprints import block_modules, module_signatures, signatures
from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.constellation.specialist_space import cosine_coefficients, specialist_space
from asterism.constellation.weighing import mixtures_of, noisy_weights, tabled
from asterism.core.errors import DataError, SettingsError, UnknownName
from tests import oracles
from tests.tiny import CROSS, DOMAINS, HIDDEN, PROBES, tiny_library, tiny_probes

TEXTS = [text for text, _ in CROSS]
NODES = MixtureSettings.paper()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def built(library):
    return Constellation.build(library, tiny_probes(), IndexSettings(domain_signatures=True))


def hidden(library, name, text):
    """Final hidden states [T, d] of one text run by itself."""
    ids = library.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return library.model(name)(ids, output_hidden_states=True).hidden_states[-1][0].double().numpy()


@pytest.mark.parametrize("normalisation", ["two_stage", "joint"])
@pytest.mark.parametrize("text", TEXTS[:4])
def test_a_mixture_agrees_with_numpy(library, text, normalisation):
    built = Constellation.build(library, tiny_probes(), IndexSettings.paper())
    basis = oracles.gram_schmidt(
        [np.mean([oracles.fingerprint(hidden(library, None, t)) for t in PROBES[name]], axis=0) for name in DOMAINS]
    )
    alpha = oracles.coefficients(oracles.fingerprint(hidden(library, None, text)), basis)
    chosen = sorted(range(4), key=lambda i: (-abs(alpha[i]), i))[:3]
    raw = oracles.raw(alpha[chosen], [oracles.signature(hidden(library, DOMAINS[i], text)) for i in chosen])
    want = oracles.two_stage(raw) if normalisation == "two_stage" else oracles.joint(raw)
    mixture = built.mixture(text, NODES, normalisation=normalisation)
    assert mixture.specialists == tuple(DOMAINS[i] for i in chosen)
    np.testing.assert_allclose(mixture.coefficients, alpha[chosen], atol=2e-4)
    np.testing.assert_allclose(mixture.weights, want, atol=2e-4)
    assert mixture.weights.std() > 1e-3


def test_columns_sum_to_one_and_settings_can_come_either_way(built):
    mixtures = built.mixtures(TEXTS, NODES.changed(top_k=2))
    assert len(mixtures) == len(TEXTS)
    for text, mixture in zip(TEXTS, mixtures, strict=True):
        assert mixture.weights.shape == (2, HIDDEN)
        torch.testing.assert_close(mixture.weights.sum(dim=0), torch.ones(HIDDEN), atol=1e-6, rtol=0)
        torch.testing.assert_close(built.mixture(text, NODES, top_k=2).weights, mixture.weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["none", "weights"])
@pytest.mark.parametrize("settings", [NODES, NODES.changed(per_module=True, top_k=2), NODES.changed(signature="domain")])
def test_what_a_text_comes_together_with_changes_nothing(built, settings, site):
    built = built.with_settings(built.settings.changed(noise_site=site, noise=0.3))
    together, backwards = built.mixtures(TEXTS, settings), built.mixtures(TEXTS[::-1], settings)[::-1]
    for text, one, other in zip(TEXTS, together, backwards, strict=True):
        single = built.mixture(text, settings)
        for met in (one, other):
            assert met.specialists == single.specialists
            torch.testing.assert_close(met.weights, single.weights, atol=1e-5, rtol=0)
            assert set(met.modules) == set(single.modules)
            for path, weights in single.modules.items():
                torch.testing.assert_close(met.modules[path], weights, atol=1e-5, rtol=0)


def test_each_specialist_reads_only_the_texts_that_chose_it(built, monkeypatch):
    read = {}

    def source(name, rows):
        read[name] = list(rows)
        return tabled({name: torch.ones(len(TEXTS), HIDDEN)})(name, rows)

    prints = built.fingerprint(TEXTS)
    mixtures = built.mixture_from(prints, source, NODES.changed(top_k=1))
    assert read == {name: [row for row, mixture in enumerate(mixtures) if mixture.specialists == (name,)] for name in read}
    assert sum(map(len, read.values())) == len(TEXTS)


def test_the_pure_part_gives_what_the_whole_gives(library, built):
    table = {name: signatures(library.model(name), library.tokenizer, TEXTS) for name in DOMAINS}
    for pure, whole in zip(built.mixture_from(built.fingerprint(TEXTS), table, NODES), built.mixtures(TEXTS, NODES), strict=True):
        assert pure.specialists == whole.specialists
        torch.testing.assert_close(pure.weights, whole.weights, atol=1e-5, rtol=0)


def test_modules_have_weights_at_their_own_outputs(library, built):
    mixture = built.mixture(TEXTS[0], NODES, per_module=True)
    assert tuple(mixture.modules) == block_modules(library.anatomy)
    own = [module_signatures(library.model(name), library.anatomy, library.tokenizer, TEXTS[:1]) for name in mixture.specialists]
    for path, weights in mixture.modules.items():
        want = oracles.two_stage(oracles.raw(mixture.coefficients.numpy(), [found[path][0].numpy() for found in own]))
        np.testing.assert_allclose(weights, want, atol=1e-5, err_msg=path)
    assert mixture.modules["transformer.h.0.attn.c_attn"].shape == (3, 3 * HIDDEN)
    torch.testing.assert_close(mixture.weights, built.mixture(TEXTS[0], NODES).weights, atol=1e-6, rtol=0)


# ---- domain signatures


@pytest.mark.parametrize("per_module", [False, True])
def test_with_domain_signatures_no_specialist_is_loaded(library, built, tmp_path, monkeypatch, per_module):
    built.save(tmp_path / "index")
    kept = Constellation.load(tmp_path / "index", library)
    loaded, real = [], library.model
    monkeypatch.setattr(library, "model", lambda name=None: loaded.append(name) or real(name))
    mixtures = kept.mixtures(TEXTS, NODES, signature="domain", per_module=per_module)
    assert set(loaded) == {None}
    means = {name: np.mean([oracles.signature(hidden(library, name, text)) for text in PROBES[name]], axis=0) for name in DOMAINS}
    for mixture in mixtures:
        want = oracles.two_stage(oracles.raw(mixture.coefficients.numpy(), [means[name] for name in mixture.specialists]))
        np.testing.assert_allclose(mixture.weights, want, atol=1e-5)
        assert bool(mixture.modules) == per_module


def test_domain_signatures_follow_their_domain(library, built):
    plain = built.with_settings(IndexSettings())
    assert not len(plain.signatures)
    with pytest.raises(SettingsError, match="keeps no domain signatures"):
        plain.mixture(TEXTS[0], NODES, signature="domain")
    fewer = built.without_domain("code")
    assert not any(key.endswith("@code") for key in fewer.signatures)
    again = fewer.with_domain("code", tiny_probes()["code"])
    for one, other in zip(again.mixtures(TEXTS, NODES, signature="domain"), built.mixtures(TEXTS, NODES, signature="domain"), strict=True):
        torch.testing.assert_close(one.weights, other.weights, atol=1e-4, rtol=0)


# ---- noise on the weights


def test_noise_on_the_weights_moves_them_and_keeps_them_weights(built):
    noisy = built.with_settings(built.settings.changed(noise_site="weights", noise=0.5))
    for text in TEXTS[:4]:
        plain, moved = built.mixture(text, NODES), noisy.mixture(text, NODES)
        assert moved.specialists == plain.specialists
        assert (moved.weights - plain.weights).abs().max() > 0.05
        assert moved.weights.min() >= 0
        torch.testing.assert_close(moved.weights.sum(dim=0), torch.ones(HIDDEN), atol=1e-6, rtol=0)
        other = built.with_settings(noisy.settings.changed(seed=1)).mixture(text, NODES)
        assert not torch.equal(other.weights, moved.weights)
    drawn = [noisy.mixture(text, NODES).weights - built.mixture(text, NODES).weights for text in TEXTS[:2]]
    assert not torch.allclose(drawn[0], drawn[1], atol=1e-2)  # each text has its own


def test_noise_on_the_weights_has_the_size_asked_for():
    weights = torch.full((4, 50_000), 0.25, dtype=torch.float64)
    drawn = torch.Generator().manual_seed(3)
    moved = noisy_weights(weights, 0.02, drawn, NODES)
    expected = 0.02 * 0.25 * (1 - 1 / 4) ** 0.5  # the columns' own mean is taken out again
    assert (moved - weights).std() == pytest.approx(expected, rel=0.02)
    joint = noisy_weights(weights / 50_000, 0.02, drawn, NODES.changed(normalisation="joint"))
    assert joint.sum() == pytest.approx(1)


def test_noise_on_the_weights_needs_the_texts(built):
    noisy = built.with_settings(built.settings.changed(noise_site="weights"))
    with pytest.raises(SettingsError, match="drawn from each text"):
        noisy.mixture_from(built.fingerprint(TEXTS), settings=NODES.changed(signature="domain"))


# ---- edges


def weighed(coefficients, **settings):
    coefficients = torch.tensor([coefficients])
    names = [f"s{i}" for i in range(coefficients.shape[1])]
    table = {name: torch.rand(1, 5, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(names)}
    return mixtures_of(names, coefficients, tabled(table), NODES.changed(**settings))[0]


def test_no_positive_coefficient_means_uniform_weights():
    mixture = weighed([-3.0, -1.0, 0.0, -2.0])
    assert mixture.specialists == ("s0", "s3", "s1")
    torch.testing.assert_close(mixture.weights, torch.full((3, 5), 1 / 3))
    torch.testing.assert_close(weighed([-3.0, -1.0], top_k=2, normalisation="joint").weights, torch.full((2, 5), 1 / 10))


def test_a_negative_coefficient_is_chosen_but_weighs_nothing():
    mixture = weighed([1.0, -5.0, 2.0, 0.5], top_k=2)
    assert mixture.specialists == ("s1", "s2")
    torch.testing.assert_close(mixture.weights, torch.tensor([[0.0], [1.0]]).expand(2, 5))
    torch.testing.assert_close(mixture.coefficients, torch.tensor([-5.0, 2.0]))


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=6), st.floats(0.1, 100))
def test_only_the_proportions_of_coefficients_matter(coefficients, factor):
    one, other = weighed(coefficients), weighed([factor * value for value in coefficients])
    torch.testing.assert_close(one.weights, other.weights, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.weights.sum(dim=0), torch.ones(5), atol=1e-6, rtol=0)


def test_more_specialists_than_there_are_is_refused(built):
    with pytest.raises(SettingsError, match=r"1 <= top_k <= 4"):
        built.mixture(TEXTS[0], top_k=5)
    with pytest.raises(UnknownName, match="did you mean 'top_k'"):
        built.mixture(TEXTS[0], topk=2)


def test_what_the_caller_leaves_out_is_named(built):
    prints = built.fingerprint(TEXTS[:2])
    with pytest.raises(SettingsError, match="own signatures are missing"):
        built.mixture_from(prints, settings=NODES)
    with pytest.raises(SettingsError, match="per_module: false"):
        built.mixture_from(prints, {name: torch.ones(2, HIDDEN) for name in DOMAINS}, NODES.changed(per_module=True))
    with pytest.raises(UnknownName, match="among the signatures"):
        built.mixture_from(prints, {}, NODES)
    with pytest.raises(DataError):
        built.mixtures([])


# ---- specialist space, the contrast


def test_specialist_space_is_each_specialists_view_of_its_own_probes(library, built):
    space = specialist_space(library, tiny_probes())
    want = np.array([np.mean([oracles.fingerprint(hidden(library, name, text)) for text in PROBES[name]], axis=0) for name in DOMAINS])
    np.testing.assert_allclose(space, want, atol=1e-5)
    assert (space - built.centroids).abs().max() > 0.01
    query = oracles.fingerprint(hidden(library, None, TEXTS[0]))
    cosines = [row @ query / np.linalg.norm(row) / np.linalg.norm(query) for row in want]
    np.testing.assert_allclose(cosine_coefficients(built.fingerprint(TEXTS[0]), space), cosines, atol=1e-5)
    mixture = Constellation.mixture_of(
        cosine_coefficients(built.fingerprint(TEXTS[:1]), space), dict.fromkeys(DOMAINS, torch.ones(1, HIDDEN)), NODES
    )[0]
    assert mixture.specialists[0] == DOMAINS[int(np.argmax(np.abs(cosines)))]


def test_specialist_space_needs_every_domains_probes(library):
    with pytest.raises(DataError, match="science"):
        specialist_space(library, {name: ["text"] for name in DOMAINS[:3]})
