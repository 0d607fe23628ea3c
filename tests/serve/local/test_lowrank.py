"""Full specialists of low rank: exact where the rank is enough, and the rank that is enough is found."""

from __future__ import annotations

import pytest
import torch

from asterism.constellation.mixture import Mixture
from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.models.changes import Dense, LowRank
from asterism.models.library import Library
from asterism.serve.jobs import Composition
from asterism.serve.local.execution import Executor
from asterism.serve.local.lowrank import least_rank, truncated
from asterism.serve.local.policy import ExecutionSettings
from tests import tiny
from tests.compose.conftest import left_padded

RANK = 3


@pytest.fixture(scope="module", params=["gpt2", "qwen2"])
def library(request, tmp_path_factory) -> Library:
    """Two full specialists whose matrices changed in RANK directions, one of them more than the other, with a breath of noise."""
    folder = tmp_path_factory.mktemp(request.param)
    base = tiny.tiny_model(request.param, 0)
    tiny.save(base, folder / "generalist")
    for seed, (name, far) in enumerate((("near", 0.2), ("far", 1.0)), 1):
        model, draw = tiny.perturbed(base, seed, 1e-5), torch.Generator().manual_seed(seed)
        for parameter in (each for path, each in model.named_parameters() if each.ndim == 2 and ("mlp" in path or "attn" in path)):
            up, down = (torch.randn(size, RANK, generator=draw) for size in parameter.shape)
            parameter.data += far * 0.02 * up @ down.T
        tiny.save(model, folder / name)
    return Library.create(folder, str(folder / "generalist"), {name: folder / name for name in ("near", "far")})


def test_the_rank_that_suffices_is_found(library):
    texts = {"near": list(tiny.PROBES["legal"]), "far": list(tiny.PROBES["medical"])}
    found = least_rank(library, texts, nats=1e-3, ladder=(8, 1, 2, RANK))
    assert found.rank == RANK
    assert list(found.moved["far"]) == [1, 2, RANK]
    assert found.moved["far"][2] > 1e-3 > found.moved["far"][RANK]
    assert least_rank(library, texts, nats=10, ladder=(1, 2)).rank == 1
    assert least_rank(library, texts, nats=1e-7, ladder=(1, 2)).rank is None


def test_an_executor_of_that_rank_answers_nearly_alike_and_holds_less(library):
    exact, short = (Executor(library, ExecutionSettings(rank=rank, execution="mixed")) for rank in (None, RANK))
    rows = [
        Composition(Mixture.fixed({"near": 0.6, "far": 0.4}, tiny.HIDDEN)),
        Composition(Mixture.fixed({"far": 0.5}, tiny.HIDDEN, generalist=0.5, scale=1.2)),
        None,
    ]
    batch = {"input_ids": left_padded(3, 9, 5)["input_ids"]}
    for phase in ("prefill", "decode"):
        got = []
        for executor in (exact, short):
            executor.under(rows, phase=phase)
            with torch.no_grad():
                got.append(executor.model(**batch, use_cache=False).logits)
        assert 0 < (got[0] - got[1]).abs().max() < 1e-2
        assert (got[0][0] - got[0][2]).abs().max() > 0.1
    assert short.bytes()["specialists"] < exact.bytes()["specialists"]


def test_only_matrices_of_linear_modules_are_cut_and_only_where_that_saves(library):
    anatomy = library.anatomy
    for name, shape in anatomy.shapes.items():
        change = library.change("far", name)
        assert isinstance(change, Dense)
        cut = truncated(change, name, library.tensor(name), anatomy, 2)
        assert isinstance(cut, LowRank) == anatomy.is_linear(name), name
        if isinstance(cut, LowRank):
            assert cut.shape(anatomy.output_axes[name]) == shape
            assert truncated(cut, name, library.tensor(name), anatomy, 1) is cut
            assert truncated(change, name, library.tensor(name), anatomy, 16) is change


def test_what_cannot_be_judged_is_refused(library):
    with pytest.raises(UnknownName, match="did you mean 'near'"):
        least_rank(library, {"neer": ["some text"]})
    with pytest.raises(SettingsError, match="whole numbers"):
        least_rank(library, {"near": ["some text"]}, ladder=())
    with pytest.raises(DataError, match="nothing to judge"):
        least_rank(library, {})
