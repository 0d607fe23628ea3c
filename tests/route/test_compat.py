"""Compatibility of two models: every figure is that of its own measurement, and texts are those of the pair."""

from __future__ import annotations

import json

import pytest
import torch

from asterism.constellation.settings import SimilaritySettings
from asterism.constellation.similarity import similarity
from asterism.core.corpus import Corpus, Probe
from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.models.likelihood import read
from asterism.route.barrier import barrier
from asterism.route.compat import compat, pair_texts
from asterism.route.deltas import conflicts
from asterism.route.interpolation import sweep
from asterism.route.settings import CompatSettings
from tests import tiny

PAIR = ("medical", "code")
TEXTS = [text for text, domains in tiny.CROSS if set(domains) == set(PAIR)] + list(tiny.PROBES["medical"])
GENERAL = list(tiny.PROBES["general"])
FEW = CompatSettings(points=3, max_length=48)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny.tiny_library(tmp_path_factory.mktemp("library"), "qwen2", (*PAIR, "legal"), "mlp")


def test_figures_are_those_of_each_measurement(library):
    found = compat(library, *PAIR, TEXTS, general=GENERAL, settings=FEW.changed(slerp=True))
    shares = (0.0, 0.5, 1.0)
    want = sweep(library, *PAIR, TEXTS, ("lerp", "slerp", "activation"), shares=shares, max_length=48)
    assert list(found.sweeps) == ["lerp", "slerp", "activation"]
    for kind, own in want.items():
        torch.testing.assert_close(found.sweeps[kind].losses.whole, own.losses.whole)
        assert found.barriers[kind] == barrier(shares, own.losses.whole, 42)
    assert found.deltas == conflicts(library, *PAIR)
    for name, texts in (("target", TEXTS), ("general", GENERAL)):
        cka = similarity(library.model("medical"), library.model("code"), library.tokenizer, texts).map
        torch.testing.assert_close(found.maps[name].map, cka)
        assert found.similar[name] == pytest.approx(float(cka.diagonal().mean()))
    for name in ("generalist", *PAIR):
        losses = read(library.model(None if name == "generalist" else name), library.tokenizer, TEXTS, max_length=48)[1]
        torch.testing.assert_close(found.losses[name].whole.float(), losses, rtol=1e-5, atol=1e-5)


def test_layers_within_each_model_are_compared_if_asked(library):
    found = compat(library, *PAIR, TEXTS, settings=FEW.changed(within=True))
    assert list(found.to_dict()["within"]) == list(PAIR)
    torch.testing.assert_close(found.within["code"].map, similarity(library.model("code"), None, library.tokenizer, TEXTS).map)
    assert not compat(library, *PAIR, TEXTS, settings=FEW).within


def test_what_is_told_is_json_and_says_what_was_done(library):
    found = compat(library, *PAIR, TEXTS, settings=FEW, comparing=SimilaritySettings(site="block", unit="text"))
    told = json.loads(json.dumps(found.to_dict()))
    assert (told["left"], told["right"], told["texts"]) == (*PAIR, len(TEXTS))
    assert list(told["losses"]) == ["generalist", *PAIR]
    assert [(row["kind"], row["share"]) for row in told["paths"]] == [(kind, s) for kind in ("lerp", "activation") for s in (0, 0.5, 1)]
    assert told["best"] == min(told["paths"], key=lambda row: row["loss"])
    assert list(told["similarity"]) == ["target"]
    assert told["similarity"]["target"]["settings"]["site"] == "block"
    assert list(told["ways"]) == ["generalist", "specialist", "merge", "compose", "route"]
    assert told["advice"] in ("merge", "compose", "route", "neither")
    assert f"{found.ways['merge'].loss:.3f}" in told["reason"]
    assert told["deltas"]["attention"]["norms"] == [0, 0]


def test_a_specialist_beside_the_generalist(library):
    found = compat(library, "generalist", "code", TEXTS, settings=FEW)
    assert list(found.losses) == ["generalist", "code"]
    assert torch.equal(found.losses["generalist"].whole, found.sweeps["lerp"].losses.whole[-1])
    assert found.deltas["all"].norms[0] == 0
    assert "activation" in found.sweeps


def test_specialists_that_differ_elsewhere_are_routed_only_by_choice(tmp_path):
    library = tiny.tiny_library(tmp_path, "gpt2", PAIR)
    found = compat(library, *PAIR, TEXTS, settings=FEW)
    assert (list(found.sweeps), list(found.ways)) == (["lerp"], ["generalist", "specialist", "merge", "compose"])
    assert "more than their MLPs" in found.notes[0]
    chosen = compat(library, *PAIR, TEXTS, settings=FEW.changed(attention="mean"))
    assert list(chosen.sweeps) == ["lerp", "activation"]
    off = compat(library, *PAIR, TEXTS, settings=FEW.changed(activation=False))
    assert list(off.sweeps) == ["lerp"]
    assert not any("MLPs" in note for note in off.notes)


def test_bad_names_and_texts_are_refused(library):
    with pytest.raises(UnknownName, match="did you mean 'medical'"):
        compat(library, "medicl", "code", TEXTS)
    with pytest.raises(SettingsError, match="two ends"):
        compat(library, "code", "code", TEXTS)
    for texts in ([], [""], ["x"]):
        with pytest.raises(DataError):
            compat(library, *PAIR, texts)
    with pytest.raises(DataError):
        compat(library, *PAIR, TEXTS, general=[""])


def corpus(**heldout: int) -> Corpus:
    cross = [Probe(f"x{n}", f"both {n}", ("medical", "code")) for n in range(6)] + [Probe("y", "other", ("legal", "code"))]
    own = {name: [Probe(f"{name}-{n}", f"{name} {n}", (name,)) for n in range(count)] for name, count in heldout.items()}
    return Corpus({"general": [f"train {n}" for n in range(9)]}, own, cross)


def test_texts_are_the_pairs_cross_domain_probes_first():
    texts, general = pair_texts(corpus(code=2), "code", "medical", most=4)
    assert len(set(texts)) == len(set(general)) == 4
    assert all(text.startswith("both") for text in texts)
    assert all(text.startswith("train") for text in general)
    assert (texts, general) == pair_texts(corpus(code=2), "code", "medical", most=4)
    assert texts != pair_texts(corpus(code=2), "code", "medical", most=4, seed=7)[0]


def test_else_they_are_held_out_texts_of_both():
    texts, general = pair_texts(corpus(code=2, medical=3, legal=1, general=2), "medical", "legal")
    assert sorted(texts) == ["legal 0", "medical 0", "medical 1", "medical 2"]
    assert sorted(general) == ["general 0", "general 1"]
    assert sorted(pair_texts(corpus(code=2), "code", "generalist")[0]) == ["code 0", "code 1"]
    with pytest.raises(DataError, match=r"cross\.medical-legal\.jsonl"):
        pair_texts(corpus(), "medical", "legal")
