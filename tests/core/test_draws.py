"""Draws: against the mixer in plain Python numbers, and what a stream of uniform numbers must be like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from asterism.core.draws import below, draws, stream_key, uniform

WORD = 2**32


def finalised(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x7FEB352D % WORD
    x = (x ^ (x >> 15)) * 0x846CA68B % WORD
    return x ^ (x >> 16)


def oracle(key: int, place: int) -> float:
    x = finalised((place % WORD + key % WORD) % WORD)
    x = finalised(((x ^ (key // WORD)) + place // WORD * 0x9E3779B9) % WORD)
    return (x // 256) / 2**24


@given(key=st.integers(0, 2**64 - 1), start=st.integers(0, 2**40 - 20), n=st.integers(0, 20))
def test_draws_are_the_mixers(key, start, n):
    got = uniform(key, n, start)
    assert got.dtype == torch.float32
    assert got.tolist() == [oracle(key, start + i) for i in range(n)]


def test_a_draw_depends_on_key_and_place_alone():
    whole = uniform(7, 3 * 2**20 + 5)
    for start, n in ((0, 1), (1, 100), (2**20 - 3, 6), (3 * 2**20, 5)):
        assert torch.equal(uniform(7, n, start), whole[start : start + n])
    across = uniform(7, 8, 2**32 - 4)
    assert torch.equal(across[4:], uniform(7, 4, 2**32))
    assert not torch.equal(across[4:], uniform(7, 4, 0))


@pytest.mark.parametrize("key", [0, 1, 2**32, 2**64 - 1, stream_key(0, "model.embed_tokens.weight", "law")])
@pytest.mark.parametrize("start", [0, 2**33 + 12345])
def test_draws_are_uniform_and_neighbours_independent(key, start):
    n = 1 << 20
    x = uniform(key, n, start).double().numpy()
    assert 0 <= x.min() < x.max() < 1
    sigma = 1 / np.sqrt(12 * n)
    assert abs(x.mean() - 0.5) < 5 * sigma
    assert stats.kstest(x, "uniform").pvalue > 1e-6
    for lag in (1, 2, 3, 16, 64, 1024, 4096, 65536):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / np.sqrt(n), lag
    pairs = np.histogram2d(x[0::2], x[1::2], bins=32, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-6
    low_bits = (x[:65536] * 2**24).astype(int) & 1
    assert abs(low_bits.mean() - 0.5) < 5 / (2 * np.sqrt(65536))


def test_streams_of_other_keys_are_independent():
    n = 1 << 18
    keys = [0, 1, 2, 3, 2**31, 2**32, 2**63, *(stream_key(seed, "a", "b") for seed in range(4)), stream_key(0, "b", "a")]
    x = np.stack([uniform(key, n).double().numpy() for key in keys])
    off = np.corrcoef(x)[np.triu_indices(len(keys), 1)]
    assert len(off) > 50
    assert np.abs(off).max() < 5.5 / np.sqrt(n)


def test_the_key_tells_seed_and_names_apart():
    every = [(0,), (1,), (0, ""), (0, "a"), (0, "a", "b"), (0, "b", "a"), (0, "ab"), (0, 'a", "b'), (0, "é"), (-1, "a")]
    keys = {stream_key(*one) for one in every}
    assert len(keys) == len(every)
    assert all(0 <= key < 2**64 for key in keys)
    assert stream_key(0, "a") == int.from_bytes(bytes.fromhex("4a2978d91c0194c6"), "little")  # of sha256sum


CHANCES = st.one_of(st.floats(-0.5, 1.5), st.integers(0, 2**24).map(lambda k: k / 2**24), st.integers(0, 2**25).map(lambda k: k / 2**25))


@given(chance=CHANCES, beside=st.integers(-2, 2))
def test_below_is_the_comparison_of_real_numbers(chance, beside):
    draw = min(max(int(chance * 2**24) + beside, 0), 2**24 - 1)
    assert (draw < below(chance)) == (draw / 2**24 < chance)


def test_draws_are_uniforms_whole_numbers():
    assert torch.equal(draws(5, 1000).float() / 2**24, uniform(5, 1000))
    assert uniform(5, 0).shape == (0,)
