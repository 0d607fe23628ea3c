"""Every command on a tiny library: what `--json` says is what was done."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from asterism.constellation.index import Constellation
from asterism.models.library import Library
from tests import tiny

QUERY = "Is a surgeon liable for negligence when the patient develops an infection?"


@pytest.fixture(scope="module")
def opened(original) -> tuple[Library, Constellation]:
    library = Library.open(original)
    return library, Constellation.load(original / "constellation", library)


def test_index_makes_library_and_constellation(asterism, original, data, tmp_path):
    members = [part for name in ("legal", "code") for part in ("--specialist", f"{name}={original / name}")]
    ran = asterism(
        "index", tmp_path / "new", "--data", data, "--generalist", original / "generalist", *members, "--probes-per-domain", 3, "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.answer["domains"] == ["legal", "code"]
    assert ran.answer["probes"] == {"legal": 3, "code": 3}
    library = Library.open(tmp_path / "new")
    assert Constellation.load(tmp_path / "new" / "constellation", library).general_mean is not None
    assert not (tmp_path / "new" / ".fingerprints").exists()


def test_the_same_index_command_goes_on_with_a_library_it_has_made(asterism, library, original, data):
    given = ("--generalist", library / "generalist", "--specialist", f"legal={library / 'legal'}", "--data", data, "--json")
    ran = asterism("index", library, *given)
    assert ran.code == 0, ran.err
    assert ran.answer["domains"] == list(tiny.DOMAINS)
    other = asterism("index", library, "--specialist", f"legal={original / 'code'}", "--data", data)
    assert other.code == 2
    assert "The library holds another legal." in other.err


def test_index_paper_takes_the_papers_settings_and_options_change_them(asterism, library, data):
    ran = asterism("index", library, "--data", data, "--paper", "--centring", "general", "--json")
    assert ran.code == 0, ran.err
    assert ran.answer["settings"]["orthogonalisation"] == "gram_schmidt"
    assert ran.answer["settings"]["centring"] == "general"


def test_a_domain_leaves_the_index_and_comes_back_as_it_was(asterism, library, data):
    before = Constellation.load(library / "constellation", Library.open(library))
    assert asterism("index", library, "--remove", "legal", "--json").answer["domains"] == ["medical", "code", "science"]
    back = asterism("index", library, "--add", "legal", "--data", data, "--json")
    assert back.answer["domains"] == ["medical", "legal", "code", "science"]
    after = Constellation.load(library / "constellation", Library.open(library))
    torch.testing.assert_close(after.basis.vectors, before.basis.vectors)


def test_diagnose_gives_advice(asterism, original):
    found = asterism("diagnose", original, "--json").answer
    assert found["domains"] == list(tiny.DOMAINS)
    assert found["advice"] in {"merge", "compose", "add noise", "domains not separable"}
    assert "asterism calibrate" in found["notes"][-1]
    people = asterism("diagnose", original)
    assert f"advice: {found['advice']}" in people.out
    assert "medical" in people.out


def test_explain_tells_the_coefficients_and_mixture_of_the_library(asterism, original, opened):
    found = asterism("explain", original, QUERY, "--top-k", 2, "--json").answer
    mixture = opened[1].mixture(QUERY, top_k=2)
    assert found["coefficients"] == pytest.approx(dict(zip(tiny.DOMAINS, opened[1].coefficients(QUERY).tolist(), strict=True)), abs=1e-5)
    assert found["shares"] == pytest.approx(mixture.shares, abs=1e-5)
    assert sum(found["shares"].values()) + found["generalist"] == pytest.approx(1, abs=1e-5)
    assert found["losses"] == pytest.approx({name or "generalist": loss for name, loss in mixture.losses.items()}, abs=1e-4)
    assert 0 <= found["entropy"] <= found["largest_entropy"] == pytest.approx(1.585, abs=1e-3)
    assert [layer["layer"] for layer in found["layers"]] == list(range(opened[0].anatomy.n_blocks))
    for layer in found["layers"]:
        assert sum(layer["held"].values()) == pytest.approx(1, abs=1e-5)
        assert layer["most"] == max(layer["held"], key=layer["held"].get)
    people = asterism("explain", original, QUERY)
    assert "█" in people.out
    assert "entropy" in people.out
    assert "generalist" in people.out
    fast = asterism("explain", original, QUERY, "--mode", "fast", "--json").answer
    assert fast["losses"] == {}
    assert fast["shares"] == pytest.approx(opened[1].mixture(QUERY, mode="fast").shares, abs=1e-5)
    paper = asterism("explain", original, QUERY, "--paper", "--json").answer
    assert (paper["mode"], paper["losses"], paper["generalist"]) == ("nodes", {}, 0)


def test_explain_reads_stdin(asterism, original, monkeypatch):
    import io
    import sys
    from types import SimpleNamespace

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(QUERY.encode())))
    assert asterism("explain", original, "-", "--json").answer["text"] == QUERY


def test_compose_writes_the_model_that_python_composes(asterism, original, opened, tmp_path):
    from asterism.compose.build import compose

    ran = asterism("compose", original, QUERY, "--out", tmp_path / "out", "--layers", "2", "--json")
    assert ran.code == 0, ran.err
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    want = compose(opened[0], opened[1].mixture(QUERY), layers=2)
    for (name, got), expected in zip(loaded.named_parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=name)
    generalist = opened[0].tensor("transformer.h.4.mlp.c_fc.weight")
    assert not torch.equal(loaded.get_parameter("transformer.h.4.mlp.c_fc.weight"), generalist)


def test_compose_writes_an_adapter_with_its_errors(asterism, original, tmp_path):
    ran = asterism("compose", original, QUERY, "--out", tmp_path / "out", "--as", "adapter", "--rank", 2, "--json")
    assert ran.code == 0, ran.err
    errors = ran.answer["adapter"]["errors"]
    assert errors
    assert all(0 < error < 1 for error in errors.values())
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_generate_answers_each_text_under_its_own_mixture(asterism, original, opened):
    texts = [QUERY, "for i in range(3):"]
    found = asterism("generate", original, *texts, "--max-new-tokens", 4, "--json").answer["answers"]
    assert [one["query"] for one in found] == texts
    for one, mixture in zip(found, opened[1].mixtures(texts), strict=True):
        assert one["shares"] == pytest.approx(mixture.shares, abs=1e-5)
    alone = asterism("generate", original, texts[0], "--max-new-tokens", 4, "--json").answer["answers"][0]
    assert alone["answer"] == found[0]["answer"]


def test_evaluate_leaves_results_rows_and_report(asterism, original, data, tmp_path):
    size = ("--single-per-domain", 2, "--cross-per-pair", 1)
    ran = asterism("evaluate", original, "--data", data, "--protocol", "whole", "--out", tmp_path / "out", *size, "--json")
    assert ran.code == 0, ran.err
    assert ran.answer["probes"] == 4 * 2 + 6
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["protocol"] for row in results["table"]} == {"whole"}
    assert {"generalist", "best_single", "paper", "default"} <= {row["candidate"] for row in results["losses"]}
    assert all(math.isfinite(row["loss"]) for row in results["losses"])
    assert (tmp_path / "out" / "rows.parquet").exists()
    assert "<html" in (tmp_path / "out" / "report.html").read_text()


def test_calibrate_keeps_what_it_fits_and_an_evaluation_never_sees_its_probes(asterism, library, data, tmp_path):
    counts = ("--single-per-domain", 1, "--cross-per-pair", 1, "--max-length", 64)
    ran = asterism("calibrate", library, "--data", data, "--per-group", 1, *counts, "--json")
    assert ran.code == 0, ran.err
    kept = Constellation.load(library / "constellation", Library.open(library)).calibration
    assert kept.scale == ran.answer["scale"]
    assert len(kept.probes) == ran.answer["probes"] >= 4
    assert ran.answer["losses"]["default"] == kept.losses["default"]
    told = asterism("diagnose", library, "--json").answer
    assert "Measured on" in told["reason"]
    tested = asterism("evaluate", library, "--data", data, "--out", tmp_path / "out", *counts, "--json")
    assert tested.code == 0, tested.err
    more = ("--single-per-domain", 9, "--cross-per-pair", 9, "--max-length", 64)
    refused = asterism("evaluate", library, "--data", data, "--out", tmp_path / "other", *more)
    assert refused.code == 2
    assert "calibrated on" in refused.err


def test_train_makes_a_library_from_nothing(asterism, data, tmp_path):
    short = ("--steps", 2, "--batch-size", 1, "--max-length", 16, "--quiet", "--device", "cpu", "--json")
    size = ("--shape", "qwen2", "--hidden", 32, "--blocks", 2, "--vocabulary", 300)
    first = asterism("train", tmp_path / "new", "generalist", "--data", data, *size, *short)
    assert first.code == 0, first.err
    second = asterism(
        "train", tmp_path / "new", "legal", "--data", data / "legal.train.jsonl", "--preset", "mlp", "--learning-rate", 0.01, *short
    )
    assert second.code == 0, second.err
    assert second.answer["settings"]["method"] == "mlp"
    assert second.answer["settings"]["schedule"] == "cosine_to_tenth"
    library = Library.open(tmp_path / "new")
    assert library.names == ("legal",)
    assert library.config.model_type == "qwen2"
    roles = {library.anatomy.role_of(name) for name in library.anatomy.shapes if library.change("legal", name) is not None}
    assert roles == {"mlp"}
    again = asterism(
        "train", tmp_path / "new", "legal", "--data", data / "legal.train.jsonl", "--preset", "mlp", "--learning-rate", 0.01, *short
    )
    assert again.code == 0, again.err


def test_train_goes_on_from_a_given_model(asterism, original, data, tmp_path):
    short = ("--steps", 1, "--batch-size", 1, "--max-length", 16, "--quiet", "--device", "cpu", "--json")
    ran = asterism("train", tmp_path / "new", "generalist", "--data", data, "--from", original / "generalist", *short)
    assert ran.code == 0, ran.err
    ran = asterism("train", tmp_path / "new", "code", "--data", data, "--preset", "target", "--method", "lora", "--lora-rank", 2, *short)
    assert ran.code == 0, ran.err
    assert ran.answer["settings"]["learning_rate"] == 8e-5
    assert Library.open(tmp_path / "new").names == ("code",)
