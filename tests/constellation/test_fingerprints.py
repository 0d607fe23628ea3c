"""Fingerprints (Eq. 1, 4) and signatures (Eq. 6) against one forward pass a text, without padding, averaged in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.constellation.fingerprints import block_modules, fingerprints, module_signatures, signatures
from asterism.core.errors import DataError, SettingsError
from asterism.models.anatomy import anatomy_of
from tests import oracles
from tests.tiny import FAMILIES, LENGTH, PROBES, tiny_model, tiny_tokenizer

TEXTS = [*PROBES["medical"][:3], "Hi", *PROBES["code"][:2]]


def alone(model, text, max_length=256):
    """All hidden states of one text run by itself: [T, d] each, the last after the final norm."""
    ids = tiny_tokenizer()(text, return_tensors="pt", truncation=True, max_length=max_length)["input_ids"]
    with torch.no_grad():
        return [state[0].double().numpy() for state in model(ids, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("family", FAMILIES)
def test_fingerprints_and_signatures_agree_with_numpy(family):
    model = tiny_model(family)
    states = [alone(model, text)[-1] for text in TEXTS]
    prints = fingerprints(model, tiny_tokenizer(), TEXTS)
    np.testing.assert_allclose(prints, [oracles.fingerprint(state) for state in states], atol=1e-5)
    found = signatures(model, tiny_tokenizer(), TEXTS)
    np.testing.assert_allclose(found, [oracles.signature(state) for state in states], atol=1e-5)
    assert (found - prints.abs()).max() > 0.1  # the magnitude is taken before the mean
    assert prints.dtype == torch.float32
    assert not prints.is_inference()


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_block_can_be_the_fingerprint_layer(family):
    model = tiny_model(family)
    want = [oracles.fingerprint(alone(model, text)[2]) for text in TEXTS]  # 0 is the embedding
    np.testing.assert_allclose(fingerprints(model, tiny_tokenizer(), TEXTS, layer=1), want, atol=1e-5)
    assert np.abs(np.array(want) - fingerprints(model, tiny_tokenizer(), TEXTS).numpy()).max() > 0.1


def test_a_block_that_does_not_exist_is_refused():
    with pytest.raises(SettingsError, match="0 to 4"):
        fingerprints(tiny_model("gpt2"), tiny_tokenizer(), TEXTS, layer=9)


@pytest.mark.parametrize("max_tokens", [1, 60, 4096])
def test_padding_and_batch_order_change_nothing(max_tokens):
    model, texts = tiny_model("llama"), [text for part in PROBES.values() for text in part]
    want = torch.cat([fingerprints(model, tiny_tokenizer(), [text]) for text in texts])
    torch.testing.assert_close(fingerprints(model, tiny_tokenizer(), texts, max_tokens=max_tokens), want, atol=1e-5, rtol=1e-5)
    backwards = fingerprints(model, tiny_tokenizer(), texts[::-1], max_tokens=max_tokens)
    torch.testing.assert_close(backwards.flip(0), want, atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_at_max_length_and_at_the_models_positions():
    model, text = tiny_model("gpt2"), " ".join(PROBES["science"] * 3)
    np.testing.assert_allclose(
        fingerprints(model, tiny_tokenizer(), [text], max_length=7)[0], oracles.fingerprint(alone(model, text, 7)[-1]), atol=1e-5
    )
    whole = fingerprints(model, tiny_tokenizer(), [text], max_length=10_000)
    np.testing.assert_allclose(whole[0], oracles.fingerprint(alone(model, text, LENGTH)[-1]), atol=1e-5)


@pytest.mark.parametrize("bad", [[], "one bare text", ["fine", ""]])
def test_what_is_no_list_of_texts_is_refused(bad):
    with pytest.raises(DataError):
        fingerprints(tiny_model("gpt2"), tiny_tokenizer(), bad)


def test_hidden_states_that_are_not_finite_are_refused_with_the_text():
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[3] = torch.inf
    with pytest.raises(DataError, match="text 0: 'The patient"):
        fingerprints(model, tiny_tokenizer(), TEXTS[:1])


def modules_alone(model, paths, text):
    """Mean magnitude at each module's output of one text run by itself; every axis but the last is averaged."""
    seen, handles = {}, []
    for path in paths:

        def hook(_module, _given, output, path=path):
            seen[path] = output.detach().double().abs().reshape(-1, output.shape[-1]).mean(dim=0).numpy()

        handles.append(model.get_submodule(path).register_forward_hook(hook))
    alone(model, text)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_module_signatures_are_each_modules_own_output_magnitudes(family):
    model = tiny_model(family)
    anatomy = anatomy_of(model)
    found = module_signatures(model, anatomy, tiny_tokenizer(), TEXTS)
    paths = [*block_modules(anatomy), anatomy.layout.final_norm]
    assert found.keys() == set(paths)
    for row, text in enumerate(TEXTS):
        want = modules_alone(model, paths, text)
        for path in paths:
            np.testing.assert_allclose(found[path][row], want[path], atol=2e-5, err_msg=path)
    torch.testing.assert_close(found[anatomy.layout.final_norm], signatures(model, tiny_tokenizer(), TEXTS))
    for name in anatomy.shapes:
        if anatomy.block_of(name) is not None:
            assert found[anatomy.module_of(name)].shape[1] == anatomy.output_size(name)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
@pytest.mark.parametrize("tokens", [2, 3, 4])
def test_heads_are_not_taken_for_positions_when_there_are_as_many(family, tokens):
    model = tiny_model(family)  # 4 heads, 2 key-value heads; norms over each head
    anatomy, texts = anatomy_of(model), [PROBES["legal"][0], PROBES["science"][1]]
    found = module_signatures(model, anatomy, tiny_tokenizer(), texts, max_length=tokens)
    paths = [path for path in block_modules(anatomy) if path.endswith(("q_norm", "k_norm"))]
    assert paths
    for row, text in enumerate(texts):
        short = tiny_tokenizer().decode(tiny_tokenizer()(text)["input_ids"][:tokens])
        assert len(tiny_tokenizer()(short)["input_ids"]) == tokens
        want = modules_alone(model, paths, short)
        for path in paths:
            np.testing.assert_allclose(found[path][row], want[path], atol=2e-5, err_msg=path)
