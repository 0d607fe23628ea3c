"""The choice of a merge's setting: every grid is one that its method takes, the best of it is found, a killed search goes on."""

from __future__ import annotations

import pytest
import torch

from asterism.core.errors import DataError, MismatchError, UnknownName
from asterism.core.progress import quiet
from asterism.evaluate import merges
from asterism.evaluate.settings import EvaluationSettings
from asterism.evaluate.tuning import GRIDS, grid, possible, tuned
from asterism.merge.methods import METHODS
from asterism.models.likelihood import logits_of, token_losses
from tests.tiny import tiny_cross, tiny_probes, tiny_singles

SETTINGS = EvaluationSettings(max_length=48, ensembles=False)
PROBES = [*tiny_singles()[::4], *tiny_cross()[:3]]


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_is_its_methods(name):
    if name not in METHODS:
        assert name in (*merges.BY_DATA, merges.SOUP, merges.EMR)
        return
    method = METHODS[name]
    count = min(max(method.least, 2), method.most or 2)
    for candidate in grid(name):
        method.bind({"weight": 1.0, **candidate.parameters} if "weight" in method.parameters else candidate.parameters, [{}] * count)
        assert method.title in candidate.about


def test_every_method_of_mergekit_has_a_grid_or_is_there_anyway():
    assert METHODS.keys() - GRIDS.keys() == {"linear", "uniform", "task_arithmetic", "passthrough"}


def test_grids_go_below_the_factor_at_which_four_deltas_are_too_much():
    factors = {name: values["lambda"] for name, values in GRIDS.items() if "lambda" in values}
    assert set(factors) == {"ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear"}
    assert all(min(tried) < 0.3 and 1.0 in tried for tried in factors.values())


def test_which_methods_fit_a_library(library):
    assert "slerp" not in possible(library)
    assert {"ties", "karcher", "model_stock", "sce"} <= set(possible(library))
    assert possible(library, ["ties", "ties"]) == ["ties"]
    with pytest.raises(MismatchError, match="slerp"):
        possible(library, ["slerp"])
    with pytest.raises(UnknownName, match="ties"):
        possible(library, ["tise"])


def test_the_best_of_the_grid_is_taken(library, monkeypatch, tmp_path):
    monkeypatch.setitem(GRIDS, "ties", {"density": (0.2, 1.0), "lambda": (0.0, 0.3)})
    with quiet():
        (best,) = tuned(library, ["ties"], PROBES[:4], SETTINGS, state=tmp_path / "state")
        losses = {}
        for candidate in grid("ties"):
            model = candidate.build(library).eval()
            whole, half = [], []
            for probe in PROBES[:4]:
                ids = torch.tensor([library.tokenizer(probe.text)["input_ids"][:48]])
                with torch.inference_mode():
                    loss = token_losses(logits_of(model, ids), ids)[0]
                whole.append(loss.mean())
                half.append(loss[ids.shape[1] // 2 - 1 :].mean())
            losses[float(torch.stack(whole).mean() + torch.stack(half).mean()) / 2] = candidate.parameters
    assert best.validation_loss == pytest.approx(min(losses), abs=1e-5)
    assert best.parameters == losses[min(losses)] or losses[min(losses)]["lambda"] == 0
    assert not (tmp_path / "state").exists()
    with pytest.raises(DataError, match="validation"):
        tuned(library, ["ties"], [], SETTINGS)


def test_a_killed_search_goes_on_in_a_grid_that_has_grown(library, monkeypatch, tmp_path):
    calls = []

    def dying(*given):
        calls.append(given[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(*given)

    own = merges.score_static
    monkeypatch.setattr(merges, "score_static", dying)
    monkeypatch.setitem(GRIDS, "sce", {"select_topk": (0.1, 0.5, 1.0)})
    with quiet(), pytest.raises(KeyboardInterrupt):
        tuned(library, ["sce", "karcher"], PROBES[:4], SETTINGS, state=tmp_path / "state")
    monkeypatch.setitem(GRIDS, "sce", {"select_topk": (0.05, 0.1, 0.5, 1.0)})
    with quiet():
        tuned(library, ["sce", "karcher"], PROBES[:4], SETTINGS, state=tmp_path / "state")
    assert [call.parameters.get("select_topk") for call in calls] == [0.1, 0.5, 1.0, 0.05, 1.0, None]


def test_merges_by_data_are_tuned_too(library):
    texts = {name: tiny_probes()[name][:3] for name in library.names}
    with quiet():
        best = tuned(library, ["fisher", "regmean", "greedy_soup", "emr"], PROBES[:4], SETTINGS, texts=texts)
    by = {candidate.name: candidate for candidate in best}
    assert by["fisher"].parameters["floor"] in GRIDS["fisher"]["floor"]
    assert set(by["greedy_soup"].parameters["names"]) <= set(library.names)
    assert all(candidate.validation_loss is not None for name, candidate in by.items() if name != "emr")
    for name in ("fisher", "greedy_soup"):
        assert by[name].build(library).num_parameters() == library.model().num_parameters()
        assert "model" in by[name].about
    assert "texts" in by["fisher"].told
