"""The constellation: built, changed, saved, loaded, refused."""

from __future__ import annotations

import errno
import os
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asterism.constellation import making, store
from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings
from asterism.core.errors import DataError, SettingsError, StaleError, StorageError, UnknownName
from asterism.core.storage import read_json, write_json
from asterism.models.library import Library
from tests import oracles
from tests.tiny import DOMAINS, perturbed, save, tiny_library, tiny_model, tiny_probes

QUERY = "The hospital breached its contract by giving the wrong dosage of insulin."


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def built(library):
    return Constellation.build(library, tiny_probes())


@pytest.fixture
def counted(monkeypatch):
    """Texts that pass through the generalist for an index, counted."""
    texts, real = [], making.fingerprints

    def counting(model, tokenizer, given, **settings):
        texts.extend(given)
        return real(model, tokenizer, given, **settings)

    monkeypatch.setattr(making, "fingerprints", counting)
    return texts


def same(one: Constellation, other: Constellation) -> None:
    """Equal bit for bit in everything that answers a query."""
    assert (one.domains, one.counts, one.settings, dict(one.origin)) == (other.domains, other.counts, other.settings, dict(other.origin))
    assert torch.equal(one.centroids, other.centroids)
    assert torch.equal(one.basis.vectors, other.basis.vectors)
    assert torch.equal(one.basis.offset, other.basis.offset)
    assert set(one.rows) == set(other.rows)
    assert all(torch.equal(one.fingerprints(name), other.fingerprints(name)) for name in one.rows)
    assert torch.equal(one.coefficients(QUERY), other.coefficients(QUERY))


def test_centroids_basis_and_coefficients_agree_with_numpy(library):
    built = Constellation.build(library, tiny_probes(), IndexSettings.paper(centring="general"))
    centroids = np.array([oracles.fingerprint(built.fingerprints(name).numpy()) for name in DOMAINS])  # a plain mean of rows
    np.testing.assert_allclose(built.centroids, centroids, atol=1e-6)
    general = oracles.fingerprint(built.fingerprints("general").numpy())
    np.testing.assert_allclose(built.general_mean, general, atol=1e-6)
    basis = oracles.gram_schmidt(centroids - general)
    want = oracles.coefficients(built.fingerprint(QUERY).double().numpy() - general, basis)
    np.testing.assert_allclose(built.coefficients(QUERY), want, atol=1e-4)
    assert built.counts == tuple(len(tiny_probes()[name]) for name in DOMAINS)


def test_several_texts_give_a_row_each(built):
    texts = [QUERY, "def add(a, b):", "x"]
    found = built.coefficients(texts)
    assert found.shape == (3, 4)
    for row, text in zip(found, texts, strict=True):
        torch.testing.assert_close(row, built.coefficients(text), atol=1e-5, rtol=1e-5)


def test_domains_follow_the_library_and_not_the_probes(library, built):
    backwards = dict(reversed(list(tiny_probes().items())))
    turned = Constellation.build(library, backwards, IndexSettings.paper())
    assert turned.domains == DOMAINS
    torch.testing.assert_close(turned.basis.vectors, built.with_settings(IndexSettings.paper()).basis.vectors, atol=1e-4, rtol=0)


def test_a_domain_finds_its_own_probes_more_than_others_do(built):
    own = built.basis.coefficients(torch.stack([built.centroids[1]]))[0]
    assert int(own.argmax()) == 1


# ---- bad probes


def test_a_domain_without_a_specialist_is_refused_with_the_nearest_name(library):
    with pytest.raises(UnknownName, match="did you mean 'medical'"):
        Constellation.build(library, {**tiny_probes(), "medica": ["text"]})


def test_a_specialist_without_probes_is_named(library):
    probes = tiny_probes()
    del probes["code"], probes["legal"]
    with pytest.raises(DataError, match=r"(?s)specialist has no probes.*legal, code"):
        Constellation.build(library, probes)


@pytest.mark.parametrize(("given", "wrong"), [([], "no probes"), ("a bare text", "list of texts"), ([3], "list of texts"), ([""], "empty")])
def test_a_domain_without_usable_probes_is_refused(library, given, wrong):
    with pytest.raises(DataError, match=wrong):
        Constellation.build(library, {**tiny_probes(), "legal": given})


def test_one_probe_makes_a_domain(library):
    built = Constellation.build(library, {**tiny_probes(), "legal": ["The court dismissed the appeal."]})
    assert built.counts[1] == 1
    assert torch.equal(built.centroids[1], built.fingerprints("legal")[0])


def test_domains_with_the_same_probes_are_refused_by_name(library):
    probes = tiny_probes()
    with pytest.raises(DataError, match="domain 'legal'"):
        Constellation.build(library, {**probes, "legal": probes["medical"]}, IndexSettings.paper())


def test_centring_on_general_probes_needs_them(library):
    probes = {name: texts for name, texts in tiny_probes().items() if name != "general"}
    with pytest.raises(SettingsError, match="general"):
        Constellation.build(library, probes, IndexSettings(centring="general"))


# ---- changing


def test_adding_then_removing_a_domain_is_the_identity(built, counted):
    without = built.without_domain("code")
    assert without.domains == ("medical", "legal", "science")
    assert "code@" not in "".join(without.rows)
    again = without.with_domain("code", tiny_probes()["code"])
    assert counted == tiny_probes()["code"]
    assert again.domains == DOMAINS
    torch.testing.assert_close(again.coefficients(QUERY), built.coefficients(QUERY), atol=1e-4, rtol=1e-4)
    same(again.without_domain("code"), without)


def test_other_probes_for_a_domain_change_its_centroid_alone(built, counted):
    changed = built.with_domain("legal", ["The jury found the tenant liable.", "A statute."])
    assert counted == ["The jury found the tenant liable.", "A statute."]
    assert changed.counts[1] == 2
    assert torch.equal(changed.centroids[[0, 2, 3]], built.centroids[[0, 2, 3]])
    assert not torch.equal(changed.centroids[1], built.centroids[1])


def test_general_probes_come_and_go(built):
    without = built.without_domain("general")
    assert without.general_mean is None
    with pytest.raises(SettingsError, match="general"):
        without.with_settings(IndexSettings(centring="general"))
    with pytest.raises(UnknownName, match="domain"):
        without.fingerprints("general")


def test_unknown_and_last_domains_cannot_be_removed(built):
    with pytest.raises(UnknownName, match="did you mean 'legal'"):
        built.without_domain("legall")
    with pytest.raises(DataError, match="needs a domain"):
        built.without_domain(*DOMAINS)
    with pytest.raises(UnknownName, match="did you mean 'science'"):
        built.with_domain("sciences", ["text"])


@pytest.mark.parametrize(
    "settings",
    [
        IndexSettings.paper(),
        IndexSettings(centring="general"),
        IndexSettings(centring="none"),
        IndexSettings(noise_site="centroids", noise=0.05),
    ],
)
def test_other_settings_need_no_new_fingerprints(library, built, counted, settings):
    changed = built.with_settings(settings)
    assert not counted
    same(changed, Constellation.build(library, tiny_probes(), settings))
    assert not torch.equal(changed.basis.vectors, built.basis.vectors)


@pytest.mark.parametrize("change", [{"layer": 1}, {"max_length": 9}, {"domain_signatures": True}])
def test_settings_that_need_the_texts_are_refused(built, change):
    with pytest.raises(SettingsError, match="need the probes' texts"):
        built.with_settings(built.settings.changed(**change))


def test_an_interrupted_build_goes_on_where_it_stopped(library, tmp_path, counted, monkeypatch):
    monkeypatch.setattr(making, "CHUNK", 5)
    written = []

    def killed(path, tensors):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        store.write_tensors(path, tensors)

    with monkeypatch.context() as patched:
        patched.setattr(making, "write_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            Constellation.build(library, tiny_probes(), state=tmp_path)
    before = len(counted)
    counted.clear()
    resumed = Constellation.build(library, tiny_probes(), state=tmp_path)
    total = sum(map(len, tiny_probes().values()))
    assert len(counted) == total - sum(len(texts) for texts in list(tiny_probes().values())[:3])
    assert before < total
    same(resumed, Constellation.build(library, tiny_probes()))
    counted.clear()
    Constellation.build(library, tiny_probes(), IndexSettings(layer=1), state=tmp_path)  # other fingerprints: none may be taken from there
    assert len(counted) == total


# ---- saved and loaded


@pytest.mark.parametrize("settings", [IndexSettings(), IndexSettings.paper(centring="general", noise_site="centroids")])
def test_what_is_loaded_is_what_was_saved(library, built, tmp_path, settings):
    made = built.with_settings(settings)
    made.save(tmp_path / "index")
    loaded = Constellation.load(tmp_path / "index", library, tiny_probes(), settings)
    same(loaded, made)
    assert torch.equal(loaded.general_mean, made.general_mean)
    loaded.save(tmp_path / "index")  # onto the file it reads from
    same(Constellation.load(tmp_path / "index", library), made)
    same(loaded, made)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_it_is_saved_in_its_library_unless_told_otherwise(library, built):
    assert built.save() == library.root / "constellation"
    same(Constellation.load(library.root / "constellation", library), built)


def test_fingerprints_are_read_when_asked_for(library, built, tmp_path, monkeypatch):
    built.save(tmp_path / "index")
    read = []
    monkeypatch.setattr(store._Stored, "read", lambda self: read.append(self.name) or self.file.get_tensor(self.name))
    loaded = Constellation.load(tmp_path / "index", library, tiny_probes())
    loaded.coefficients(QUERY)
    changed = loaded.without_domain("code").with_settings(IndexSettings.paper())
    assert not read
    assert torch.equal(changed.fingerprints("legal"), built.fingerprints("legal"))
    assert read == ["legal"]


def stale(folder, library, *args, **kwargs):
    with pytest.raises(StaleError) as caught:
        Constellation.load(folder, library, *args, **kwargs)
    return str(caught.value)


def test_another_generalist_is_told(built, tmp_path):
    built.save(tmp_path / "index")
    other = tiny_library(tmp_path / "other", seed=1)
    assert "its generalist changed" in stale(tmp_path / "index", other)


def test_changed_new_and_missing_probes_are_told(library, built, tmp_path):
    built.save(tmp_path / "index")
    probes = tiny_probes()
    probes["legal"][2] += "!"
    del probes["general"]
    message = stale(tmp_path / "index", library, {**probes, "finance": ["text"]})
    assert "its probes changed" in message
    assert "legal (changed), finance (new), general (gone)" in message


def test_changed_settings_are_told_one_by_one(library, built, tmp_path):
    built.save(tmp_path / "index")
    message = stale(tmp_path / "index", library, settings=IndexSettings(centring="general", noise=0.1))
    assert "its settings changed" in message
    assert "centring 'mean' -> 'general', noise 0.02 -> 0.1" in message
    assert "orthogonalisation" not in message


def test_a_specialist_that_left_is_told_and_can_be_left_out(library, built, tmp_path):
    built.save(tmp_path / "index")
    shutil.copytree(library.root, tmp_path / "copy")
    copy = Library.open(tmp_path / "copy")
    copy.remove("code")
    copy.remove("medical")
    assert "medical, code" in stale(tmp_path / "index", copy)
    loaded = Constellation.load(tmp_path / "index", copy, without=["code", "medical"])
    assert loaded.domains == ("legal", "science")
    torch.testing.assert_close(loaded.coefficients(QUERY), built.without_domain("medical", "code").coefficients(QUERY))


def test_a_changed_specialist_is_told_where_its_signature_is_kept(tmp_path):
    library = tiny_library(tmp_path / "library", names=("medical", "legal"))
    probes = {name: tiny_probes()[name] for name in ("medical", "legal")}
    Constellation.build(library, probes, IndexSettings(domain_signatures=True)).save(tmp_path / "kept")
    Constellation.build(library, probes).save(tmp_path / "plain")
    save(perturbed(tiny_model("gpt2"), 77, 0.2), tmp_path / "library" / "legal")
    changed = Library.open(tmp_path / "library")
    message = stale(tmp_path / "kept", changed)
    assert "a specialist changed" in message
    assert "legal" in message
    assert Constellation.load(tmp_path / "plain", changed).domains == ("medical", "legal")  # nothing of the specialist is in it


def test_another_format_is_told(library, built, tmp_path):
    built.save(tmp_path / "index")
    index = read_json(tmp_path / "index" / "index.json")
    assert index["format_version"] == 1
    write_json(tmp_path / "index" / "index.json", {**index, "format_version": 2})
    assert "format_version 2" in stale(tmp_path / "index", library)
    write_json(tmp_path / "index" / "index.json", {**index, "settings": {**index["settings"], "flavour": 1}})
    assert "settings are no longer known" in stale(tmp_path / "index", library)


@pytest.mark.parametrize("name", ["basis.safetensors", "fingerprints.safetensors", "index.json"])
@pytest.mark.parametrize("how", ["truncated", "missing", "garbage"])
def test_a_damaged_constellation_is_refused(library, built, tmp_path, name, how):
    built.save(tmp_path / "index")
    path = tmp_path / "index" / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] if how == "truncated" else b"\xff" * 100)
    with pytest.raises(StorageError, match=name):
        Constellation.load(tmp_path / "index", library)


@pytest.mark.parametrize(
    ("name", "change"),
    [("basis.safetensors", "a domain fewer"), ("fingerprints.safetensors", "a domain fewer"), ("fingerprints.safetensors", "other counts")],
)
def test_parts_that_do_not_fit_together_are_refused(library, built, tmp_path, name, change):
    built.save(tmp_path / "index")
    other = built.without_domain("code") if change == "a domain fewer" else built.with_domain("code", ["x = 1"])
    other.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, tmp_path / "index" / name)
    with pytest.raises(StorageError, match="damaged"):
        Constellation.load(tmp_path / "index", library)


def test_no_constellation_and_another_folder_are_told_apart(library, built, tmp_path):
    with pytest.raises(StorageError, match="no constellation there"):
        Constellation.load(tmp_path / "nowhere", library)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("precious")
    with pytest.raises(StorageError, match="no constellation"):
        built.save(tmp_path / "letters")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("moment", ["write_tensors", "write_json"])
def test_a_process_killed_while_saving_leaves_the_old_one(library, built, tmp_path, monkeypatch, moment):
    built.save(tmp_path / "index")
    changed = built.without_domain("code")
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(store, moment, lambda *_: os._exit(9))
        changed.save(tmp_path / "index")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    same(Constellation.load(tmp_path / "index", library, tiny_probes()), built)


def test_a_full_disk_leaves_the_old_one_and_nothing_else(library, built, tmp_path, monkeypatch):
    built.save(tmp_path / "index")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_json", full)
        with pytest.raises(StorageError, match=r"(?s)No space left.*untouched"):
            built.without_domain("code").save(tmp_path / "index")
    same(Constellation.load(tmp_path / "index", library), built)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


# ---- size


def test_a_thousand_domains_at_4096(tmp_path):
    names = tuple(f"domain-{n:03}" for n in range(1000))
    library = SimpleNamespace(names=names, root=tmp_path, digest=lambda name=None: "digest")
    draw = torch.Generator().manual_seed(0)
    shared = 2 * torch.randn(4096, generator=draw)
    rows = {name: shared + torch.randn(2, 4096, generator=draw) for name in names}
    built = Constellation.from_fingerprints(library, rows, IndexSettings.paper(), digests=dict.fromkeys(names, "digest"))
    vectors = built.basis.vectors[::50]
    torch.testing.assert_close(vectors @ built.basis.vectors.T, torch.eye(1000)[::50], atol=1e-4, rtol=0)
    built.save(tmp_path / "index")
    loaded = Constellation.load(tmp_path / "index", library)
    query = rows["domain-007"][0]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        found = loaded.basis.coefficients(query)
        seconds.append(time.perf_counter() - start)
    assert torch.equal(found, built.basis.coefficients(query))
    assert min(seconds) < 0.05  # 5 ms where nothing else runs: benchmarks/index.py
