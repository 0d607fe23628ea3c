"""EMR-Merging: one delta, masks and numbers stand for every specialist; checked against loops in NumPy."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import StaleError, StorageError, UnknownName
from asterism.merge.emr import Emr, agreeing, elect, packed, unpacked
from asterism.models.changes import Dense
from asterism.models.library import Library
from tests import tiny

NAMES = ("medical", "legal", "code")


def oracle(deltas):
    """arXiv:2405.17461 entry by entry: deltas [K, n] float64 -> unified [n], masks [K, n], rescalers [K]."""
    unified, masks = np.zeros(deltas.shape[1]), np.zeros(deltas.shape, dtype=bool)
    for entry in range(deltas.shape[1]):
        column = deltas[:, entry]
        sign = 1 if column.sum() >= 0 else -1
        unified[entry] = sign * max([abs(value) for value in column if value * sign > 0], default=0.0)
        masks[:, entry] = [value * unified[entry] > 0 for value in column]
    kept = [np.abs(unified[mask]).sum() for mask in masks]
    return unified, masks, [np.abs(own).sum() / left if left else 1.0 for own, left in zip(deltas, kept, strict=True)]


def flat_deltas(library, names):
    """Every specialist's delta as one vector, float64, from the models that the library gives."""
    base = dict(library.model().named_parameters())
    return np.stack(
        [
            np.concatenate([(p.detach().double() - base[n].double()).flatten().numpy() for n, p in library.model(name).named_parameters()])
            for name in names
        ]
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_electing_and_masking_agree_with_loops(count):
    deltas = torch.randn(count, 301, dtype=torch.float64).where(torch.rand(count, 301) > 0.2, 0.0)
    unified, masks, _ = oracle(deltas.numpy())
    got = elect(list(deltas))
    np.testing.assert_array_equal(got, unified)
    np.testing.assert_array_equal(torch.stack([agreeing(delta, got) for delta in deltas]), masks)


def test_a_sum_of_zero_counts_as_plus_and_tiny_entries_keep_their_sign():
    assert elect([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])]).tolist() == [1.0, 0.0]
    small = torch.tensor([1e-30, -1e-30])  # whose products are 0 in float32
    assert agreeing(small, elect([small, small])).tolist() == [True, True]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_packing_loses_nothing(values):
    mask = torch.tensor(values)
    assert torch.equal(unpacked(packed(mask), mask.shape), mask)
    assert packed(mask).numel() == -(-len(values) // 8)


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "full"), ("llama", "lora"), ("gpt_neox", "mlp")])
def test_deltas_are_the_papers(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind)
    emr = Emr.build(library)
    wanted = flat_deltas(library, NAMES)
    unified, masks, rescalers = oracle(wanted)
    np.testing.assert_allclose([emr.rescalers[name] for name in NAMES], rescalers, rtol=1e-5)
    for place, name in enumerate(NAMES):
        parts = [emr.delta(name, parameter) for parameter in library.anatomy.shapes]
        empty = [torch.zeros(shape) for shape in library.anatomy.shapes.values()]
        got = np.concatenate([(zero if part is None else part).flatten().numpy() for part, zero in zip(parts, empty, strict=True)])
        np.testing.assert_allclose(got, rescalers[place] * np.where(masks[place], unified, 0), atol=2e-6)
        assert np.abs(got).sum() == pytest.approx(np.abs(wanted[place]).sum(), rel=1e-5)  # what rescaling is for
        assert any(part is None for part in parts) == (kind != "full")


def test_the_model_is_the_generalist_with_its_delta(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES, kind="mlp")
    emr = Emr.build(library)
    model = emr.model("legal")
    base = dict(library.model().named_parameters())
    for name, parameter in model.named_parameters():
        delta = emr.delta("legal", name)
        assert torch.equal(parameter, base[name] if delta is None else base[name] + delta)
        assert parameter.data_ptr() != base[name].data_ptr()
        assert parameter.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_specialist_comes_back_as_it_was(tmp_path, dtype):
    library = tiny.tiny_library(tmp_path, names=("medical",), dtype=dtype)
    emr = Emr.build(library)
    assert emr.rescalers["medical"] == pytest.approx(1, abs=1e-3 if dtype == torch.bfloat16 else 1e-7)
    theirs = dict(library.model("medical").named_parameters())
    tolerance = 2 * torch.finfo(dtype).eps
    for name, parameter in emr.model("medical").named_parameters():
        torch.testing.assert_close(parameter, theirs[name], rtol=tolerance, atol=tolerance * 0.1)
        assert parameter.dtype == dtype


def test_a_specialist_that_agrees_with_nothing_is_the_generalist(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("medical",))
    base, far = tiny.tiny_model("gpt2"), tiny.tiny_model("gpt2")
    with torch.no_grad():
        for ours, theirs, far_one in zip(base.parameters(), library.model("medical").parameters(), far.parameters(), strict=True):
            far_one.copy_(ours - 1e-3 * (theirs - ours))  # the other way, and too weak to be elected
    tiny.save(far, tmp_path / "far")
    library.add("far", tmp_path / "far")
    emr = Emr.build(library)
    delta = emr.delta("far", "transformer.wte.weight")
    assert delta is not None
    assert float(delta.count_nonzero()) == 0
    assert emr.rescalers["far"] == 1.0


def test_the_librarys_order_changes_nothing(tmp_path):
    """Not even where the sum that elects a sign depends on the order of its terms."""
    tiny.tiny_library(tmp_path, names=NAMES)
    for name, value in {"code": 2.0**30, "legal": -(2.0**30), "medical": -1.0}.items():
        model = tiny.tiny_model("gpt2")
        with torch.no_grad():
            model.transformer.ln_f.bias[0] += value
        tiny.save(model, tmp_path / name)
    libraries = [
        Library.create(tmp_path / str(n), tmp_path / "generalist", {name: tmp_path / name for name in order})
        for n, order in enumerate((NAMES, NAMES[::-1]))
    ]
    one, two = map(Emr.build, libraries)
    assert one.rescalers == two.rescalers
    for name in NAMES:
        assert torch.equal(one.delta(name, "transformer.ln_f.bias"), two.delta(name, "transformer.ln_f.bias"))


def test_saved_and_loaded_it_is_the_same(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES, kind="mlp")
    made = Emr.build(library)
    assert made.save() == tmp_path / "merging" / "emr"
    found = Emr.load(Library.open(tmp_path))
    assert (found.names, found.rescalers, found.size) == (made.names, made.rescalers, made.size)
    for name in NAMES:
        for ours, theirs in zip(found.model(name).parameters(), made.model(name).parameters(), strict=True):
            assert torch.equal(ours, theirs)
    assert found.save(tmp_path / "elsewhere") == tmp_path / "elsewhere"
    assert Emr.load(library, tmp_path / "elsewhere").rescalers == made.rescalers


def test_the_size_counts_a_delta_and_a_bit_a_specialist(tmp_path):
    library = tiny.tiny_library(tmp_path / "full", names=NAMES)
    entries = [int(np.prod(shape)) for shape in library.anatomy.shapes.values()]
    size = Emr.build(library).size
    assert size.kept == sum(4 * n + 3 * -(-n // 8) for n in entries)
    assert size.specialists == 3 * 4 * sum(entries)
    assert size.share == size.kept / size.specialists < 0.4
    thin = Emr.build(tiny.tiny_library(tmp_path / "lora", names=NAMES, kind="lora")).size
    assert thin.share > 0.5
    library.remove("medical")
    assert Emr.build(library).size.specialists == 2 * 4 * sum(entries)


def test_a_specialist_that_left_is_still_served_and_a_changed_one_refused(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    made = Emr.build(library)
    made.save()
    library.remove("medical")
    shutil.rmtree(tmp_path / "medical")
    left = Emr.load(Library.open(tmp_path))
    assert torch.equal(left.delta("medical", "transformer.wte.weight"), made.delta("medical", "transformer.wte.weight"))
    tiny.save(tiny.tiny_model("gpt2", seed=5), tmp_path / "legal")
    with pytest.raises(StaleError, match=r"a specialist changed[^\0]*legal"):
        Emr.load(Library.open(tmp_path))


def test_another_generalist_is_refused(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    Emr.build(library).save()
    tiny.save(tiny.tiny_model("gpt2", seed=5), tmp_path / "generalist")
    with pytest.raises(StaleError, match="the generalist changed"):
        Emr.load(Library.open(tmp_path))


def test_what_is_missing_or_damaged_is_told(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    with pytest.raises(StorageError, match=r"no EMR parts yet[^\0]*Emr.build"):
        Emr.load(library)
    folder = Emr.build(library).save()
    facts = json.loads((folder / "facts.json").read_text())
    for damaged, error in (
        ({**facts, "format_version": 0}, StaleError),
        ({key: value for key, value in facts.items() if key != "rescalers"}, StorageError),
        ({**facts, "origin": 3}, StorageError),
    ):
        (folder / "facts.json").write_text(json.dumps(damaged))
        with pytest.raises(error):
            Emr.load(library)
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / "tensors.safetensors").write_bytes(b"cut")
    with pytest.raises(StorageError, match=r"tensors\.safetensors"):
        Emr.load(library)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="something else"):
        Emr.build(library).save(tmp_path / "taken")


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    emr = Emr.build(tiny.tiny_library(tmp_path, names=NAMES))
    with pytest.raises(UnknownName, match="did you mean 'legal'"):
        emr.model("leagl")
    with pytest.raises(UnknownName, match=r"did you mean 'transformer.wte.weight'"):
        emr.delta("legal", "transformer.wte.weigth")


def test_low_rank_and_dense_changes_meet_in_one_parameter(tmp_path):
    library = tiny.tiny_library(tmp_path, "llama", ("medical",))
    tiny.save_lora(tiny.tiny_model("llama"), tmp_path / "thin", 7, base=str(tmp_path / "generalist"))
    library.add("thin", "thin")
    parameter = "model.layers.0.mlp.up_proj.weight"
    assert isinstance(library.change("medical", parameter), Dense)
    unified, masks, _ = oracle(flat_deltas(library, ("medical", "thin")))
    emr = Emr.build(library)
    start = 0
    for name, shape in library.anatomy.shapes.items():
        if name == parameter:
            own = emr.delta("thin", parameter)
            want = np.where(masks[1], unified, 0)[start : start + own.numel()].reshape(own.shape)
            np.testing.assert_allclose(own, emr.rescalers["thin"] * want, atol=2e-6)
            return
        start += int(np.prod(shape))
    raise AssertionError(parameter)


def test_specialists_that_differ_in_nothing_are_the_generalist(tmp_path):
    tiny.save(tiny.tiny_model("gpt2"), tmp_path / "generalist")
    library = Library.create(tmp_path, tmp_path / "generalist", {"same": tmp_path / "generalist"})
    Emr.build(library).save()
    found = Emr.load(library)
    assert (found.size.kept, found.size.specialists, found.size.share) == (0, 0, 1.0)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(found.model("same").parameters(), library.model().parameters(), strict=True)
    )
