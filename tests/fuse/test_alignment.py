"""Alignment: layers from the top (or in proportion, or by similarity), modules by function; what stands alone is listed."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import DataError, MismatchError, SettingsError
from asterism.fuse.alignment import align, best_ascending
from asterism.fuse.settings import FusionSettings

DEEP = {"num_hidden_layers": 6}
SHALLOW = {"num_hidden_layers": 2}


def blocks(alignment, source, function="q"):
    """Target block -> source block of one function."""
    return {
        slot.block: other.block
        for slot, others in alignment.pairs.items()
        for name, other in others
        if name == source and slot.function == function
    }


def test_layers_pair_from_the_top_with_an_offset_for_each_source(expert):
    target = expert("t", "llama", is_target=True)  # 3 blocks
    sources = {"gpt2": expert("a", "gpt2"), "short": expert("b", "qwen2", shape=SHALLOW), "deep": expert("c", "phi3", shape=DEEP)}
    alignment = align(target, sources)
    assert blocks(alignment, "gpt2") == {0: 2, 1: 3, 2: 4}
    assert blocks(alignment, "short") == {1: 0, 2: 1}
    assert blocks(alignment, "deep") == {0: 3, 1: 4, 2: 5}
    assert alignment.layers["short"] == {1: 0, 2: 1}
    assert all(slot.function == other.function for slot, others in alignment.pairs.items() for _, other in others)
    top = next(slot for slot in alignment.pairs if (slot.block, slot.function) == (2, "q"))
    assert [name for name, _ in alignment.pairs[top]] == ["gpt2", "short", "deep"]
    gate = next(slot for slot in alignment.pairs if (slot.block, slot.function) == (0, "gate"))
    assert [name for name, _ in alignment.pairs[gate]] == ["deep"]  # GPT-2 has no gate, `short` no such layer
    assert alignment.unpaired_target == ()
    assert {slot.block for slot in alignment.unpaired_sources["gpt2"]} == {0, 1}
    assert {slot.block for slot in alignment.unpaired_sources["deep"]} == {0, 1, 2}


def test_fused_projections_pair_with_separate_ones(expert):
    alignment = align(expert("t", "gpt2", is_target=True), {"s": expert("s", "qwen2")})
    found = {
        (slot.parameter.split(".")[-2], other.parameter.split(".")[-2]) for slot, others in alignment.pairs.items() for _, other in others
    }
    wanted = {("c_attn", each) for each in ("q_proj", "k_proj", "v_proj")} | {
        ("c_proj", "o_proj"),
        ("c_fc", "up_proj"),
        ("c_proj", "down_proj"),
    }
    assert found == wanted
    assert {slot.function for slot in alignment.unpaired_sources["s"]} == {"gate"}
    assert {slot.block for slot in alignment.unpaired_target} == {0, 1}


def test_proportional_layers_and_a_single_one(expert):
    settings = FusionSettings(layers="proportional")
    target = expert("t", "gpt2", is_target=True)  # 5 blocks
    alignment = align(target, {"s": expert("s", "llama")}, settings)
    assert blocks(alignment, "s") == {0: 0, 1: 1, 2: 1, 3: 2, 4: 2}  # halves go up
    single = expert("one", "gpt2", is_target=True, shape={"n_layer": 1})
    assert blocks(align(single, {"s": expert("s2", "llama")}, settings), "s") == {0: 2}


def test_transfer_ratio_keeps_the_top_of_what_pairs(expert):
    target, source = expert("t", "gpt2", is_target=True), expert("s", "llama")
    for ratio, kept in ((1.0, {2, 3, 4}), (0.67, {3, 4}), (0.34, {4}), (0.01, {4})):
        assert set(blocks(align(target, {"s": source}, FusionSettings(transfer_ratio=ratio)), "s")) == kept
    alone = align(target, {"s": source}, FusionSettings(transfer_ratio=0.34))
    assert {slot.block for slot in alone.unpaired_target} == {0, 1, 2, 3}
    assert {slot.block for slot in alone.unpaired_sources["s"]} == {0, 1, 2}  # and the gate of block 2
    assert [slot.function for slot in alone.unpaired_sources["s"] if slot.block == 2] == ["gate"]


def test_random_pairing_deals_the_same_modules(expert):
    target, source = expert("t", "llama", is_target=True), expert("s", "gpt2")
    plain = align(target, {"s": source})
    random, again, other = (align(target, {"s": source}, FusionSettings(pairing="random", seed=seed)) for seed in (1, 1, 2))
    assert list(random.pairs) == list(plain.pairs)
    assert {other for ((_, other),) in random.pairs.values()} == {other for ((_, other),) in plain.pairs.values()}
    assert random.pairs == again.pairs
    assert random.pairs != other.pairs
    same = sum(slot.function == other.function for slot, ((_, other),) in random.pairs.items())
    assert same < len(random.pairs) / 2


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_the_best_ascending_map_is_the_best_of_all(depth, other, seed):
    values = np.random.default_rng(seed).normal(size=(depth, other)).round(1)  # with ties
    found = best_ascending(torch.tensor(values))
    best = max(
        sum(values[row, column] for row, column in enumerate(each)) for each in itertools.combinations_with_replacement(range(other), depth)
    )
    assert found == sorted(found)
    assert sum(values[row, column] for row, column in enumerate(found)) == pytest.approx(best, abs=1e-12)


def test_cka_takes_a_map_for_each_source(expert):
    settings = FusionSettings(layers="cka")
    target, source = expert("t", "llama", is_target=True), expert("s", "gpt2")
    similarity = torch.tensor([[0.1, 0.9, 0.2, 0.0, 0.0], [0.8, 0.1, 0.7, 0.0, 0.0], [0.0, 0.0, 0.0, 0.1, 0.6]])
    assert blocks(align(target, {"s": source}, settings, {"s": similarity}), "s") == {0: 1, 1: 2, 2: 4}  # 1 -> 0 would cross
    with pytest.raises(SettingsError, match="needs the similarity"):
        align(target, {"s": source}, settings)
    with pytest.raises(MismatchError, match=r"\[5, 3\] for s, not \[3, 5\]"):
        align(target, {"s": source}, settings, {"s": similarity.T})
    with pytest.raises(DataError, match="not finite"):
        align(target, {"s": source}, settings, {"s": similarity / 0})


def test_nothing_to_pair_tells_what_each_side_has(expert):
    target = expert("t", "llama", is_target=True, target_modules=["q_proj", "v_proj"])
    with pytest.raises(DataError) as caught:
        align(target, {"s": expert("s", "gpt2", target_modules=["c_fc"])})
    assert "t: q v in blocks 0-2 of 0-2" in str(caught.value)
    assert "s: up in blocks 0-4 of 0-4" in str(caught.value)
    with pytest.raises(DataError, match="no sources"):
        align(target, {})


def test_a_source_that_pairs_with_nothing_is_refused_also_beside_one_that_does(expert):
    target = expert("t", "llama", is_target=True, target_modules=["q_proj"])
    with pytest.raises(DataError, match="bad: up in"):
        align(target, {"good": expert("good", "qwen2"), "bad": expert("bad", "gpt2", target_modules=["c_fc"])})


def test_the_table_folds_functions_and_runs_of_blocks(expert):
    target = expert("t", "gpt2", is_target=True)  # 5 blocks, no gate
    alignment = align(target, {"s": expert("s", "llama")})
    assert alignment.rows() == [
        ("s", "q k v o up down", "2-4", "0-2"),
        ("-", "q k v o up down", "0-1", "-"),
        ("s", "gate", "-", "0-2"),
    ]
    rows = align(target, {"s": expert("s2", "llama")}, FusionSettings(layers="proportional")).rows()
    assert rows[:3] == [("s", "q k v o up down", "0-1", "0-1"), ("s", "q k v o up down", "2-3", "1-2"), ("s", "q k v o up down", "4", "2")]


def test_the_table_of_a_random_pairing_names_both_functions(expert):
    alignment = align(expert("t", "llama", is_target=True), {"s": expert("s", "gpt2")}, FusionSettings(pairing="random"))
    assert any(" from " in functions for _, functions, *_ in alignment.rows())


def test_what_lies_outside_the_blocks_is_listed_too(expert):
    headed = {"target_modules": ["lm_head", "q_proj"]}
    alignment = align(expert("t", "llama", is_target=True, **headed), {"s": expert("s", "qwen2", **headed)})
    assert alignment.rows()[-2:] == [("-", "lm_head.weight", "outside", "-"), ("s", "lm_head.weight", "-", "outside")]
    outside = {"block": None, "function": None, "parameter": "lm_head.weight"}
    assert alignment.to_dict()["unpaired_target"] == alignment.to_dict()["unpaired_sources"]["s"] == [outside]


def test_it_is_json(expert):
    told = json.loads(json.dumps(align(expert("t", "gpt2", is_target=True), {"s": expert("s", "llama")}).to_dict()))
    assert told["layers"] == {"s": {"2": 0, "3": 1, "4": 2}}
    assert told["pairs"][0] == {
        "block": 2,
        "function": "q",
        "parameter": "transformer.h.2.attn.c_attn.weight",
        "sources": [{"source": "s", "block": 0, "function": "q", "parameter": "model.layers.0.self_attn.q_proj.weight"}],
    }
    assert len(told["unpaired_target"]) == 12
    assert len(told["unpaired_sources"]["s"]) == 3


def test_settings_hold_together():
    with pytest.raises(SettingsError, match="heads must divide width"):
        FusionSettings(width=100)
    settings = FusionSettings()
    assert (settings.width_for(4096), settings.block_for(4096)) == (1024, 4096)  # the paper's
    assert (settings.width_for(16), settings.width_for(300), FusionSettings(heads=6).width_for(16)) == (64, 80, 66)
    assert FusionSettings(width=128, block=32).block_for(512) == 32
