"""Paths of weights against NumPy on flattened vectors; the loss along them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError, MismatchError, SettingsError, UnknownName
from asterism.models.likelihood import read
from asterism.route.interpolation import SHARES, STRAIGHT, WeightPath, arc, path, sweep
from tests import tiny

NAMES = ("medical", "code")
TEXTS = [*tiny.PROBES["medical"], *tiny.PROBES["code"][:3]]


def flat(model) -> np.ndarray:
    return np.concatenate([parameter.detach().double().numpy().ravel() for parameter in model.parameters()])


def oracle(left: np.ndarray, right: np.ndarray, share: float, kind: str) -> np.ndarray:
    cosine = np.dot(left, right) / np.sqrt(np.dot(left, left) * np.dot(right, right))
    if kind == "lerp" or abs(cosine) > 0.9995:
        return share * left + (1 - share) * right
    angle = np.arccos(cosine)
    return (np.sin(share * angle) * left + np.sin((1 - share) * angle) * right) / np.sin(angle)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["lerp", "slerp"])
def test_points_are_those_of_the_flattened_vectors(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, dtype=torch.float64)
    left, right = (flat(library.model(name)) for name in NAMES)
    way = path(library, *NAMES, kind)
    for share in (0.0, 0.3, 0.9, 1.0):
        got, want = flat(way.at(share)), oracle(left, right, share, kind)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert np.abs(oracle(left, right, 0.3, "lerp") - oracle(left, right, 0.3, "slerp")).max() > 1e-4  # tells them apart


@pytest.mark.parametrize("kind", ["full", "lora", "mlp"])
def test_ends_are_the_models_themselves_bit_for_bit(tmp_path, kind):
    library = tiny.tiny_library(tmp_path, "llama", NAMES, kind, dtype=torch.bfloat16)
    for ends in (NAMES, ("code", "generalist"), ("generalist", "medical")):
        for curve in ("lerp", "slerp"):
            way = path(library, *ends, curve)
            for share, name in ((1.0, ends[0]), (0.5, None), (0.0, ends[1])):
                model = way.at(share)
                if name:
                    theirs = library.model(None if name == "generalist" else name)
                    assert all(torch.equal(own, theirs.get_parameter(key)) for key, own in model.named_parameters())


def test_what_neither_end_changes_is_the_generalists_own_storage(tmp_path):
    library = tiny.tiny_library(tmp_path, "gpt2", NAMES, "mlp")
    model = path(library, *NAMES).at(0.5)
    for name, parameter in model.named_parameters():
        shared = parameter.data_ptr() == library.tensor(name).data_ptr()
        assert shared == (".mlp." not in name), name
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = {name: library.tensor(name).clone() for name in library.anatomy.shapes}
    path(library, *NAMES).at(0.2)
    assert all(torch.equal(library.tensor(name), tensor) for name, tensor in before.items())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma3_text"])
@pytest.mark.parametrize("ends", [NAMES, ("generalist", "code"), ("medical", "generalist")])
def test_activations_are_mixed_alike_in_every_block(tmp_path, family, ends):
    library = tiny.tiny_library(tmp_path, family, (*NAMES, "legal"), "mlp", dtype=torch.float64)
    left, right = (library.model(None if name == "generalist" else name) for name in ends)
    way, ids = path(library, *ends, "activation"), torch.tensor([library.tokenizer(TEXTS[0])["input_ids"]])
    with torch.no_grad(), tiny.wide():
        for share in (0.0, 0.3, 1.0):
            got, want = way.at(share)(ids).logits, by_hand(library.fresh_model(), left, right, share)(ids).logits
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(way.at(1.0)(ids).logits, left(ids).logits, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(way.at(0.0)(ids).logits, right(ids).logits, rtol=1e-10, atol=1e-10)


def by_hand(model, left, right, share: float):
    """The generalist, every MLP replaced by a function of the two models' own."""
    for name, module in list(model.named_modules()):
        if name.endswith(".mlp"):
            ours, theirs = left.get_submodule(name), right.get_submodule(name)
            module.forward = lambda x, ours=ours, theirs=theirs: share * ours(x) + (1 - share) * theirs(x)
    return model


def test_activations_are_refused_or_mixed_by_choice_where_attention_differs(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    with pytest.raises(MismatchError, match="share everything but their MLPs"):
        path(library, *NAMES, "activation")
    found = sweep(library, *NAMES, TEXTS, ("lerp", "activation"), shares=(0, 1), attention="generalist")
    assert not torch.allclose(found["lerp"].losses.whole, found["activation"].losses.whole, atol=1e-3)  # other attention at the ends


def test_the_arc_is_straight_for_parallel_vectors_and_keeps_length_otherwise():
    assert arc(0.99999, 0.3) == arc(-0.99999, 0.3) == (0.3, 0.7)
    assert arc(STRAIGHT - 1e-6, 0.3) == pytest.approx((0.3, 0.7), abs=1e-3)
    for cosine in (-0.9, 0.0, 0.7):
        a, b = arc(cosine, 0.3)
        assert a * a + b * b + 2 * a * b * cosine == pytest.approx(1)
        assert arc(cosine, 0.7) == pytest.approx((b, a))


def test_a_sweep_scores_every_point(tmp_path):
    library = tiny.tiny_library(tmp_path, names=(*NAMES, "legal"))
    found = sweep(library, *NAMES, TEXTS, ("lerp", "slerp"), shares=(0, 0.25, 1), max_length=64)
    assert list(found) == ["lerp", "slerp"]
    for kind, own in found.items():
        way = path(library, *NAMES, kind)
        for place, share in enumerate(own.shares):
            want = read(way.at(share), library.tokenizer, TEXTS, max_length=64)[1]
            torch.testing.assert_close(own.losses.whole[place].float(), want, rtol=1e-5, atol=1e-5)
        rows = own.rows()
        assert [row["share"] for row in rows] == [0, 0.25, 1]
        assert all(row["kind"] == kind and row["low"] < row["loss"] < row["high"] for row in rows)
    assert torch.equal(found["lerp"].losses.whole[0], found["slerp"].losses.whole[0])
    assert not torch.equal(found["lerp"].losses.whole[1], found["slerp"].losses.whole[1])


def test_models_that_paths_have_in_common_are_scored_once(tmp_path, monkeypatch):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    tiny.save(tiny.perturbed(library.model(), 5, 1e-3), tmp_path / "near")
    library.add("near", "near")
    seen = []
    monkeypatch.setattr(WeightPath, "at", lambda way, share: seen.append(share) or library.model("near"))
    found = sweep(library, "near", "generalist", TEXTS, ("lerp", "slerp"), shares=SHARES)  # nearly parallel: SLERP is LERP
    assert seen == list(SHARES)
    assert len(found["slerp"].losses.whole) == 11


def test_halves_make_up_the_whole(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    losses = sweep(library, *NAMES, TEXTS, shares=(0.5,))["lerp"].losses[0]
    counts = torch.tensor([len(ids) - 1 for ids in library.tokenizer(TEXTS)["input_ids"]])
    first, second = counts // 2, counts - counts // 2
    torch.testing.assert_close((losses.first * first + losses.second * second) / counts, losses.whole)
    assert losses.whole.dtype == torch.float64


def test_what_has_no_path_is_refused(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    with pytest.raises(UnknownName, match="did you mean 'medical'"):
        path(library, "medicl", "code")
    with pytest.raises(UnknownName, match="did you mean 'slerp'"):
        path(library, *NAMES, "slrp")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingsError, match="two ends"):
        path(library, "code", "code")
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(SettingsError, match="between 0 and 1"):
            path(library, *NAMES).at(share)
    with pytest.raises(DataError, match="points"):
        sweep(library, *NAMES, TEXTS, shares=())
    with pytest.raises(DataError, match=r"halved.*\n.*text 1"):
        sweep(library, *NAMES, [TEXTS[0], "ab" if len(library.tokenizer("ab")["input_ids"]) == 2 else "xq"], shares=(0.5,))
    for texts in ([], [""]):
        with pytest.raises(DataError):
            sweep(library, *NAMES, texts)
