"""Padding and batch order change nothing, on every family; buckets keep their bound; bad texts are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import DataError, SettingsError
from asterism.models.batching import Batch, batches, hidden_states, masked_mean, pad_id, tokenise
from tests import tiny

TEXTS = [text for part in tiny.PROBES.values() for text in part[:2]] + ["Yes", "a" * 60]


def means(model, lists, layer, *, max_tokens, pad=0, absolute=False):
    """[n, d] masked means of token lists, in the order given."""
    out = torch.full((len(lists), tiny.HIDDEN), torch.nan, dtype=torch.float64)
    for batch in batches(lists, max_tokens=max_tokens, pad=pad):
        out[list(batch.rows)] = masked_mean(hidden_states(model, batch, layer), batch.lengths, absolute=absolute)
    return out


def hooks(model):
    """How many forward hooks a model holds."""
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_and_batch_order_change_nothing(family):
    model = tiny.tiny_model(family, dtype=torch.float64)
    lists = tokenise(tiny.tiny_tokenizer(), TEXTS, 64)
    assert len({len(ids) for ids in lists}) > 5  # so that padding is really met
    last = 4 if family == "gpt2" else 2
    with tiny.wide():
        for layer in ("final", 1, last):
            alone = means(model, lists, layer, max_tokens=1)
            together = means(model, lists, layer, max_tokens=10_000, pad=7)
            backwards = means(model, lists[::-1], layer, max_tokens=150).flip(0)
            assert (alone - together).abs().max() < 1e-10
            assert (alone - backwards).abs().max() < 1e-10
            assert alone.std() > 0.05


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_hidden_states_are_those_of_transformers(family):
    model = tiny.tiny_model(family)
    batch = batches(tokenise(tiny.tiny_tokenizer(), TEXTS[:4], 64), pad=0)[0]
    with torch.no_grad():
        states = model(input_ids=batch.ids, output_hidden_states=True).hidden_states
    before = hooks(model)
    assert torch.equal(hidden_states(model, batch), states[-1])
    for layer in range(len(states) - 2):  # the last block's output lies before the final norm and is not among them
        assert torch.equal(hidden_states(model, batch, layer), states[layer + 1])
    final = hidden_states(model, batch, len(states) - 2)
    assert not torch.allclose(final, states[-1])
    norm = model.get_submodule({"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}.get(family, "model.norm"))
    assert torch.equal(norm(final), states[-1])
    assert hooks(model) == before
    with torch.no_grad():
        assert torch.equal(model(input_ids=batch.ids, output_hidden_states=True).hidden_states[-1], states[-1])


def test_no_logits_and_no_later_block_are_computed():
    model = tiny.tiny_model("llama")
    batch = batches([[1, 2, 3]], pad=0)[0]
    seen = []
    for name in ("lm_head", "model.layers.1", "model.layers.2"):
        model.get_submodule(name).register_forward_hook(lambda *_args, name=name: seen.append(name))
    hidden_states(model, batch, 0)
    assert seen == []
    hidden_states(model, batch)
    assert seen == ["model.layers.1", "model.layers.2"]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_buckets_hold_every_row_once_within_the_bound(sizes, max_tokens):
    lists = [[number] * size for number, size in enumerate(sizes)]
    got = batches(lists, max_tokens=max_tokens, pad=999)
    assert sorted(row for batch in got for row in batch.rows) == list(range(len(lists)))
    for batch in got:
        assert batch.ids.numel() <= max_tokens or len(batch.rows) == 1
        assert batch.ids.shape[1] == batch.lengths.max()
        for row, ids, mask, length in zip(batch.rows, batch.ids, batch.mask, batch.lengths, strict=True):
            assert length == len(lists[row])
            assert ids[mask].tolist() == lists[row]
            assert set(ids[~mask].tolist()) <= {999}
    assert sum(batch.tokens for batch in got) == sum(sizes)
    widths = [batch.ids.shape[1] for batch in got]
    assert widths == sorted(widths, reverse=True)


def test_buckets_are_full():
    got = batches([[1] * 10] * 10, max_tokens=40, pad=0)
    assert [len(batch.rows) for batch in got] == [4, 4, 2]


@pytest.mark.parametrize("absolute", [False, True])
def test_masked_mean_against_numpy(absolute):
    hidden = torch.randn(3, 7, 5)
    lengths = torch.tensor([7, 1, 4])
    rows = [row[:length].astype(np.float64) for row, length in zip(hidden.numpy(), lengths.tolist(), strict=True)]
    want = np.stack([(np.abs(row) if absolute else row).mean(axis=0) for row in rows])
    np.testing.assert_allclose(masked_mean(hidden, lengths, absolute=absolute), want, atol=1e-6)
    hidden[1, 1:] = torch.nan  # what stands in the padding does not matter
    np.testing.assert_allclose(masked_mean(hidden, lengths, absolute=absolute), want, atol=1e-6)


def test_masked_mean_sums_half_precision_in_float32():
    hidden = torch.full((1, 3000, 1), 1.0, dtype=torch.bfloat16)
    hidden[0, 0] = 256.0
    got = masked_mean(hidden, torch.tensor([3000]))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx((256 + 2999) / 3000, abs=1e-5)


def test_long_texts_are_cut_and_special_tokens_added():
    tokenizer = tiny.tiny_tokenizer()
    long = tokenise(tokenizer, ["word " * 5000], 32)[0]
    assert long == tokenizer("word " * 5000, verbose=False)["input_ids"][:32]
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    with_start = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>")
    assert tokenise(with_start, ["word " * 5000], 32)[0] == [0, *long[:31]]


def test_nothing_to_tokenise():
    assert tokenise(tiny.tiny_tokenizer(), [], 32) == []
    assert batches([], pad=0) == []


def test_a_one_token_text_is_a_text():
    lists = tokenise(tiny.tiny_tokenizer(), ["a", TEXTS[0]], 32)
    assert len(lists[0]) == 1
    model = tiny.tiny_model("gpt2", dtype=torch.float64)
    assert torch.isfinite(means(model, lists, "final", max_tokens=1000)).all()


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["fine", ""], "A text is empty.\n  met:  text 1: ''\n  mend: leave it out or give it some words"),
        (["fine", None], "A text is empty.\n  met:  text 1: None\n  mend: leave it out or give it some words"),
        (["\ud800"], "A text is not valid Unicode.\n  met:  text 0\n  mend: remove its lone surrogate (\\ud800-\\udfff)"),
    ],
)
def test_unusable_texts_are_named(texts, told):
    with pytest.raises(DataError) as caught:
        tokenise(tiny.tiny_tokenizer(), texts, 32)
    assert str(caught.value) == told


def test_a_text_that_the_tokenizer_drops_is_named():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(DataError, match=r"A text has no tokens.\n  met:  text 1: '  '"):
        tokenise(PreTrainedTokenizerFast(tokenizer_object=backend), ["a", "  "], 8)


@pytest.mark.parametrize("layer", [-1, 5])
def test_a_block_that_does_not_exist(layer):
    with pytest.raises(SettingsError, match=f"no such block.\n  met:  layer {layer}\n  mend: 0 to 4, or 'final'"):
        hidden_states(tiny.tiny_model("gpt2"), batches([[1, 2]], pad=0)[0], layer)


def test_transformers_is_not_made_to_advise(caplog):
    from transformers.utils import logging

    logging.set_verbosity_warning()
    logging.enable_propagation()
    try:
        for family in tiny.FAMILIES:
            hidden_states(tiny.tiny_model(family), batches([[1, 2, 3], [4]], pad=0)[0])
    finally:
        logging.disable_propagation()
        logging.set_verbosity_error()
    assert caplog.text == ""


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_beyond_the_positions_are_refused(family):
    batch = batches([[1] * (tiny.LENGTH + 1)], pad=0)[0]
    with pytest.raises(
        SettingsError, match=f"longer than the model's positions.\n  met:  129 tokens\n  mend: max_length of at most {tiny.LENGTH}"
    ):
        hidden_states(tiny.tiny_model(family), batch)


def test_what_pads():
    class Some:
        pad_token_id = None
        eos_token_id = 5

    assert pad_id(tiny.tiny_tokenizer()) == 0
    assert pad_id(Some()) == 5  # pyright: ignore[reportArgumentType]
    Some.eos_token_id = None
    assert pad_id(Some()) == 0  # pyright: ignore[reportArgumentType]


def test_a_batch_moves_whole():
    batch = batches([[1, 2], [3]], pad=0)[0].to("meta")
    assert isinstance(batch, Batch)
    assert batch.ids.device.type == batch.lengths.device.type == "meta"
