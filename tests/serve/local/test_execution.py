"""Every row runs under its own composition, however it is executed, whoever else is in the batch, whatever becomes of the library."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import MismatchError, SettingsError, UnknownName
from asterism.models.library import Library
from asterism.serve.jobs import Composition
from asterism.serve.local import passes
from asterism.serve.local.execution import STATES, Executor
from asterism.serve.local.policy import ExecutionSettings, Phase
from tests import tiny
from tests.compose.conftest import kinds_library, left_padded, random_mixture

WAYS = ("mixed", "materialised", "auto")


def compositions(library: Library) -> list[Composition | None]:
    """Whole, low-rank and unchanged parameters in every company, each row with settings of its own."""
    mix = lambda seed, *names: random_mixture(names, library.anatomy, seed)  # noqa: E731
    return [
        Composition(mix(0, "full", "lora", "mlp")),
        Composition(mix(1, "full", "other"), CompositionSettings(layers=2, node_map="per_module", scale=0.6)),
        None,
        Composition(Mixture.fixed({"full": 0.5, "other": 0.2}, tiny.HIDDEN, generalist=0.3, scale=1.3)),
        Composition(mix(2, "lora", "mlp"), CompositionSettings(layers=(0, 2), node_map="mean", mix="specialists")),
        Composition(Mixture.fixed({"other": 1.0}, tiny.HIDDEN)),
        Composition(Mixture.fixed({"lora": 0.5, "full": 0.5}, tiny.HIDDEN), CompositionSettings(layers=1)),
    ]


@torch.no_grad()
def logits(model, batch) -> torch.Tensor:
    return model(**batch, use_cache=False).logits


def wanted(library: Library, composition: Composition | None, batch) -> torch.Tensor:
    if composition is None:
        return logits(library.model(), batch)
    return logits(Composer(library, composition.settings).materialise(composition.mixture), batch)


@pytest.fixture(params=[24, 1], ids=["few", "many"])
def tokens(request, monkeypatch) -> int:
    """Prompts run through specialists' matrices, or through matrices built for the moment."""
    monkeypatch.setattr(passes, "MANY", request.param)
    return request.param


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_row_is_its_composition_materialised(kinds, family, monkeypatch):
    library = kinds(family)
    rows = compositions(library)
    batch = left_padded(len(rows), 9, 7)
    with tiny.wide():
        want = [wanted(library, composition, batch)[row, row:] for row, composition in enumerate(rows)]
        for way in WAYS:
            executor = Executor(library, ExecutionSettings(execution=way))
            turns: tuple[tuple[Phase, int], ...] = (("prefill", 1), ("prefill", 24), ("decode", 24))
            for phase, many in turns:
                monkeypatch.setattr(passes, "MANY", many)
                executor.under(rows, phase=phase)
                got = logits(executor.model, batch)
                for row, one in enumerate(want):
                    torch.testing.assert_close(got[row, row:], one, rtol=0, atol=1e-10)
                executor.under([])
                executor._states.clear()
    assert (want[0][-1] - want[1][-1]).abs().max() > 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_one_row_alone_and_many_rows_of_few_compositions(kinds, way, tokens):
    library = kinds("qwen2")
    executor, (a, b, _, c, *_) = Executor(library, ExecutionSettings(execution=way)), compositions(library)
    phases: tuple[Phase, ...] = ("prefill", "decode")
    for rows in ([a], [c], [b, b, b], [a, c, a, None, c, a], [None, None]):
        batch = {"input_ids": left_padded(len(rows), 9, 5)["input_ids"]}
        for phase in phases:
            executor.under(rows, phase=phase)
            with tiny.wide():
                got = logits(executor.model, batch)
                for row, composition in enumerate(rows):
                    torch.testing.assert_close(got[row], wanted(library, composition, batch)[row], rtol=0, atol=1e-10)


def test_turns_between_batches_leave_no_trace_and_prepare_nothing_twice(kinds):
    library = kinds("gpt2")
    executor, rows = Executor(library, ExecutionSettings(execution="mixed")), compositions(library)
    batch, one = ({"input_ids": left_padded(n, 9, 5)["input_ids"]} for n in (len(rows), 1))
    executor.under(rows)
    first = logits(executor.model, batch)
    state = executor._switch.state
    executor.under([rows[1]], phase="prefill")
    logits(executor.model, one)
    executor.under([None])
    torch.testing.assert_close(logits(executor.model, one), logits(library.model(), one), rtol=0, atol=1e-12)
    executor.under(list(rows))
    assert executor._switch.state is state
    assert torch.equal(logits(executor.model, batch), first)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_half_precision_stays_near_the_materialised_answer(tmp_path, phase, tokens):
    library = kinds_library(tmp_path, "llama", torch.bfloat16)
    executor, rows = Executor(library, ExecutionSettings(execution="mixed")), compositions(library)
    batch = {"input_ids": left_padded(len(rows), 9, 5)["input_ids"]}
    executor.under(rows, phase=phase)
    got = logits(executor.model, batch)
    assert got.dtype == torch.bfloat16
    for row, composition in enumerate(rows):
        want = wanted(library, composition, batch)[row].float()
        assert (got[row].float() - want).norm() < 0.03 * want.norm()


def test_what_is_not_finite_in_one_row_stays_there(kinds, tokens):
    library = kinds("llama")
    executor, rows = Executor(library, ExecutionSettings(execution="mixed")), compositions(library)
    states = library.model().get_input_embeddings()(left_padded(len(rows), 9, 5)["input_ids"]).detach()
    broken = states.clone()
    broken[0] = torch.inf
    for phase in ("prefill", "decode"):
        executor.under(rows, phase=phase)
        want, got = (logits(executor.model, {"inputs_embeds": given}) for given in (states, broken))
        assert not got[0].isfinite().all()
        assert torch.equal(got[1:], want[1:])


def test_rows_keep_a_specialist_that_was_removed_and_its_place_is_used_again(tmp_path):
    library = kinds_library(tmp_path, "qwen2")
    executor, (mine, *_) = Executor(library, ExecutionSettings(execution="mixed")), compositions(library)
    assert mine is not None
    batch, own = {"input_ids": left_padded(1, 9, 5)["input_ids"]}, executor.admit(mine)
    with tiny.wide():
        want, before = wanted(library, mine, batch), executor.bytes()["specialists"]
    library.remove("full")
    executor.remove("full")
    with pytest.raises(UnknownName, match="full"):
        executor.admit(mine)
    with pytest.raises(UnknownName, match="full"):
        executor.composition_of("full")
    tiny.save(tiny.perturbed(library.model(), 9, 0.2), tmp_path / "new")
    library.add("full", tmp_path / "new")
    executor.add("full")
    assert executor.bytes()["specialists"] == before
    again = executor.admit(mine)
    with tiny.wide():
        other = wanted(library, mine, batch)
        for composition, right in 2 * ((own, want), (again, other)):
            executor.under([composition])
            torch.testing.assert_close(logits(executor.model, batch), right, rtol=0, atol=1e-10)
    assert (want - other).abs().max() > 1e-3
    spare = {name: len(row.free) for name, row in executor._shelf._rows.items()}
    del own, composition
    executor.under([again])
    executor._states = type(executor._states)(list(executor._states.items())[-1:])
    gc.collect()
    freed = {name: len(row.free) - spare[name] for name, row in executor._shelf._rows.items()}
    assert set(freed.values()) == {1}


@pytest.mark.parametrize("way", ["mixed", "materialised"])
def test_what_a_batch_needed_is_given_back_without_a_search_for_garbage(kinds, way):
    library = kinds("llama")
    rows = compositions(library)
    executor = Executor(library, ExecutionSettings(execution=way, tails_gb=0))
    gc.collect()
    gc.disable()  # a server's thresholds are high, and matrices are many
    try:
        states = []
        for number in range(STATES + 3):
            own = rows + rows[:1] * number
            batch = left_padded(len(own), 9, 7)
            executor.under(own, phase="prefill")
            logits(executor.model, batch)
            states.append(weakref.ref(executor._switch.state))
        assert all(state() is None for state in states[:3])
        assert states[-1]() is not None
    finally:
        gc.enable()


def test_specialists_cost_what_they_change(tmp_path):
    library = tiny.tiny_library(tmp_path, "qwen2", names=("a", "b", "c"), kind="mlp")
    executor = Executor(library)
    held = [executor.bytes()["specialists"]]
    for name in ("c", "b"):
        executor.remove(name)
        held.append(executor.bytes()["specialists"])
    changed = sum(library.tensor(name).nbytes for name in library.anatomy.shapes if ".mlp." in name)
    assert held == [3 * changed, 2 * changed, changed]
    for name, parameter in executor.model.named_parameters():
        assert torch.equal(parameter, library.tensor(name))


def test_what_does_not_fit_is_refused(kinds):
    library = kinds("gpt2")
    executor, (a, b, *_) = Executor(library), compositions(library)
    assert a is not None
    executor.under([a, b])
    with pytest.raises(MismatchError, match="3 rows, 2 compositions"):
        logits(executor.model, {"input_ids": left_padded(3, 5, 5)["input_ids"]})
    with pytest.raises(UnknownName, match="did you mean 'full'"):
        executor.admit(Composition(Mixture.fixed({"ful": 1.0}, tiny.HIDDEN)))
    with pytest.raises(MismatchError, match="15"):
        executor.admit(Composition(Mixture.fixed({"full": 1.0}, 15)))
    with pytest.raises(SettingsError, match="blocks"):
        executor.admit(Composition(a.mixture, CompositionSettings(layers=9)))
    with pytest.raises(SettingsError, match="per_module"):
        executor.admit(Composition(Mixture.fixed({"full": 0.5, "other": 0.5}, tiny.HIDDEN), CompositionSettings(node_map="per_module")))


def test_equal_compositions_are_one(kinds):
    library = kinds("qwen2")
    executor, (a, *_) = Executor(library, ExecutionSettings(execution="mixed")), compositions(library)
    executor.under([a, copy.deepcopy(a), a])
    assert executor._switch.state is not None
    assert [one.rows for one in executor._switch.state.live] == [(0, 1, 2)]
