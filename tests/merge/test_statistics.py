"""Fisher information and inner products of inputs: right against NumPy and plain autograd, kept with the library, refused when stale."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from asterism.core.errors import DataError, StaleError, StorageError, UnknownName
from asterism.merge import statistics as module
from asterism.merge.statistics import changed, fed, fisher_of, grams_of, statistics
from asterism.models.library import Library
from tests import tiny

NAMES = ("medical", "legal")
TEXTS = {name: list(tiny.PROBES[name][:3]) for name in NAMES}


def ids_of(text, length=256):
    return torch.tensor([tiny.tiny_tokenizer()(text)["input_ids"][:length]])


def linears(model):
    """Path of every module with a matrix that is no embedding, found by looking at the modules themselves."""
    kinds = ("Linear", "Conv1D")
    return {f"{path}.weight": path for path, part in model.named_modules() if type(part).__name__ in kinds}


def fed_to(model, texts, paths, length=256):
    """{path: X [tokens, in]} float64, one text at a time, so that there is no padding."""
    found = {path: [] for path in paths}
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda _, x, y, path=path: found[path].append(x[0][0].double().numpy()))
        for path in paths
    ]
    with torch.no_grad():
        for text in texts:
            model(input_ids=ids_of(text, length))
    for hook in hooks:
        hook.remove()
    return {path: np.concatenate(rows) for path, rows in found.items()}


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3"])
def test_fisher_is_the_mean_of_squared_gradients(family):
    model, other = tiny.tiny_model(family), tiny.tiny_model(family)
    texts, parameters = TEXTS["medical"], [name for name, _ in model.named_parameters()]
    got, tokens = fisher_of(model, tiny.tiny_tokenizer(), texts, parameters)
    want, count = {name: np.zeros(p.shape) for name, p in other.named_parameters()}, 0
    for text in texts:
        ids = ids_of(text)
        other.zero_grad()
        other(input_ids=ids, labels=ids).loss.mul(ids.shape[1] - 1).backward()
        for name, parameter in other.named_parameters():
            want[name] += parameter.grad.double().numpy() ** 2
        count += ids.shape[1] - 1
    assert tokens == count
    assert list(got) == parameters
    for name in parameters:
        np.testing.assert_allclose(got[name], want[name] / count, rtol=2e-3, atol=1e-6 * want[name].max())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_heads_fisher_by_hand():
    """An untied head's gradient is sum_t (p_t - onehot) h_t^T, from logits and states alone."""
    model, text = tiny.tiny_model("llama"), TEXTS["legal"][0]
    got, tokens = fisher_of(model, tiny.tiny_tokenizer(), [text], ["lm_head.weight"])
    ids = ids_of(text)
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
    states, logits = out.hidden_states[-1][0].double().numpy(), out.logits[0].double().numpy()
    gradient = np.zeros((logits.shape[1], states.shape[1]))
    for place in range(ids.shape[1] - 1):
        chances = np.exp(logits[place] - logits[place].max())
        chances /= chances.sum()
        chances[int(ids[0, place + 1])] -= 1
        gradient += np.outer(chances, states[place])
    assert tokens == ids.shape[1] - 1
    np.testing.assert_allclose(got["lm_head.weight"], gradient**2 / tokens, rtol=1e-3, atol=1e-9)


def test_repeated_texts_have_the_same_fisher_and_short_ones_none():
    model, tokenizer = tiny.tiny_model("gpt2"), tiny.tiny_tokenizer()
    wanted = ["transformer.wte.weight", "transformer.h.0.ln_1.bias"]
    once, twice = (fisher_of(model, tokenizer, TEXTS["legal"] * n, wanted)[0] for n in (1, 2))
    assert all(torch.allclose(once[name], twice[name], rtol=1e-5) for name in wanted)
    short = tokenizer.decode([90])
    assert len(tokenizer(short)["input_ids"]) == 1
    with_it, tokens = fisher_of(model, tokenizer, [*TEXTS["legal"], short], wanted)
    assert all(torch.equal(once[name], with_it[name]) for name in wanted)
    assert tokens == sum(ids_of(text).shape[1] - 1 for text in TEXTS["legal"])
    with pytest.raises(DataError, match="one token"):
        fisher_of(model, tokenizer, [short], wanted)


def test_texts_are_cut():
    model, tokenizer = tiny.tiny_model("gpt2"), tiny.tiny_tokenizer()
    assert fisher_of(model, tokenizer, TEXTS["legal"], ["transformer.ln_f.bias"], max_length=5)[1] == 4 * 3
    assert grams_of(model, tokenizer, TEXTS["legal"], {}, max_length=5)[2] == 5 * 3


def test_gradients_that_are_not_finite_are_told():
    model = tiny.tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight.mul_(1e30)
        model.transformer.h[0].mlp.c_proj.weight.mul_(1e30)
    with pytest.raises(DataError, match=r"not finite[^\0]*text 2"):
        fisher_of(model, tiny.tiny_tokenizer(), TEXTS["legal"], ["transformer.ln_f.bias"])
    with pytest.raises(DataError, match=r"not finite[^\0]*h\.1"):
        grams_of(model, tiny.tiny_tokenizer(), TEXTS["legal"], {"transformer.h.1.attn.c_attn.weight": "transformer.h.1.attn.c_attn"})


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_inner_products_of_inputs_agree_with_numpy(family):
    model = tiny.tiny_model(family)
    modules = linears(model)
    if family in tiny.TIED:
        del modules["lm_head.weight"]
    texts = [*TEXTS["medical"], "A"]  # of unlike lengths: padding must not count
    got, twins, tokens = grams_of(model, tiny.tiny_tokenizer(), texts, modules)
    want = fed_to(model, texts, modules.values())
    assert got.keys() | twins.keys() == modules.keys()
    for name, path in modules.items():
        assert tokens == len(want[path])
        np.testing.assert_allclose(got[twins.get(name, name)], want[path].T @ want[path] / tokens, rtol=1e-4, atol=1e-5)
    assert not model.get_submodule(next(iter(modules.values())))._forward_pre_hooks


def test_modules_that_are_fed_the_same_share_a_matrix():
    model = tiny.tiny_model("llama")
    _, twins, _ = grams_of(model, tiny.tiny_tokenizer(), TEXTS["legal"], linears(model))
    first = {name.removeprefix("model.layers.0."): owner for name, owner in twins.items() if ".0." in name}
    attention = "model.layers.0.self_attn.q_proj.weight"
    assert first == {
        "self_attn.k_proj.weight": attention,
        "self_attn.v_proj.weight": attention,
        "mlp.up_proj.weight": "model.layers.0.mlp.gate_proj.weight",
    }
    assert not grams_of(tiny.tiny_model("gpt2"), tiny.tiny_tokenizer(), TEXTS["legal"], {})[1]


def test_heads_count_as_linear_unless_they_are_tied(tmp_path):
    tied, untied = tiny.tiny_library(tmp_path / "a", "gpt2", NAMES), tiny.tiny_library(tmp_path / "b", "llama", NAMES)
    for library in (tied, untied):
        matrices = set(linears(library.model())) - ({"lm_head.weight"} if library is tied else set())
        assert set(fed(library.anatomy, changed(library))) == matrices
    assert "lm_head.weight" in fed(untied.anatomy, changed(untied))


@pytest.mark.parametrize("kind", ["fisher", "regmean"])
@pytest.mark.parametrize("specialists", ["full", "lora"])
def test_each_specialist_is_measured_on_its_own_texts(tmp_path, kind, specialists):
    library = tiny.tiny_library(tmp_path, "llama", NAMES, specialists)
    before = {name: library.model(name)(input_ids=ids_of("law")).logits for name in NAMES}
    found = statistics(library, kind, TEXTS)
    wanted = changed(library) if kind == "fisher" else fed(library.anatomy, changed(library))
    for name in NAMES:
        model = library.model(name)
        if kind == "fisher":
            want, tokens = fisher_of(model, library.tokenizer, TEXTS[name], wanted)
        else:
            want, twins, tokens = grams_of(model, library.tokenizer, TEXTS[name], {p: p.removesuffix(".weight") for p in wanted})
            want |= {twin: want[owner] for twin, owner in twins.items()}
        assert found[name].tokens == tokens
        assert found[name].parameters == set(wanted)
        assert all(torch.equal(found[name][parameter], want[parameter]) for parameter in wanted)
        assert torch.equal(library.model(name)(input_ids=ids_of("law")).logits, before[name])
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not torch.equal(found["medical"][wanted[0]], found["legal"][wanted[0]])
    if specialists == "lora":
        assert not any("norm" in parameter or "embed" in parameter for parameter in wanted)


@pytest.mark.parametrize("kind", ["fisher", "regmean"])
def test_what_is_kept_is_used_again(tmp_path, kind, monkeypatch):
    first = statistics(tiny.tiny_library(tmp_path, names=NAMES), kind, TEXTS)
    library = Library.open(tmp_path)
    read = []

    def watched(take):
        def taking(model, tokenizer, texts, *rest, **settings):
            read.append(texts)
            return take(model, tokenizer, texts, *rest, **settings)

        return taking

    for name in ("fisher_of", "grams_of"):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    for texts in (TEXTS, None):
        again = statistics(library, kind, texts)
        assert all(torch.equal(first[name][p], again[name][p]) for name in NAMES for p in first[name].parameters)
    assert not read
    statistics(library, kind, TEXTS | {"legal": TEXTS["legal"][:2]})
    assert read == [TEXTS["legal"][:2]]
    with pytest.raises(StaleError, match=r"max_length was 256, is 5"):
        statistics(library, kind, max_length=5)
    statistics(library, kind, TEXTS, max_length=5)
    assert read[1:] == [TEXTS["medical"], TEXTS["legal"]]
    assert (tmp_path / "merging" / kind / "legal" / "facts.json").is_file()


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    take = module.fisher_of

    def interrupted(model, tokenizer, texts, *rest, **settings):
        if texts == TEXTS["legal"]:
            raise KeyboardInterrupt
        return take(model, tokenizer, texts, *rest, **settings)

    monkeypatch.setattr(module, "fisher_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        statistics(library, "fisher", TEXTS)
    assert [path.name for path in (tmp_path / "merging" / "fisher").iterdir()] == ["medical"]
    with pytest.raises(StorageError, match=r"no Fisher values yet[^\0]*giving texts"):
        statistics(library, "fisher")


def test_stale_statistics_are_refused_or_taken_anew(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES, kind="mlp")
    before = statistics(library, "fisher", TEXTS)
    assert "transformer.wte.weight" not in before["medical"].parameters
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2"), 9, 0.1, "mlp"), tmp_path / "legal")
    library = Library.open(tmp_path)
    with pytest.raises(StaleError, match=r"a specialist changed[^\0]*legal"):
        statistics(library, "fisher")
    after, parameter = statistics(library, "fisher", TEXTS), "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(after["medical"][parameter], before["medical"][parameter])
    assert not torch.equal(after["legal"][parameter], before["legal"][parameter])


def test_a_parameter_that_a_new_specialist_changes_is_missed(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES, kind="mlp")
    statistics(library, "fisher", TEXTS)
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2"), 9, 0.1), tmp_path / "code")
    library.add("code", "code")
    texts = TEXTS | {"code": list(tiny.PROBES["code"])}
    with pytest.raises(StaleError, match="tell nothing of a parameter"):
        statistics(library, "fisher")
    found = statistics(library, "fisher", texts)
    assert all(found[name].parameters == set(library.anatomy.shapes) for name in library.names)


def test_a_changed_generalist_is_refused(tmp_path):
    statistics(tiny.tiny_library(tmp_path, names=NAMES), "regmean", TEXTS)
    tiny.save(tiny.tiny_model("gpt2", seed=5), tmp_path / "generalist")
    with pytest.raises(StaleError, match="the generalist changed"):
        statistics(Library.open(tmp_path), "regmean")


def test_texts_that_do_not_fit_the_library_are_told_before_any_work(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    with pytest.raises(UnknownName, match="did you mean 'legal'"):
        statistics(library, "fisher", TEXTS | {"leagl": ["x"]})
    with pytest.raises(DataError, match=r"no texts[^\0]*legal"):
        statistics(library, "fisher", {"medical": TEXTS["medical"]})
    for wrong in ("one text", []):
        with pytest.raises(DataError, match=r"are a list[^\0]*legal"):
            statistics(library, "fisher", TEXTS | {"legal": wrong})
    assert not (tmp_path / "merging").exists()


def test_a_damaged_file_is_made_again_from_texts(tmp_path):
    library = tiny.tiny_library(tmp_path, names=NAMES)
    statistics(library, "regmean", TEXTS)
    facts = tmp_path / "merging" / "regmean" / "legal" / "facts.json"
    facts.write_text(json.dumps({"format_version": 1}))
    with pytest.raises(StorageError, match="damaged"):
        statistics(library, "regmean")
    assert statistics(library, "regmean", TEXTS)["legal"].tokens == statistics(library, "regmean")["legal"].tokens


def test_models_of_the_library_are_those_transformers_loads(tmp_path):
    """A LoRA specialist's statistics are those of the merged model."""
    from peft import PeftModel

    library = tiny.tiny_library(tmp_path, "llama", ("medical",), "lora")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "generalist")
    merged = PeftModel.from_pretrained(base, str(tmp_path / "medical")).merge_and_unload()
    parameter = "model.layers.1.mlp.down_proj.weight"
    want, _ = fisher_of(merged.eval(), library.tokenizer, TEXTS["medical"], [parameter])
    got = statistics(library, "fisher", {"medical": TEXTS["medical"]})["medical"][parameter]
    torch.testing.assert_close(got, want[parameter], rtol=1e-3, atol=1e-9)
