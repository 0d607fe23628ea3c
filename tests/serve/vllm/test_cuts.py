"""Where the library's parameters lie in a packed, sharded engine is read off its own loader."""

from __future__ import annotations

import pytest
import torch

from asterism.core.errors import UnsupportedError
from asterism.models.changes import Dense, LowRank
from asterism.serve.vllm.cuts import cuts_of
from asterism.serve.vllm.sites import local_tail
from tests import tiny
from tests.serve.vllm.fakes import FakeShard


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny.tiny_library(tmp_path_factory.mktemp("cuts") / "tiny", "qwen2")


def shard(library, rank, size):
    made = FakeShard(library.anatomy, rank, size)
    return made, cuts_of(made, made.load_weights, library.anatomy)


@pytest.mark.parametrize("size", [1, 2])
def test_a_specialist_is_cut_as_the_loader_cuts_it(library, size):
    name, axes = library.names[1], library.anatomy.output_axes
    changes = {parameter: library.change(name, parameter) for parameter in library.anatomy.shapes}
    for rank in range(size):
        made, cuts = shard(library, rank, size)
        assert cuts.keys() == dict(made.named_parameters()).keys()
        made.load_weights((parameter, change.tensor) for parameter, change in changes.items())
        for parameter, want in made.named_parameters():
            got = local_tail(cuts[parameter], changes, library.tensor, axes)
            assert torch.equal(got, want), parameter


def test_what_is_packed_and_what_is_cut_is_known(library):
    _, cuts = shard(library, 1, 2)
    packed = cuts["held.model/layers/0/self_attn/qkv_proj/weight"]
    assert [part.split(".")[-2] for part in packed.parts] == ["q_proj", "k_proj", "v_proj"]
    assert packed.rows.tolist() == [*range(8, 16), *range(16 + 4, 16 + 8), *range(24 + 4, 24 + 8)]
    down = cuts["held.model/layers/0/mlp/down_proj/weight"]
    assert down.columns is not None
    assert down.rows.tolist() == list(range(16))
    assert down.columns.tolist() == list(range(16, 32))
    assert cuts["held.model/layers/0/self_attn/o_proj/weight"].axis == 1


def test_a_padded_vocabulary_gets_zeros(library):
    _, cuts = shard(library, 1, 2)
    table = cuts["held.model/embed_tokens/weight"]
    assert table.axis == 1
    assert table.columns is not None
    assert (table.columns < 0).sum() >= 5
    tail = table.taken([library.tensor("model.embed_tokens.weight")], [1])
    assert torch.equal(tail[table.columns < 0], torch.zeros_like(tail[table.columns < 0]))


def test_low_rank_changes_of_packed_parts_are_one_change(library):
    generator = torch.Generator().manual_seed(0)
    parts = [f"model.layers.0.self_attn.{part}_proj.weight" for part in ("q", "v")]
    changes = {
        part: LowRank(
            torch.randn(library.anatomy.shapes[part][0], rank, generator=generator), torch.randn(rank, tiny.HIDDEN, generator=generator)
        )
        for rank, part in enumerate(parts, 2)
    }
    whole = {name: changes[name].delta(0) if name in changes else torch.zeros(shape) for name, shape in library.anatomy.shapes.items()}
    for rank in range(2):
        made, cuts = shard(library, rank, 2)
        made.load_weights(whole.items())
        key = "held.model/layers/0/self_attn/qkv_proj/weight"
        tail = local_tail(cuts[key], changes, library.tensor, library.anatomy.output_axes)
        assert isinstance(tail, LowRank)
        assert tail.rank == 5
        torch.testing.assert_close(tail.up @ tail.down, dict(made.named_parameters())[key])


def test_a_part_that_is_changed_whole_makes_the_packed_parameter_whole(library):
    part, other = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qv")
    low = LowRank(torch.ones(8, 1), torch.ones(1, tiny.HIDDEN))
    changes = {part: Dense(library.tensor(part) + 1), other: low}
    made, cuts = shard(library, 0, 1)
    made.load_weights((name, library.tensor(name) + (1 if name in changes else 0)) for name in library.anatomy.shapes)
    key = "held.model/layers/0/self_attn/qkv_proj/weight"
    tail = local_tail(cuts[key], changes, library.tensor, library.anatomy.output_axes)
    torch.testing.assert_close(tail, dict(made.named_parameters())[key])


def test_a_layout_that_mixes_outputs_with_inputs_is_refused(library):
    made = FakeShard(library.anatomy, 0, 1)

    def scrambled(weights):
        for name, tensor in weights:
            yield name, tensor.flatten()[torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(0))].view(tensor.shape)

    with pytest.raises(UnsupportedError, match="not clear"):
        cuts_of(made, lambda weights: made.load_weights(scrambled(weights)), library.anatomy)
