"""Fisher-weighted averages and RegMean: right against NumPy, and put together into models from a library and texts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asterism.core.errors import DataError, SettingsError, StorageError, UnknownName
from asterism.merge.learned import fisher, learned_merge, regmean
from asterism.merge.live import mean_of
from asterism.merge.settings import FisherSettings, RegMeanSettings
from asterism.merge.statistics import statistics
from asterism.models.deltas import held
from asterism.models.library import Library
from tests import tiny

NAMES = ("medical", "legal", "code")
TEXTS = {name: list(tiny.PROBES[name][:4]) for name in NAMES}


def oracle_fisher(tensors, information, floor):
    """arXiv:2111.09832, entry by entry, in float64."""
    tensors, information = (np.stack([np.asarray(x, dtype=np.float64) for x in each]) for each in (tensors, information))
    least, result = floor * information.mean(), np.zeros(tensors.shape[1:])
    for place in np.ndindex(result.shape):
        weights = [max(float(own[place]), least) for own in information]
        if sum(weights) == 0:
            weights = [1.0] * len(weights)
        result[place] = sum(w * float(t[place]) for w, t in zip(weights, tensors, strict=True)) / sum(weights)
    return result


def oracle_regmean(weights, grams, alpha):
    """arXiv:2212.09849 as it is written, in float64: weights [out, in], grams [in, in]."""
    total, pull = 0.0, 0.0
    for weight, gram in zip(weights, grams, strict=True):
        gram = np.asarray(gram, dtype=np.float64)
        damped = alpha * gram + (1 - alpha) * np.diag(np.diag(gram))
        total, pull = total + damped, pull + damped @ np.asarray(weight, dtype=np.float64).T
    return (np.linalg.inv(total) @ pull).T


def inputs(count, rows=40, width=6):
    return [torch.randn(rows, width, dtype=torch.float64) * torch.rand(width, dtype=torch.float64) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("floor", [0.0, 1e-6, 0.5])
def test_fisher_agrees_with_numpy(count, floor):
    tensors = [torch.randn(5, 7, dtype=torch.float64) for _ in range(count)]
    information = [torch.rand(5, 7, dtype=torch.float64).pow(4).where(torch.rand(5, 7) > 0.3, 0.0) for _ in range(count)]
    np.testing.assert_allclose(fisher(tensors, information, floor=floor), oracle_fisher(tensors, information, floor), atol=1e-14)


def test_fisher_at_its_limits():
    one, two, none = torch.full((3,), 2.0), torch.tensor([5.0, -1.0, 0.0]), torch.zeros(3)
    assert torch.equal(fisher([one, two], [torch.ones(3), none], floor=0), one)
    assert torch.equal(fisher([one, two], [none, torch.ones(3)], floor=0), two)
    assert torch.equal(fisher([one, two], [none, none]), (one + two) / 2)
    assert torch.equal(fisher([two], [none]), two)
    small = torch.full((3,), 1e-12)  # a language model's information; a fixed floor of 1e-6 would drown it
    assert torch.allclose(fisher([one, two], [3 * small, small]), (3 * one + two) / 4)


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_fisher_keeps_equal_tensors_and_stays_between_them(count, seed):
    torch.manual_seed(seed)
    tensors, information = torch.randn(count, 9), torch.rand(count, 9)
    assert torch.equal(fisher([tensors[0]] * count, list(information)), tensors[0])
    got, low, high = fisher(list(tensors), list(information)), tensors.amin(0), tensors.amax(0)
    assert bool(((got >= low - 1e-5) & (got <= high + 1e-5)).all())
    assert torch.allclose(got, fisher(list(tensors), list(8 * information)))
    order = torch.randperm(count)
    assert torch.allclose(got, fisher(list(tensors[order]), list(information[order])), atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9, 0.999])
def test_regmean_agrees_with_numpy(count, alpha):
    weights = [torch.randn(3, 6, dtype=torch.float64) for _ in range(count)]
    grams = [x.T @ x / len(x) for x in inputs(count)]
    np.testing.assert_allclose(regmean(weights, grams, alpha=alpha), oracle_regmean(weights, grams, alpha), atol=1e-10)


def test_regmean_is_least_squares_on_every_models_inputs():
    weights, xs = [torch.randn(3, 6, dtype=torch.float64) for _ in range(3)], inputs(3)
    outputs = np.concatenate([(x @ weight.T).numpy() for x, weight in zip(xs, weights, strict=True)])
    want = np.linalg.lstsq(np.concatenate(xs), outputs, rcond=None)[0].T
    np.testing.assert_allclose(regmean(weights, [x.T @ x for x in xs], alpha=1.0), want, atol=1e-10)


def test_regmean_at_its_limits():
    weights = [torch.randn(3, 6) for _ in range(2)]
    gram = (x := torch.randn(50, 6)).T @ x
    mean = (weights[0] + weights[1]) / 2
    torch.testing.assert_close(regmean(weights, [gram, gram]), mean)
    torch.testing.assert_close(regmean([weights[0]] * 3, [gram, 2 * gram, 0 * gram]), weights[0])
    assert torch.equal(regmean(weights, [0 * gram, 0 * gram]), mean)
    assert regmean(weights, [gram, gram]).dtype == torch.float32


def test_inputs_that_never_came_leave_the_mean_and_the_rest_alone():
    weights, xs = [torch.randn(3, 6, dtype=torch.float64) for _ in range(2)], inputs(2)
    whole = regmean([w[:, 1:] for w in weights], [x[:, 1:].T @ x[:, 1:] for x in xs])
    for x in xs:
        x[:, 0] = 0
    got = regmean(weights, [x.T @ x for x in xs])
    torch.testing.assert_close(got[:, 1:], whole)
    torch.testing.assert_close(got[:, 0], (weights[0] + weights[1])[:, 0] / 2)


def test_inputs_of_very_unlike_scales_are_solved_for_alike():
    """A model's massive activations: one input a million times the others."""
    weights, xs = [torch.randn(3, 6, dtype=torch.float64) for _ in range(2)], inputs(2)
    plain = regmean(weights, [x.T @ x for x in xs])
    factor = torch.tensor([1e6, 1, 1, 1, 1, 1e-6], dtype=torch.float64)
    scaled = regmean([w / factor for w in weights], [(x * factor).T @ (x * factor) for x in xs])
    torch.testing.assert_close(scaled * factor, plain)


def test_equations_without_a_single_solution_are_refused():
    with pytest.raises(SettingsError, match=r"no single solution[^\0]*alpha=1"):
        regmean([torch.randn(2, 2)] * 2, [torch.ones(2, 2)] * 2, alpha=1.0)
    assert bool(regmean([torch.randn(2, 2)] * 2, [torch.ones(2, 2)] * 2).isfinite().all())


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "full"), ("llama", "lora"), ("gpt2", "mlp")])
def test_fisher_merges_every_parameter(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind)
    model = dict(learned_merge(library, "fisher", TEXTS, floor=1e-3).named_parameters())
    known, base = statistics(library, "fisher"), library.model()
    for name, original in base.named_parameters():
        own = [held(library, specialist, name) for specialist in NAMES]
        if all(tensor is None for tensor in own):
            assert torch.equal(model[name], original)
            assert model[name].data_ptr() != original.data_ptr()
            continue
        tensors = [original if tensor is None else tensor for tensor in own]
        want = oracle_fisher([tensor.detach() for tensor in tensors], [known[s][name] for s in NAMES], 1e-3)
        np.testing.assert_allclose(model[name].detach(), want, atol=1e-5)
    assert {name for name in model if not torch.equal(model[name], base.get_parameter(name))} == known["legal"].parameters


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "full"), ("llama", "lora"), ("gpt_neox", "full")])
def test_regmean_merges_linear_modules_and_averages_the_rest(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind)
    model = learned_merge(library, "regmean", TEXTS)
    known, tied = statistics(library, "regmean"), library.anatomy.tied
    for path, part in model.named_modules():
        if type(part).__name__ not in ("Linear", "Conv1D") or (tied and path == "lm_head"):
            continue
        own = [held(library, name, f"{path}.weight") for name in NAMES]
        if own[0] is None:
            continue
        turned = type(part).__name__ == "Conv1D"
        want = oracle_regmean([w.T if turned else w for w in own], [known[name][f"{path}.weight"] for name in NAMES], 0.9)
        np.testing.assert_allclose(part.weight.detach(), want.T if turned else want, atol=1e-4)
    for name, parameter in model.named_parameters():
        if name not in known["legal"].parameters and kind == "full":
            torch.testing.assert_close(parameter, mean_of({s: held(library, s, name) for s in NAMES}))
    assert tied == ("transformer.wte.weight" in dict(model.named_parameters()))


def test_regmean_comes_nearer_to_each_modules_outputs_than_the_mean(tmp_path):
    """Square GPT-2 attention projections, whose orientation no shape would betray."""
    library = tiny.tiny_library(tmp_path, "gpt2", NAMES)
    model, known = learned_merge(library, "regmean", TEXTS, alpha=0.99), statistics(library, "regmean")
    for block in range(5):
        name = f"transformer.h.{block}.attn.c_proj.weight"
        own = {s: held(library, s, name) for s in NAMES}

        def error(weight, own=own, name=name):
            return sum(float(((weight - own[s]).T @ known[s][name] @ (weight - own[s])).trace()) for s in NAMES)

        assert error(model.get_parameter(name).detach()) < 0.95 * error(mean_of(own))


@pytest.mark.parametrize("method", ["fisher", "regmean", "adamerging"])
def test_a_merge_is_a_model_of_its_own_and_needs_texts_once(tmp_path, method):
    library = tiny.tiny_library(tmp_path, names=NAMES[:2], kind="mlp")
    texts, few = {name: TEXTS[name] for name in NAMES[:2]}, {"steps": 2} if method == "adamerging" else {}
    before = [p.clone() for p in library.model().parameters()]
    model = learned_merge(library, method, texts, **few)
    again = learned_merge(Library.open(tmp_path), method, **few)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad
    ids = torch.tensor([[5, 17, 250]])
    assert not torch.equal(model(input_ids=ids).logits, library.model()(input_ids=ids).logits)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, library.model().parameters(), strict=True))


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_the_librarys_order_changes_nothing(tmp_path, method):
    one = tiny.tiny_library(tmp_path, names=NAMES)
    two = Library.create(tmp_path / "other", tmp_path / "generalist", {name: tmp_path / name for name in reversed(NAMES)})
    merges = [learned_merge(library, method, TEXTS) for library in (one, two)]
    assert all(torch.equal(a, b) for a, b in zip(*(merge.parameters() for merge in merges), strict=True))


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_a_bfloat16_library_is_merged_in_float32(tmp_path, method):
    library = tiny.tiny_library(tmp_path, "llama", NAMES, dtype=torch.bfloat16)
    model, known = learned_merge(library, method, TEXTS), statistics(library, method)
    name = "model.layers.0.mlp.down_proj.weight"
    assert known["legal"][name].dtype == torch.float32
    own = [library.model(s).get_parameter(name).float().detach() for s in NAMES]
    how = {"fisher": lambda *given: oracle_fisher(*given, 1e-6), "regmean": lambda *given: oracle_regmean(*given, 0.9)}[method]
    want = torch.from_numpy(how(own, [known[s][name] for s in NAMES])).to(torch.bfloat16)
    got = model.get_parameter(name)
    assert got.dtype == torch.bfloat16
    assert float((got != want).float().mean()) < 0.01  # rounded once; the rest sit between two values


def test_equal_specialists_merge_to_themselves(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("medical",))
    library.add("twin", tmp_path / "medical")
    texts = {"medical": TEXTS["medical"], "twin": TEXTS["legal"]}
    theirs = library.model("medical")
    for method, tolerance in (("fisher", 0.0), ("regmean", 1e-6)):
        for name, parameter in learned_merge(library, method, texts).named_parameters():
            torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=0, atol=tolerance)


def test_what_cannot_be_done_is_told(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES[:2])
    texts = {name: TEXTS[name] for name in NAMES[:2]}
    with pytest.raises(UnknownName, match="did you mean 'fisher'"):
        learned_merge(library, "fischer", texts)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownName, match="did you mean 'alpha'"):
        learned_merge(library, "regmean", texts, alhpa=0.5)
    with pytest.raises(SettingsError, match=r"not those of fisher[^\0]*RegMeanSettings"):
        learned_merge(library, "fisher", texts, RegMeanSettings())
    with pytest.raises(SettingsError, match="alpha"):
        learned_merge(library, "regmean", texts, alpha=1.0)
    with pytest.raises(DataError, match="no texts"):
        learned_merge(library, "fisher", {"legal": ["x y"]})
    with pytest.raises(StorageError, match="giving texts"):
        learned_merge(library, "fisher", None, FisherSettings())
    with pytest.raises(SettingsError, match="means something else"):
        library.add("merging", "legal")  # where statistics lie
    for name in NAMES[:2]:
        library.remove(name)
    with pytest.raises(DataError, match="nothing to merge"):
        learned_merge(library, "fisher", {})
