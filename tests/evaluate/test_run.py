"""The evaluation end to end on a tiny library."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asterism.compose.build import compose
from asterism.constellation.index import Constellation
from asterism.constellation.settings import MixtureSettings
from asterism.core.corpus import Probe
from asterism.core.errors import DataError, UnknownName
from asterism.evaluate import passes, run
from asterism.evaluate.results import read_results
from asterism.evaluate.settings import EvaluationSettings
from asterism.evaluate.tables import tables
from tests import tiny

INDEX = tiny.tiny_probes()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny.tiny_library(tmp_path_factory.mktemp("library"), dtype=torch.float32)


@pytest.fixture(scope="module")
def constellation(library):
    return Constellation.build(library, INDEX)


@pytest.fixture(scope="module")
def probes():
    single = [Probe(f"{name}-{i}", text, (name,)) for name, texts in INDEX.items() if name != "general" for i, text in enumerate(texts[:2])]
    return [*single, *tiny.tiny_cross()[:4]]


@pytest.fixture(scope="module")
def evaluated(library, constellation, probes, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    results = run.evaluate(library, constellation, probes, EvaluationSettings(max_length=64), out=out, index_probes=INDEX)
    return out, results


def losses(out, candidate: str, protocol: str) -> np.ndarray:
    return np.array([row["loss"] for row in read_results(out)[1] if (row["candidate"], row["protocol"]) == (candidate, protocol)])


def alone(model, library, text: str, protocol: str) -> float:
    ids = torch.tensor([library.tokenizer(text)["input_ids"][:64]])
    with torch.no_grad():
        logs = torch.log_softmax(model(ids).logits[0, :-1].double(), -1)
    each = -logs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    return float(each.mean() if protocol == "whole" else each[ids.shape[1] // 2 - 1 :].mean())


def half(library, text: str) -> str:
    ids = library.tokenizer(text)["input_ids"][:64]
    return library.tokenizer.decode(ids[: len(ids) // 2])


def test_models_alone_score_as_they_do_by_hand(evaluated, library, probes):
    for protocol in ("whole", "continuation"):
        for name, model in (("generalist", library.model()), ("specialist:legal", library.model("legal"))):
            want = [alone(model, library, probe.text, protocol) for probe in probes]
            np.testing.assert_allclose(losses(evaluated[0], name, protocol), want, atol=1e-4)


def test_default_scores_as_composing_each_probe_by_hand(evaluated, library, constellation, probes):
    for protocol in ("whole", "continuation"):
        texts = [probe.text if protocol == "whole" else half(library, probe.text) for probe in probes]
        mixtures = constellation.mixtures(texts, MixtureSettings(top_k=3))
        want = [alone(compose(library, mixture), library, probe.text, protocol) for mixture, probe in zip(mixtures, probes, strict=True)]
        np.testing.assert_allclose(losses(evaluated[0], "default", protocol), want, atol=1e-4)


def test_best_single_is_the_lowest_specialist_of_each_probe(evaluated, library):
    for protocol in ("whole", "continuation"):
        every = np.stack([losses(evaluated[0], f"specialist:{name}", protocol) for name in library.names])
        np.testing.assert_array_equal(losses(evaluated[0], "best_single", protocol), every.min(axis=0))


def test_task_arithmetic_adds_scaled_deltas(evaluated, library, probes):
    model = library.fresh_model()
    for name, parameter in model.named_parameters():
        total = sum(library.model(s).get_parameter(name) - library.tensor(name) for s in library.names)
        parameter.data.add_(0.3 * total)
    want = [alone(model, library, probe.text, "whole") for probe in probes]
    np.testing.assert_allclose(losses(evaluated[0], "task_arithmetic@0.3", "whole"), want, atol=1e-4)


def test_ensemble_is_the_mean_of_logits(evaluated, library, probes):
    ids = torch.tensor([library.tokenizer(probes[0].text)["input_ids"][:64]])
    with torch.no_grad():
        logits = torch.stack([library.model(name)(ids).logits for name in library.names]).mean(0)
    want = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert losses(evaluated[0], "ensemble_uniform", "whole")[0] == pytest.approx(float(want), abs=1e-4)


def test_mixed_and_materialised_agree(evaluated, library, constellation, probes, tmp_path):
    found = {}
    for execution in ("mixed", "materialised"):
        settings = EvaluationSettings(max_length=64, execution=execution, ensembles=False)
        run.evaluate(library, constellation, probes, settings, out=tmp_path / execution)
        found[execution] = [losses(tmp_path / execution, name, "whole") for name in ("default", "paper", "joint", "random")]
    np.testing.assert_allclose(found["mixed"], found["materialised"], atol=1e-4)


def test_results_hold_what_the_design_names(evaluated):
    out, results = evaluated
    told = json.loads((out / "results.json").read_text())
    row = next(r for r in told["table"] if r["candidate"] == "default" and r["rival"] == "generalist")
    assert set(row) >= {"scale", "seed", "protocol", "task", "candidate", "rival", "n", "rate", "low", "high", "loss", "rival_loss"}
    assert set(told["candidates"]) >= {
        "generalist",
        "best_single",
        "task_arithmetic",
        "ensemble",
        "paper",
        "default",
        "joint",
        "specialist_space",
        "random",
    }
    assert {r["space"] for r in told["retrieval"]} >= {"specialist"}
    assert not (out / ".parts").exists()
    assert results["table"] == told["table"]


def test_batch_order_changes_nothing(evaluated, library, constellation, probes, tmp_path):
    run.evaluate(library, constellation, probes[::-1], EvaluationSettings(max_length=64, max_tokens=70), out=tmp_path, index_probes=INDEX)
    for name in ("default", "paper", "ensemble", "best_single"):
        np.testing.assert_allclose(losses(tmp_path, name, "whole")[::-1], losses(evaluated[0], name, "whole"), atol=1e-4)


def test_killed_run_goes_on(library, constellation, probes, tmp_path, monkeypatch, evaluated):
    real, calls = passes.score_composed, []

    def dies(*args):
        calls.append(args[1].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    settings = EvaluationSettings(max_length=64)
    monkeypatch.setattr(run, "score_composed", dies)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(library, constellation, probes, settings, out=tmp_path, index_probes=INDEX)
    assert not (tmp_path / "results.json").exists()
    monkeypatch.setattr(run, "read_all", None)  # would fail if the common pass ran again
    results = run.evaluate(library, constellation, probes, settings, out=tmp_path, index_probes=INDEX)
    assert calls.count("default") == 2  # once a protocol, before the kill, and not again
    assert results["table"] == evaluated[1]["table"]


def test_tables_over_seeds_count_each_probe_once(evaluated):
    rows = read_results(evaluated[0])[1]
    wins, _ = tables([*rows, *({**row, "seed": 43} for row in rows)], "tiny")
    asked = ("all", "default", "generalist", "cross", "all")
    row = next(r for r in wins if (r["seed"], r["candidate"], r["rival"], r["task"], r["group"]) == asked)
    assert row["n"] == 4


def test_noise_on_the_weights_is_drawn_from_what_is_read(library, constellation, probes, tmp_path):
    noisy = constellation.with_settings(constellation.settings.changed(noise_site="weights", noise=0.5))
    run.evaluate(library, noisy, probes[:2], EvaluationSettings(max_length=64, ensembles=False), out=tmp_path)
    for protocol in ("whole", "continuation"):
        texts = [probe.text if protocol == "whole" else half(library, probe.text) for probe in probes[:2]]
        want = [alone(compose(library, m), library, probe.text, protocol) for m, probe in zip(noisy.mixtures(texts), probes, strict=False)]
        np.testing.assert_allclose(losses(tmp_path, "default", protocol), want, atol=1e-4)


def test_a_probe_too_short_is_named(library, constellation, tmp_path):
    with pytest.raises(DataError, match="too short to score"):
        run.evaluate(library, constellation, [Probe("brief", "a", ("legal",))], out=tmp_path)


def test_a_probe_of_an_unknown_domain_is_named(library, constellation, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'legal'"):
        run.evaluate(library, constellation, [Probe("x", "a b c d e f g h", ("legul",))], out=tmp_path)
