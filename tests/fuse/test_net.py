"""The transfer net agrees with NumPy, block by block; padding, absent gates and closed gates do what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.lowrank import shortened
from asterism.fuse.net import TransferNet, net_for
from asterism.fuse.settings import FusionSettings
from asterism.fuse.tokens import shuffled, tokens_of
from tests.fuse import oracles

SETTINGS = FusionSettings(heads=4, width=16, mu_gate=0.3)
HEIGHT = 5


def factors(out, inputs, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, inputs, generator=generator)


@pytest.fixture
def tokens():
    """Two layers; the target of rank 2, sources of ranks 3 and 1, the second only in layer 1."""
    targets = [factors(8, 6, 2, seed) for seed in (1, 2)]
    sources = [[(0, factors(7, 12, 3, 3))], [(0, factors(7, 12, 3, 4)), (1, factors(4, 5, 1, 5))]]
    return tokens_of(targets, sources, HEIGHT), targets, sources


def learned(net):
    """Every parameter random: nothing is zero any more."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (0.5 if name in ("alpha", "norm.weight") else 0))
    return net.double()


def cut(factor):
    """Blocks of a factor [rows, r] and their singular values, by hand: height 5, rank 3."""
    found = []
    for top in range(0, len(factor), HEIGHT):
        block = np.zeros((HEIGHT, 3))
        part = factor[top : top + HEIGHT]
        block[: len(part), : part.shape[1]] = part
        found.append((block, np.linalg.svd(block, compute_uv=False)))
    return found


def run(net, tokens, first):
    return net(tokens.blocks.double(), tokens.values.double(), tokens.absent, target=tokens.target, first=first)


def test_tokens_are_the_blocks_of_a_then_of_b(tokens):
    made, targets, sources = tokens
    assert (made.height, made.rank, made.target_downs, made.target) == (5, 3, 2, 4)
    assert made.blocks.shape == (2, 4 + 7, 15)
    assert made.absent.sum(dim=1).tolist() == [2, 0]
    assert made.owners.tolist() == [[0] * 5 + [-1] * 2, [0] * 5 + [1] * 2]
    up, down = (each.numpy() for each in targets[1])
    for place, (block, values) in enumerate([*cut(down.T), *cut(up)]):
        np.testing.assert_allclose(made.blocks[1, place].reshape(5, 3), block, atol=1e-6)
        np.testing.assert_allclose(made.values[1, place], values, atol=1e-5)
    up, down = sources[1][1][1]
    canonical = shortened(up.double(), down.double(), 1)[:2]
    got = made.blocks[1, 9:].reshape(2, 5, 3)
    np.testing.assert_allclose(got[0, :, 0].abs(), canonical[1][0].abs(), atol=1e-6)
    assert got[..., 1:].abs().max() == 0


def test_a_block_is_no_longer_than_the_longest_factor():
    made = tokens_of([factors(8, 6, 2, 1)], [[(0, factors(7, 3, 2, 2))]], 4096)
    assert (made.height, made.blocks.shape) == (8, (1, 4, 16))


@pytest.mark.parametrize(("gated", "first"), [(True, 2), (False, 2), (True, 0)])
def test_the_net_agrees_with_numpy(tokens, gated, first):
    made, *_ = tokens
    net = learned(TransferNet(5, 3, 16, 11, SETTINGS.changed(gate=gated)))
    got = run(net, made, first).delta.detach().numpy()
    p = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    blocks = made.blocks.double().numpy().reshape(2, 11, 5, 3)
    for layer, count in enumerate((9, 11)):
        each = [(block, np.linalg.svd(block, compute_uv=False)) for block in blocks[layer, :count]]
        want = oracles.transferred(p, each[:4], each[4:], range(count), 4, first, SETTINGS.mu_gate, gated)
        np.testing.assert_allclose(got[layer], want, atol=1e-5)  # the singular values given to the net are float32
    assert np.abs(got).max() > 0.1
    assert np.abs(got[0] - got[1]).max() > 0.01


def test_what_pads_is_never_heard(tokens):
    made, *_ = tokens
    net = learned(TransferNet(5, 3, 16, 11, SETTINGS))
    before = run(net, made, 2).delta
    made.blocks[made.absent] = 100.0
    torch.testing.assert_close(run(net, made, 2).delta, before, rtol=0, atol=1e-12)


def test_a_new_net_predicts_no_change_but_learns(tokens):
    made, *_ = tokens
    net = net_for(made, 16, SETTINGS, 0)
    delta = net(made.blocks, made.values, made.absent, target=4, first=2).delta
    assert torch.equal(delta, torch.zeros_like(delta))
    (delta - 1).square().sum().backward()
    assert net.decoder[2].weight.grad.abs().max() > 0


def test_the_seed_draws_the_net_and_nothing_else(tokens):
    made, *_ = tokens
    before = torch.random.get_rng_state()
    one, same, other = (net_for(made, 16, SETTINGS, seed).by_rows.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gates_that_are_far_below_zero_are_closed_and_what_they_let_in_is_constant(tokens):
    made, *_ = tokens
    closed = learned(TransferNet(5, 3, 16, 11, SETTINGS.changed(mu_gate=-1e6)))
    assert closed.openings(made.values.double()).max() == 0
    embeddings = run(closed, made, 2).embeddings
    torch.testing.assert_close(embeddings, closed.after.bias.expand_as(embeddings))
    opened = TransferNet(5, 3, 16, 11, SETTINGS.changed(mu_gate=1e6))
    assert opened.openings(made.values).min() == 1
    assert torch.equal(TransferNet(5, 3, 16, 11, SETTINGS.changed(gate=False)).openings(made.values), torch.ones(2, 11, 16))


def test_shuffled_factors_keep_their_singular_values():
    up, down = factors(9, 7, 2, 3)
    other_up, other_down = shuffled((up, down), torch.Generator().manual_seed(0))
    for one, other in ((up, other_up), (down, other_down)):
        torch.testing.assert_close(torch.linalg.svdvals(one), torch.linalg.svdvals(other))
    assert sorted(map(tuple, up.tolist())) == sorted(map(tuple, other_up.tolist()))
    assert (up @ down - other_up @ other_down).norm() > (up @ down).norm() / 2
