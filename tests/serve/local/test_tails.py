"""Materialised tails: made once, kept within their bytes, their memory used again; a specialist alone is not copied."""

from __future__ import annotations

import gc

import torch

from asterism.compose.composer import Composer
from asterism.constellation.mixture import Mixture
from asterism.models.changes import Dense
from asterism.serve.jobs import Composition
from asterism.serve.local.execution import Executor
from asterism.serve.local.policy import ExecutionSettings
from tests import tiny
from tests.compose.conftest import random_mixture

NAMES = ("full", "mlp", "other")


def bound(executor: Executor, seed: int):
    composition = Composition(random_mixture(NAMES, executor.library.anatomy, seed))
    return executor._bind(composition), composition


def test_a_tail_is_the_composed_matrices(kinds):
    library = kinds("gpt2")
    executor = Executor(library)
    own, composition = bound(executor, 0)
    tail = executor._tails.take(own)
    want = dict(Composer(library).materialise(composition.mixture).named_parameters())
    assert set(tail) == {name for name in want if want[name].ndim == 2}
    for name, matrix in tail.items():
        torch.testing.assert_close(matrix, want[name].data, rtol=0, atol=1e-12)


def test_the_tail_used_longest_ago_goes_first_and_its_memory_serves_the_next(kinds):
    executor = Executor(kinds("qwen2"))
    tails, owns = executor._tails, [bound(executor, seed) for seed in range(4)]
    size = tails.size(owns[0][0])
    tails.limit = 2 * size
    first = {name: matrix.data_ptr() for name, matrix in tails.take(owns[0][0]).items()}
    tails.take(owns[1][0])
    tails.take(owns[0][0])
    tails.take(owns[2][0])  # the second goes
    assert [own in tails for own, _ in owns] == [True, False, True, False]
    assert (tails.stats.hits, tails.stats.misses, len(tails.stats.seconds)) == (1, 3, 3)
    assert tails.nbytes == 2 * size
    held = tails.take(owns[0][0])
    tails.take(owns[1][0])
    tails.take(owns[3][0])  # the first goes, but somebody holds it
    assert owns[0][0] not in tails
    assert {name: matrix.data_ptr() for name, matrix in held.items()} == first
    kept = {name: matrix.clone() for name, matrix in held.items()}
    tails.take(owns[2][0])
    assert all(torch.equal(kept[name], matrix) for name, matrix in held.items())
    del held
    gc.collect()
    assert {name: matrix.data_ptr() for name, matrix in tails.take(owns[0][0]).items()} == first


def test_a_specialist_alone_is_its_own_tensors(kinds):
    executor = Executor(kinds("llama"))
    own = executor._bind(executor.composition_of("full"))
    tail = executor._tails.take(own)
    assert executor._tails.size(own) == 0
    for name, matrix in tail.items():
        change = executor._shelf.change("full", name)
        assert isinstance(change, Dense)
        assert matrix is change.tensor


def test_a_batch_keeps_no_tail_that_had_to_go(kinds):
    library = kinds("qwen2")
    executor = Executor(library, ExecutionSettings(execution="materialised"))
    mixtures = [Composition(random_mixture(NAMES, library.anatomy, seed)) for seed in range(3)]
    executor._tails.limit = executor._tails.size(executor._bind(mixtures[0]))
    for composition in mixtures:
        executor.under([composition])
    assert len(executor._states) == 1
    assert executor._tails.nbytes == executor._tails.limit


def test_dropping_a_specialist_drops_its_tails(kinds):
    executor = Executor(kinds("qwen2"))
    own, _ = bound(executor, 0)
    alone = executor._bind(Composition(Mixture.fixed({"other": 0.5, "lora": 0.5}, tiny.HIDDEN)))
    executor._tails.take(own)
    executor._tails.take(alone)
    executor._tails.drop("mlp")
    assert own not in executor._tails
    assert alone in executor._tails
