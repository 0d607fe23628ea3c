"""Routers as candidates: the rows of an evaluation are those of the routed model; another library's and those that learnt are refused."""

from __future__ import annotations

import pytest
import torch

from asterism.constellation.index import Constellation
from asterism.core.errors import DataError, SettingsError, StaleError, StorageError
from asterism.core.progress import quiet
from asterism.evaluate.results import read_results
from asterism.evaluate.routers import open_routers
from asterism.evaluate.run import evaluate
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.likelihood import logits_of, token_losses
from asterism.report.findings import label
from asterism.route.arrow import arrow_gates
from asterism.route.build import route, save_router
from asterism.route.texts import TaskTexts, keep_texts
from asterism.route.untrained import route_untrained
from tests.tiny import tiny_cross, tiny_library, tiny_probes, tiny_singles

SETTINGS = EvaluationSettings(max_length=48, ensembles=False, task_arithmetic=(0.5,))
PROBES = [*tiny_singles()[::6], *tiny_cross()[:2]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A library of MLP specialists, its index, and the folders of three routers."""
    root = tmp_path_factory.mktemp("library")
    with quiet():
        library = tiny_library(root, "qwen2", kind="mlp")
        models = {
            "full": route(library, with_generalist=True, top_k=2),
            "pair": route(library, experts=("medical", "legal"), scope="single", gate="mlp", depth=2),
            "arrow": route_untrained(library, arrow_gates(library)),
        }
        folders = {name: save_router(model, root / "routers" / name) for name, model in models.items()}
        return library, Constellation.build(library, tiny_probes()), folders


def test_routers_are_rows_of_the_evaluation(made, tmp_path):
    library, index, folders = made
    routers = open_routers(library, folders)
    with quiet():
        results = evaluate(library, index, PROBES, SETTINGS, out=tmp_path, routers=routers)
    assert [each["router"] for each in results["origin"]["routers"]] == list(folders)
    assert "medical, legal, code, science, generalist side by side" in results["candidates"]["router:full"]
    assert "(a linear gate in every layer, top 2)" in results["candidates"]["router:full"]
    assert "(a two-layer gate for all layers, over 2 layers)" in results["candidates"]["router:pair"]
    rows = read_results(tmp_path)[1]
    for router in routers:
        own = {row["probe"]: row["loss"] for row in rows if (row["candidate"], row["protocol"]) == (router.name, "whole")}
        model = router.build(library).eval()
        for probe in PROBES:
            ids = torch.tensor([library.tokenizer(probe.text)["input_ids"][:48]])
            with torch.inference_mode():
                assert own[probe.id] == pytest.approx(float(token_losses(logits_of(model, ids), ids).mean()), abs=1e-4)
    assert any(row["candidate"] == "router:arrow" and row["rival"] == "generalist" for row in results["table"])
    assert label("router:arrow") == "arrow router"


def test_a_router_of_another_library_is_refused_before_anything_is_scored(made, tmp_path):
    other = tiny_library(tmp_path / "other", "qwen2", kind="mlp", seed=7)
    with pytest.raises(StaleError, match="made with another library"):
        open_routers(other, made[2])


def test_probes_that_a_router_has_learnt_from_are_refused(made, tmp_path):
    library, index, _ = made
    folder = save_router(route(library), tmp_path / "router")
    keep_texts(folder, TaskTexts([PROBES[0].text], []))
    with pytest.raises(DataError, match="learnt from these texts"):
        evaluate(library, index, PROBES, SETTINGS, out=tmp_path / "out", routers=open_routers(library, {"mine": folder}))


def test_what_is_no_router_and_what_is_no_name_is_told(made, tmp_path):
    with pytest.raises(StorageError, match="no router here"):
        open_routers(made[0], {"mine": tmp_path})
    with pytest.raises(SettingsError, match="one word"):
        open_routers(made[0], {"my router": made[2]["full"]})
