"""`asterism export`: a mixture, a domain's mean, as a checkpoint or an adapter."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from asterism.compose.build import compose
from asterism.compose.settings import CompositionSettings
from asterism.constellation.averages import domain_mixture
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.settings import MixtureSettings
from asterism.core.storage import read_json
from asterism.models.library import Library
from tests.cli.test_errors import refused


@pytest.fixture(scope="module")
def opened(original) -> tuple[Library, Constellation]:
    library = Library.open(original)
    return library, Constellation.load(original / "constellation", library)


def equal(folder, model) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    for (name, got), want in zip(loaded.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, want, msg=name)


def test_a_mixture(asterism, original, opened, tmp_path):
    ran = asterism("export", original, "--mixture", "medical=0.5, legal=0.3", "--out", tmp_path / "out", "--layers", 2, "--json")
    assert ran.code == 0, ran.err
    assert ran.answer["shares"] == pytest.approx({"medical": 0.5, "legal": 0.3})
    assert ran.answer["generalist"] == pytest.approx(0.2)
    want = Mixture.fixed({"medical": 0.5, "legal": 0.3}, 16, generalist=0.2)
    equal(tmp_path / "out", compose(opened[0], want, layers=2))


@pytest.mark.parametrize("read", [False, True])
def test_a_domains_mean_mixture(asterism, original, opened, data, tmp_path, read):
    more = ("--data", data) if read else ()
    ran = asterism("export", original, "--domain", "legal", "--out", tmp_path / "out", *more, "--top-k", 2, "--json")
    assert ran.code == 0, ran.err
    texts = [json.loads(row)["text"] for row in (data / "legal.train.jsonl").read_text().splitlines()]
    settings = MixtureSettings(top_k=2, mode="evidence" if read else "fast")
    want = domain_mixture(opened[1], "legal", settings, texts if read else None)
    assert ran.answer["origin"] == {"domain": "legal", "probes": 6, "mode": settings.mode}
    assert ran.answer["shares"] == pytest.approx(want.shares, abs=1e-5)
    assert read_json(tmp_path / "out" / "composition.json")["origin"] == ran.answer["origin"]
    told = asterism("export", original, "--domain", "legal", "--out", tmp_path / "out", *more, "--top-k", 2)
    assert "of domain legal, probes 6, mode" in told.out
    assert "checkpoint: " in told.out


def test_a_saved_composition(asterism, library, tmp_path):
    from asterism.serve.saved import Saved

    opened, mixture = Library.open(library), Mixture.fixed({"code": 0.6, "legal": 0.1}, 16, generalist=0.3, scale=1.2)
    Saved(opened).save("mine", mixture, CompositionSettings(layers=2), origin={})
    ran = asterism("export", library, "--saved", "mine", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert ran.answer["origin"] == {"saved": "mine"}
    assert ran.answer["delta_scale"] == pytest.approx(1.2)
    equal(tmp_path / "out", compose(opened, mixture, layers=2))
    refused(asterism("export", library, "--saved", "mien", "--out", tmp_path / "other"), "did you mean 'mine'")
    refused(asterism("export", library, "--saved", "mine", "--layers", 1, "--out", tmp_path / "other"), "layers")


def test_an_adapter(asterism, original, tmp_path):
    ran = asterism("export", original, "--mixture", "code=1", "--out", tmp_path / "out", "--as", "adapter", "--rank", 2)
    assert ran.code == 0, ran.err
    assert "largest relative error" in ran.out
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_what_cannot_be_exported(asterism, original, data, tmp_path):
    def ran(*given):
        return asterism("export", original, "--out", tmp_path / "out", *given)

    refused(ran(), "--domain, --mixture and --saved")
    refused(ran("--domain", "legal", "--mixture", "legal=1"), "--domain and --mixture")
    refused(ran("--domain", "leagl"), "did you mean 'legal'")
    refused(ran("--domain", "legal", "--mode", "evidence"), "mode fast")
    refused(ran("--mixture", "legal=1", "--data", data), "leave --data out")
    refused(ran("--mixture", "legal=1", "--top-k", 2), "top_k")
    refused(ran("--mixture", "leagl=1"), "did you mean 'legal'")
    refused(ran("--mixture", "legal=0.8,code=0.8"), "sum to 1")
    refused(ran("--mixture", "legal=0.5,legal=0.5"), "each name once")
    refused(ran("--mixture", "legal"), "name=SHARE")
    refused(ran("--mixture", "legal=1", "--rank", 2), "Only an adapter has a rank.")
    assert not (tmp_path / "out").exists()
