"""Merges as candidates: the rows of an evaluation are those of the model; what is told of a setting stays what it was."""

from __future__ import annotations

import pytest
import torch

from asterism.constellation.index import Constellation
from asterism.core.progress import quiet
from asterism.core.storage import digest_of
from asterism.evaluate.merges import ByData, ByRecipe, PerTask, Soup
from asterism.evaluate.results import read_results
from asterism.evaluate.run import evaluate
from asterism.evaluate.settings import EvaluationSettings
from asterism.merge.emr import Emr
from asterism.models.likelihood import logits_of, token_losses
from tests.tiny import tiny_cross, tiny_probes, tiny_singles

SETTINGS = EvaluationSettings(max_length=48, ensembles=False)
PROBES = [*tiny_singles()[::4], *tiny_cross()[:3]]


def test_merges_are_rows_of_the_evaluation(library, tmp_path):
    chosen = [ByRecipe("ties", {"density": 0.5, "lambda": 0.3}, 5.0), ByRecipe("karcher"), PerTask()]
    with quiet():
        index = Constellation.build(library, tiny_probes())
        results = evaluate(library, index, PROBES, SETTINGS, out=tmp_path, merges=chosen)
    assert "density 0.5, lambda 0.3, chosen on validation probes" in results["candidates"]["ties"]
    assert results["origin"]["merges"][0]["parameters"] == {"density": 0.5, "lambda": 0.3}
    rows = {row["probe"]: row["loss"] for row in read_results(tmp_path)[1] if (row["candidate"], row["protocol"]) == ("ties", "whole")}
    model = chosen[0].build(library).eval()
    for probe in PROBES:
        ids = torch.tensor([library.tokenizer(probe.text)["input_ids"][:48]])
        with torch.inference_mode():
            assert rows[probe.id] == pytest.approx(float(token_losses(logits_of(model, ids), ids).mean()), abs=1e-4)
    assert "mask" in results["candidates"]["emr"]
    emr = {row["probe"]: row["loss"] for row in read_results(tmp_path)[1] if (row["candidate"], row["protocol"]) == ("emr", "whole")}
    routed = constellation_picks(library, index)
    for probe in PROBES[:4]:
        ids = torch.tensor([library.tokenizer(probe.text)["input_ids"][:48]])
        with torch.inference_mode():
            loss = token_losses(logits_of(Emr.build(library).model(routed[probe.id]), ids), ids).mean()
        assert emr[probe.id] == pytest.approx(float(loss), abs=1e-4)
    assert any(row["candidate"] == "karcher" and row["rival"] == "generalist" for row in results["table"])


def constellation_picks(library, index) -> dict[str, str]:
    """probe -> the specialist of its largest coefficient."""
    found = {}
    for probe in PROBES:
        text = library.tokenizer.decode(library.tokenizer(probe.text)["input_ids"][:48])
        found[probe.id] = library.names[int(index.coefficients(text).argmax())]
    return found


def test_what_is_told_names_parts_on_the_disk_and_so_never_changes():
    texts = {"legal": ["one", "two"]}
    kinds = [
        ByRecipe("ties", {"density": 0.2, "lambda": 1.0}, 2.5), ByData("fisher", {"floor": 1e-6}, None, texts),
        ByData("regmean", {"alpha": 0.9}), Soup(("legal", "code"), 2.0), PerTask(),
    ]  # fmt: skip
    told = [
        {"method": "ties", "parameters": {"density": 0.2, "lambda": 1.0}, "validation_loss": 2.5},
        {"method": "fisher", "parameters": {"floor": 1e-6}, "validation_loss": None, "texts": digest_of(texts)},
        {"method": "regmean", "parameters": {"alpha": 0.9}, "validation_loss": None},
        {"method": "greedy_soup", "parameters": {"names": ["legal", "code"]}, "validation_loss": 2.0},
        {"method": "emr", "parameters": {}, "validation_loss": None},
    ]
    assert [kind.told for kind in kinds] == told
    assert [kind.name for kind in kinds] == [each["method"] for each in told]
