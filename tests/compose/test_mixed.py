"""Mixed execution gives what materialised composition gives, at the cost it promises, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.mixture import Mixture
from asterism.core.errors import MismatchError, SettingsError, UnknownName
from tests import tiny
from tests.compose.conftest import kinds_library, left_padded, random_mixture

CHOICES = (("full", "lora", "mlp"), ("other",), ("lora", "mlp"), ("mlp",), ("full", "other"))
"""Whom each row of a batch asks: dense, low-rank and unchanged parameters in every company."""
SETTINGS = (
    CompositionSettings(layers="all", node_map="tiled"),
    CompositionSettings(layers=2, node_map="hidden", mix="deltas", scale=0.6),
    CompositionSettings(layers=(0, 2), node_map="mean"),
    CompositionSettings(layers="all", node_map="per_module", mix="deltas", scale=1.5),
    CompositionSettings(layers=1, node_map="per_module"),
)


def mixtures_for(library, joint: bool = False) -> list[Mixture]:
    return [random_mixture(names, library.anatomy, seed, joint=joint) for seed, names in enumerate(CHOICES)]


@torch.no_grad()
def logits(model, batch) -> torch.Tensor:
    return model(**batch, use_cache=False).logits


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.layers}-{s.node_map}-{s.mix}")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_mixed_batch_is_each_row_materialised(kinds, family, settings):
    library = kinds(family)
    composer, mixtures, batch = Composer(library, settings), mixtures_for(library), left_padded(len(CHOICES), 11, 7)
    with tiny.wide():
        plain = logits(composer.model, batch)
        with composer.mixed(mixtures) as model:
            got = logits(model, batch)
        for row, mixture in enumerate(mixtures):
            want = logits(composer.materialise(mixture), batch)[row, row:]
            torch.testing.assert_close(got[row, row:], want, rtol=0, atol=1e-10)
            assert (want - plain[row, row:]).abs().max() > 1e-4


WAYS = (dict(do_sample=False), dict(do_sample=True, num_return_sequences=2, top_k=0), dict(num_beams=3, num_return_sequences=2))
"""Greedy, sampled, and beam search; rows repeated in the last two."""


@pytest.mark.parametrize(
    ("family", "way"), [(f, WAYS[0]) for f in tiny.FAMILIES] + [(f, w) for f in ("gpt2", "gemma3_text") for w in WAYS[1:]]
)
def test_generation_with_a_cache_agrees_step_by_step(kinds, family, way):
    """The scores of every step and the tokens, from prompts padded on the left."""
    library = kinds(family)
    composer, mixtures, batch = Composer(library), mixtures_for(library)[:2], left_padded(2, 6, 8)
    returned = way.get("num_return_sequences", 1)
    beams = way.get("num_beams", returned)
    with tiny.wide():
        with composer.mixed(mixtures) as model:
            got = generated(model, batch, **way)
        for row, mixture in enumerate(mixtures):
            want = generated(composer.materialise(mixture), batch, **way)
            mine = slice(row * returned, row * returned + returned)
            assert torch.equal(got.sequences[mine], want.sequences[mine])
            mine = slice(row * beams, row * beams + beams)
            for ours, theirs in zip(got.scores, want.scores, strict=True):
                torch.testing.assert_close(ours[mine], theirs[mine], rtol=0, atol=1e-10)


def generated(model, batch, **way):
    torch.manual_seed(3)
    ends = dict(min_new_tokens=4, max_new_tokens=4, return_dict_in_generate=True, output_scores=True)
    return model.generate(**batch, **ends, **way)


def test_many_rows_may_share_mixtures_and_come_several_times(kinds):
    """Rows with the same mixture, and a batch of m rows a mixture, as beams make it."""
    library = kinds("gpt2")
    composer, (a, b, *_) = Composer(library), mixtures_for(library)
    batch = {"input_ids": left_padded(6, 9, 9)["input_ids"]}
    for mixtures, each in (([a, b, a], 2), ([b], 6), ([a, a, a, b, b, a], 1), ([a, a], 3)):
        with composer.mixed(mixtures) as model:
            got = logits(model, batch)
        for row in range(6):
            want = logits(composer.materialise(mixtures[row // each]), batch)[row]
            torch.testing.assert_close(got[row], want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mix", ["specialists", "deltas"])
def test_joint_normalised_mixtures_agree_too(kinds, mix):
    library = kinds("qwen3")
    composer, mixtures = Composer(library, CompositionSettings(layers=2, mix=mix)), mixtures_for(library, joint=True)
    batch = left_padded(len(mixtures), 11, 7)
    with tiny.wide():
        with composer.mixed(mixtures) as model:
            got = logits(model, batch)
        for row, mixture in enumerate(mixtures):
            torch.testing.assert_close(got[row, row:], logits(composer.materialise(mixture), batch)[row, row:], rtol=0, atol=1e-10)


def test_the_base_model_alone_and_the_head_alone_run_mixed(kinds):
    """Losses are often taken from hidden states and the head on slices; embeddings may be given instead of tokens."""
    library = kinds("gpt2")
    composer, mixtures = Composer(library), mixtures_for(library)
    ids = left_padded(len(mixtures), 9, 5)["input_ids"]
    with torch.no_grad(), composer.mixed(mixtures) as model:
        whole = model(input_ids=ids).logits
        hidden = model.base_model(ids).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden[:, 3:5]), whole[:, 3:5], rtol=0, atol=1e-12)
        torch.testing.assert_close(model.lm_head(hidden[:, -1]), whole[:, -1], rtol=0, atol=1e-12)
        embedded = model.transformer.wte(ids)
        torch.testing.assert_close(model(inputs_embeds=embedded).logits, whole, rtol=0, atol=1e-12)


def test_half_precision_stays_near_the_materialised_answer(tmp_path):
    library = kinds_library(tmp_path, "llama", torch.bfloat16)
    composer, mixtures = Composer(library), mixtures_for(library)
    batch = {"input_ids": left_padded(len(mixtures), 9, 5)["input_ids"]}
    with composer.mixed(mixtures) as model:
        got = logits(model, batch)
    assert got.dtype == torch.bfloat16
    for row, mixture in enumerate(mixtures):
        want = logits(composer.materialise(mixture), batch)[row].float()
        assert (got[row].float() - want).norm() < 0.03 * want.norm()


def test_leaving_brings_the_generalist_back_bit_for_bit_also_after_an_error(kinds):
    library = kinds("gemma3_text")
    composer, mixtures = Composer(library), mixtures_for(library)
    batch = {"input_ids": left_padded(len(mixtures), 6, 1)["input_ids"]}
    want = logits(composer.model, batch)
    composer.materialise(mixtures[0])
    with composer.mixed(mixtures) as model:
        assert not torch.equal(logits(model, batch), want)
    with pytest.raises(IndexError), composer.mixed(mixtures) as model:
        model(input_ids=torch.full((len(mixtures), 2), 10**6))
    assert torch.equal(logits(composer.model, batch), want)
    assert not any("forward" in module.__dict__ for module in composer.model.modules())
    assert not any(module._forward_pre_hooks for module in composer.model.modules())
    for (name, left), (_, right) in zip(composer.model.named_parameters(), library.model().named_parameters(), strict=True):
        assert isinstance(left, torch.nn.Parameter), name
        assert torch.equal(left, right), name


def test_what_does_not_fit_is_refused(kinds):
    library = kinds("gpt2")
    composer, mixtures = Composer(library), mixtures_for(library)[:3]
    with composer.mixed(mixtures) as model:
        with pytest.raises(MismatchError, match="4 rows, 3 mixtures"):
            model(input_ids=torch.ones(4, 5, dtype=torch.long))
        with pytest.raises(SettingsError, match="running mixed"):
            composer.materialise(mixtures[0])
        with pytest.raises(SettingsError, match="running mixed"), composer.mixed(mixtures):
            pass
    with pytest.raises(SettingsError, match="a mixture a row"), composer.mixed([]):
        pass
    with pytest.raises(UnknownName, match="did you mean 'full'"), composer.mixed([Mixture.fixed({"ful": 1.0}, 16)]):
        pass
    with pytest.raises(MismatchError, match="15"), composer.mixed([mixtures[0], Mixture.fixed({"full": 1.0}, 15)]):
        pass


def flops(model, batch) -> int:
    with FlopCounterMode(display=False) as counter:
        logits(model, batch)
    return counter.get_total_flops()


def test_cost_is_one_forward_a_row_where_each_row_asks_one_specialist(kinds):
    library = kinds("llama")
    composer = Composer(library)
    batch = {"input_ids": left_padded(6, 9, 5)["input_ids"]}
    plain = flops(composer.model, batch)
    full, other = Mixture.fixed({"full": 1.0}, 16), Mixture.fixed({"other": 1.0}, 16)
    both = random_mixture(("full", "other"), library.anatomy, 0)
    for mixtures, times in (([full] * 6, 1), ([full, other] * 3, 1), ([both] * 6, 2), ([both, full] * 3, 1.5)):
        with composer.mixed(mixtures) as model:
            matrices = flops(model, batch)
        attention = plain - flops_of_linears(library.anatomy, 6 * 9)
        assert matrices - attention == times * (plain - attention)


def flops_of_linears(anatomy, tokens: int) -> int:
    sizes = (
        a * b for name, (a, b, *_) in ((n, s) for n, s in anatomy.shapes.items() if len(s) == 2) if anatomy.role_of(name) != "embedding"
    )
    return 2 * tokens * sum(sizes)


def test_a_low_rank_specialist_costs_little_more_than_the_generalist(kinds):
    library = kinds("llama")
    composer, batch = Composer(library), {"input_ids": left_padded(6, 9, 5)["input_ids"]}
    plain = flops(composer.model, batch)
    with composer.mixed([Mixture.fixed({"lora": 1.0}, 16)] * 6) as model:
        assert plain < flops(model, batch) < 1.5 * plain  # rank 3 of 16; a second forward would be near 2


def test_nothing_of_the_size_of_rows_times_weights_is_built(kinds):
    library = kinds("gpt2")
    rows = 32
    composer = Composer(library)
    mixtures = [random_mixture(("full", "lora", "mlp"), library.anatomy, seed) for seed in range(rows)]
    smallest = min(torch.Size(shape).numel() for shape in library.anatomy.shapes.values() if len(shape) == 2)
    largest = Largest()
    with composer.mixed(mixtures) as model, largest:
        logits(model, {"input_ids": torch.ones(rows, 1, dtype=torch.long)})
    logits_size = rows * library.anatomy.vocabulary
    tables = max(torch.Size(shape).numel() for shape in library.anatomy.shapes.values())
    assert 0 < largest.numel <= max(logits_size, tables)
    assert largest.numel_in_blocks < rows * smallest


class Largest(TorchDispatchMode):
    """The largest tensor that any operation puts out; in the blocks: leaving out those as wide as the vocabulary, and tables."""

    numel = numel_in_blocks = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
                if len(tiny.tiny_tokenizer()) not in tensor.shape:
                    self.numel_in_blocks = max(self.numel_in_blocks, tensor.numel())
        return out
