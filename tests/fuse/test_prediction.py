"""The predictor starts at the target itself, changes what is paired and nothing else, within its bound, and tells what it did."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from asterism.fuse.alignment import align
from asterism.fuse.experts import open_expert
from asterism.fuse.prediction import Predictor
from asterism.fuse.settings import FusionSettings
from asterism.models.adapters import write_adapter
from asterism.models.anatomy import anatomy_of, skeleton
from asterism.models.changes import LowRank
from tests import tiny
from tests.fuse import oracles

SMALL = FusionSettings(projections=16)


def predictor_of(target, sources, settings=SMALL):
    return Predictor(target, sources, align(target, sources, settings), settings)


def stirred(predictor, scale=0.05, seed=1):
    """All parameters of the nets moved at random: it predicts a change."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return predictor


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_at_birth_the_prediction_is_the_targets_b(expert, family):
    target = expert("t", family, is_target=True, r=3, lora_alpha=5, use_rslora=True)
    predictor = predictor_of(target, {"s": expert("s", "qwen2" if family != "qwen2" else "phi3", rank=4, shape={"num_hidden_layers": 6})})
    ups = predictor()
    assert set(ups) == set(predictor.changed) == {slot.parameter for slot in target.slots}
    for parameter, up in ups.items():
        assert torch.equal(up, target.stored(parameter)[0])
    assert predictor.downs == {}
    changed = stirred(predictor)()
    assert all(not torch.equal(changed[parameter], up) for parameter, up in ups.items())


@pytest.mark.parametrize("free", [False, True])
def test_one_slot_agrees_with_numpy_from_the_file_to_b(expert, free):
    """Block 2 of two: A and B as stored, the sources' changes by SVD, the net, alpha, and the sum."""
    settings = SMALL.changed(width=16, heads=2, block=7, bound=None, transfer_ratio=0.3, free_down=free)
    target = expert("t", "llama", is_target=True, rank=2, target_modules=["v_proj"])
    source = expert("s", "gpt2", rank=3, seed=4)
    predictor = stirred(predictor_of(target, {"s": source}, settings), 0.3)
    (parameter,), got = predictor.changed, predictor()
    up, down = (each.double().numpy() for each in target.stored(parameter))
    other = next(factors for slot, factors in source.factors.items() if (slot.block, slot.function) == (4, "v"))
    u, s, vt = np.linalg.svd((other[0] @ other[1]).double().numpy())
    signs = np.array([np.sign(u[np.abs(u[:, place]).argmax(), place]) for place in range(3)])
    source_up, source_down = u[:, :3] * np.sqrt(s[:3]) * signs, (vt[:3].T * np.sqrt(s[:3]) * signs).T

    def cut(factor):
        whole = np.zeros((-(-len(factor) // 7) * 7, 3))
        whole[: len(factor), : factor.shape[1]] = factor
        return [(block, np.linalg.svd(block, compute_uv=False)) for block in whole.reshape(-1, 7, 3)]

    mine, theirs = [*cut(down.T), *cut(up)], [*cut(source_down.T), *cut(source_up)]
    net = predictor.nets["v"]
    p = {name: each.detach().double().numpy() for name, each in net.named_parameters()}
    change = oracles.transferred(p, mine, theirs, range(len(mine) + len(theirs)), 2, 0 if free else 3, settings.mu_gate)
    of_a, of_b = (change[:3], change[3:]) if free else (None, change)  # 16 rows of A^T are three blocks of 7
    want = up + of_b.reshape(-1, 3)[: len(up), :2]
    if free:
        want_down = down + of_a.reshape(-1, 3)[:16, :2].T
        np.testing.assert_allclose(predictor.downs[parameter].detach().numpy(), want_down, atol=2e-4)
    np.testing.assert_allclose(got[parameter].detach().numpy(), want, atol=2e-4)
    assert np.abs(want - up).max() > 0.05


def test_slots_without_a_pair_keep_their_bytes(expert):
    target = expert("t", "gpt2", is_target=True)  # 5 blocks, c_attn holds q, k and v
    source = expert("s", "llama", target_modules=["k_proj"], shape={"num_hidden_layers": 2})
    predictor = stirred(predictor_of(target, {"s": source}))
    ups = predictor()
    assert list(ups) == ["transformer.h.3.attn.c_attn.weight", "transformer.h.4.attn.c_attn.weight"]
    for parameter, up in ups.items():
        before = target.stored(parameter)[0]
        assert torch.equal(up[:16], before[:16])
        assert torch.equal(up[32:], before[32:])
        assert (up[16:32] - before[16:32]).abs().min() > 0


@pytest.mark.parametrize("bound", [0.1, 1.0, None])
def test_the_change_is_bounded_slot_by_slot(expert, bound):
    target = expert("t", "phi3", is_target=True)
    predictor = stirred(predictor_of(target, {"s": expert("s", "llama")}, SMALL.changed(bound=bound)), 0.5)
    with torch.no_grad():
        for net in predictor.nets.values():
            net.alpha.fill_(2.0)
    ratios = [each.norm_ratio for each in predictor.report()]
    if bound is None:
        assert min(ratios) > 1.1
    else:
        assert ratios == pytest.approx([bound] * len(ratios), rel=1e-4)


def test_a_small_change_is_not_shortened(expert):
    target, sources = expert("t", "llama", is_target=True), {"s": expert("s", "gpt2")}
    one, other = (stirred(predictor_of(target, sources, SMALL.changed(bound=bound)), 0.003)() for bound in (1.0, None))
    assert all(torch.equal(one[parameter], other[parameter]) for parameter in one)


def test_a_fresh_target_has_no_bound(expert):
    target = expert("t", "llama", is_target=True)
    predictor = predictor_of(target, {"s": expert("s", "gpt2")})
    for name, buffer in predictor._stored.named_buffers():
        if name.startswith("up"):
            buffer.zero_()
    stirred(predictor)
    assert all(each.norm_ratio is None and each.condition_before is None for each in predictor.report())
    up = predictor()[predictor.changed[0]]
    up.sum().backward()
    assert up.abs().max() > 0
    assert all(bool(each.grad.isfinite().all()) for each in predictor.parameters() if each.grad is not None)


def test_the_first_step_has_finite_gradients_where_nothing_changed_yet(expert):
    predictor = predictor_of(expert("t", "llama", is_target=True), {"s": expert("s", "gpt2")})
    sum((up**2).sum() for up in predictor().values()).backward()
    last = [net.decoder[2].weight.grad for net in predictor.nets.values()]
    assert all(bool(each.isfinite().all()) and each.abs().max() > 0 for each in last)


def test_free_down_moves_a_too_and_starts_at_it(expert):
    target, sources = expert("t", "gpt2", is_target=True), {"s": expert("s", "llama")}
    predictor = predictor_of(target, sources, SMALL.changed(free_down=True, bound=1.0))
    predictor()
    assert set(predictor.downs) == set(predictor.changed)
    assert all(torch.equal(down, target.stored(parameter)[1]) for parameter, down in predictor.downs.items())
    stirred(predictor, 0.5)()
    for parameter, down in predictor.downs.items():  # c_attn: the mean of what q, k and v say, each of them bounded
        before = target.stored(parameter)[1]
        assert 0.2 * before.norm() < (down - before).norm() <= 1.0001 * before.norm()


def test_openness_is_told_for_each_source(expert):
    target = expert("t", "llama", is_target=True)
    sources = {"one": expert("one", "gpt2"), "two": expert("two", "qwen2", rank=3)}
    predictor = stirred(predictor_of(target, sources))
    found = predictor.openness()
    assert list(found) == ["one", "two"]
    assert all(0 < each["mean"] <= each["open"] <= 1 for each in found.values())
    assert found["one"] != found["two"]
    closed = predictor_of(target, sources, SMALL.changed(mu_gate=-100.0))
    assert closed.openness() == {name: {"open": 0.0, "mean": 0.0} for name in sources}
    assert predictor_of(target, sources, SMALL.changed(gate=False)).openness() == {}


def test_a_source_is_counted_by_its_own_blocks(expert):
    """By hand, for one function: which of a net's gate entries are of the second source."""
    target = expert("t", "llama", is_target=True, target_modules=["q_proj"])
    sources = {"one": expert("one", "gpt2"), "two": expert("two", "qwen2", shape={"num_hidden_layers": 2})}
    predictor = stirred(predictor_of(target, sources))
    (values,) = (buffer for name, buffer in predictor.named_buffers() if name.endswith("values"))
    openings = predictor.nets["q"].openings(values)
    one, two = openings[:, 2:4], openings[1:, 4:6]  # tokens: A, B of the target; A, B of `one`; A, B of `two`, from target block 1 on
    found = predictor.openness()
    assert [found[name]["mean"] for name in sources] == pytest.approx([float(each.detach().mean()) for each in (one, two)], rel=1e-5)


def test_the_report_is_of_what_changed(expert):
    target = expert("t", "llama", is_target=True, rank=3)
    predictor = stirred(predictor_of(target, {"s": expert("s", "gpt2", target_modules=["c_proj"])}))
    found = predictor.report()
    assert [(each.function, each.block) for each in found] == [(function, block) for function in ("o", "down") for block in range(3)]
    first, up = found[0], predictor()[found[0].parameter].detach().double().numpy()
    before = target.stored(first.parameter)[0].double().numpy()
    assert first.norm_ratio == pytest.approx(np.linalg.norm(up - before) / np.linalg.norm(before), rel=1e-6)
    assert first.condition_before == pytest.approx(np.linalg.cond(before), rel=1e-6)
    assert first.condition_after == pytest.approx(np.linalg.cond(up), rel=1e-6)
    assert json.loads(json.dumps(first.to_dict()))["block"] == 0


def test_unequal_ranks_widths_and_depths_meet(expert):
    target = expert("t", "llama", is_target=True, r=3, rank_pattern={"q_proj": 1, r"layers\.1\.mlp\.up_proj": 5})
    sources = {
        "wide": expert("wide", "qwen2", rank=7, shape={"hidden_size": 24, "intermediate_size": 50}),
        "deep": expert("deep", "gpt2", rank=1, shape={"n_layer": 7}),
    }
    predictor = stirred(predictor_of(target, sources))
    for parameter, up in predictor().items():
        before, down = target.stored(parameter)
        assert up.shape == before.shape == (before.shape[0], down.shape[0])
        assert not torch.equal(up, before)


def test_nothing_depends_on_how_a_source_was_factored(expert):
    target, source = expert("t", "llama", is_target=True), expert("s", "gpt2", rank=3)
    sources = {"s": source}
    before = stirred(predictor_of(target, sources))()
    basis = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.3, 0.0, 1.0]], dtype=torch.float64)
    for slot, (up, down) in list(source.factors.items()):
        source.factors[slot] = up.double() @ basis, torch.linalg.solve(basis, down.double())
    after = stirred(predictor_of(target, sources))()
    for parameter in before:
        torch.testing.assert_close(after[parameter], before[parameter], atol=2e-3, rtol=0)


def test_shuffled_sources_are_other_sources(expert):
    target, sources = expert("t", "llama", is_target=True), {"s": expert("s", "gpt2")}
    one, other, again = (stirred(predictor_of(target, sources, SMALL.changed(shuffled=each)))() for each in (False, True, True))
    assert all(not torch.equal(one[parameter], other[parameter]) for parameter in one)
    assert all(torch.equal(again[parameter], other[parameter]) for parameter in one)


def test_the_regulariser_draws_anew_when_the_nets_moved_and_is_left_out_at_0(expert):
    target, sources = expert("t", "llama", is_target=True), {"s": expert("s", "gpt2")}
    predictor = predictor_of(target, sources)
    predictor()
    first = float(predictor.penalty.detach())
    predictor()
    assert float(predictor.penalty.detach()) == first > 0
    with torch.no_grad():
        predictor.nets["q"].alpha.add_(1e-6)
    predictor()
    assert 0 < abs(float(predictor.penalty.detach()) - first) < first
    without = predictor_of(target, sources, SMALL.changed(regulariser=0.0))
    without()
    assert without.penalty is None


def test_the_state_holds_the_nets_and_no_adapter(expert):
    predictor = predictor_of(expert("t", "llama", is_target=True), {"s": expert("s", "gpt2")})
    assert set(predictor.state_dict()) == {name for name, _ in predictor.named_parameters()}
    assert all(name.startswith("nets.") for name in predictor.state_dict())


def test_it_stays_float32_inside_autocast(expert):
    predictor = stirred(predictor_of(expert("t", "llama", is_target=True), {"s": expert("s", "gpt2")}))
    plain = predictor()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = predictor()
    assert all(torch.equal(inside[parameter], up) for parameter, up in plain.items())


def test_the_penalty_is_the_targets_and_the_sources_distance_without_padding(expert):
    target = expert("t", "llama", is_target=True, target_modules=["q_proj"])
    sources = {"one": expert("one", "gpt2"), "two": expert("two", "qwen2", shape={"num_hidden_layers": 2})}
    predictor = stirred(predictor_of(target, sources, SMALL.changed(mu_target=0.3, sigma=2.0)))
    directions, generator = predictor._draws()
    predictor()
    buffers = dict(predictor.named_buffers())
    embeddings = predictor.nets["q"].encoded(buffers["_tokens.q.blocks"], buffers["_tokens.q.values"]).detach().double().numpy()
    mine, theirs = embeddings[:, :2].reshape(6, -1), np.concatenate([embeddings[0, 2:4], *embeddings[1:, 2:6]])
    want = 0.0
    for rows in (mine, theirs):
        normal = 0.3 + 2.0 * torch.randn(rows.shape, generator=generator).double().numpy()
        want += oracles.sliced_wasserstein(np.maximum(rows, 0), np.maximum(normal, 0), directions.double().numpy())
    assert float(predictor.penalty.detach()) == pytest.approx(want, rel=1e-4)


def test_the_penalty_is_a_mean_over_functions(expert):
    target, source = expert("t", "llama", is_target=True), expert("s", "gpt2")
    both = predictor_of(target, {"s": source})
    both()
    directions, generator = both._draws()
    parts = [both._penalty(both._transfer(function), both._of(function), directions, generator) for function in both.slots]
    assert len(parts) == 6
    torch.testing.assert_close(both.penalty, sum(parts) / 6)


def test_a_source_of_seventy_billion_parameters_costs_what_its_adapter_does(expert, tmp_path):
    """Its config alone is there; the nets see two small blocks of its adapter a layer."""
    config = tiny.tiny_config(
        "llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, vocab_size=128256
    )
    anatomy = anatomy_of(skeleton(config))
    assert sum(np.prod(shape) for shape in anatomy.shapes.values()) > 6e10
    names = [f"model.layers.{block}.self_attn.k_proj.weight" for block in (78, 79)]
    changes = {name: LowRank(torch.randn(anatomy.shapes[name][0], 1), torch.randn(1, 8192)) for name in names}
    write_adapter(tmp_path / "huge", changes, "huge", anatomy)
    target, source = expert("t", "llama", is_target=True), open_expert(config, tmp_path / "huge")
    settings = SMALL.changed(block=8192)
    predictor = predictor_of(target, {"s": source}, settings)
    assert dict(predictor.named_buffers())["_tokens.k.blocks"].shape == (2, 4, 8192 * 2)
    assert len(stirred(predictor)()) == 2
