"""Gates from prompts as mergekit makes them, from average activations as a plain loop finds them; what they are filled into; refusals."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from asterism.core.errors import DataError, MismatchError, SettingsError, UnknownName
from asterism.models.inputs import mean_inputs
from asterism.models.routed import recording
from asterism.route.untrained import Gates, average_activation_gates, prompt_gates, route_untrained
from tests import tiny

IDS = torch.tensor([[5, 17, 250, 3, 90, 41, 77, 12]])
NAMES = ("legal", "code", "science")
PROMPTS = {name: list(tiny.PROBES[name][:3]) for name in NAMES}
NEGATIVE = {"code": list(tiny.PROBES["general"][:2])}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.tiny_library(tmp_path_factory.mktemp("llama"), "llama", NAMES, kind="mlp", dtype=torch.float64)


def mergekits(library, pool, prompts, negative, monkeypatch):
    """mergekit's own function: [blocks, E, d]. Its bfloat16 is kept out, one prompt a call keeps its padding out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit")
        from mergekit.common import ModelReference
        from mergekit.moe import router
        from mergekit.moe.config import Expert

        monkeypatch.setattr(router.AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: library.model())
        given = ModelReference.model_validate(str(library.folder()))
        experts = [Expert(source_model=given, positive_prompts=prompts[name], negative_prompts=negative.get(name)) for name in NAMES]
        return router.get_gate_params(given, library.tokenizer, experts, mode={"last": "hidden", "mean": "hidden_avg"}[pool], device="cpu")


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_prompt_gates_are_mergekits(llama, pool, monkeypatch):
    one = {name: prompts[:1] for name, prompts in PROMPTS.items()}  # mergekit's means run over padding, ours do not
    less = {name: prompts[:1] for name, prompts in NEGATIVE.items()}
    gates = prompt_gates(llama, one, less, pool=pool)
    want = mergekits(llama, pool, one, less, monkeypatch)
    assert gates.weights.shape == want.shape == (3, 3, tiny.HIDDEN)
    torch.testing.assert_close(gates.weights, want, rtol=0, atol=1e-10)
    assert (gates.mode, gates.scale, gates.experts) == ("softmax", 1.0, NAMES)
    assert (prompt_gates(llama, one, pool=pool).weights - want)[:, 1].abs().max() > 0.01  # without the negative prompts


def read(library, texts, pool):
    """What every block reads, [blocks, d], one text at a time through transformers' own output."""
    means = []
    for text in texts:
        ids = [library.tokenizer.bos_token_id, *library.tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            states = library.model()(torch.tensor([ids]), output_hidden_states=True).hidden_states[:-1]
        states = np.stack([state[0].double().numpy() for state in states])  # [blocks, T, d]
        means.append(states.mean(1) if pool == "mean" else states[:, -1])
    return np.mean(means, axis=0)


@pytest.mark.parametrize(("family", "pool"), [*((family, "last") for family in tiny.FAMILIES), ("gpt2", "mean")])
def test_prompts_of_many_lengths_are_averaged_without_padding(tmp_path, family, pool):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind="mlp", dtype=torch.float64)
    gates = prompt_gates(library, PROMPTS, NEGATIVE, pool=pool)
    for place, name in enumerate(NAMES):
        want = read(library, PROMPTS[name], pool)
        if name in NEGATIVE:
            want = want - read(library, NEGATIVE[name], pool)
        want /= np.linalg.norm(want, axis=1, keepdims=True)
        np.testing.assert_allclose(gates.weights[:, place], want, atol=1e-6)


def test_a_tokenizer_that_starts_texts_by_itself_is_left_to_it(tmp_path):
    library = tiny.tiny_library(tmp_path, "gpt2", NAMES[:2], kind="mlp")
    before = prompt_gates(library, {name: PROMPTS[name] for name in NAMES[:2]})
    start = library.tokenizer.bos_token
    library.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, library.tokenizer.bos_token_id)]
    )
    after = prompt_gates(library, {name: PROMPTS[name] for name in NAMES[:2]})
    assert torch.equal(after.weights, before.weights)


def mlp_inputs(library, model, texts):
    """Mean over texts of the mean input of every MLP, [blocks, d], one text at a time."""
    means = []

    def note(_module, inputs):
        means.append(inputs[0][0].mean(0).detach())

    modules = [model.get_submodule(f"{library.anatomy.block_path(block)}.mlp") for block in range(library.anatomy.n_blocks)]
    hooks = [module.register_forward_pre_hook(note) for module in modules]
    for text in texts:
        model(torch.tensor([library.tokenizer(text)["input_ids"]]))
    for hook in hooks:
        hook.remove()
    return torch.stack(means).view(len(texts), len(modules), -1).mean(0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_average_activations_are_means_of_what_the_mlps_read(tmp_path, family):
    library = tiny.tiny_library(tmp_path, family, NAMES[:2], kind="mlp", dtype=torch.float64)
    texts = {name: PROMPTS[name] for name in NAMES[:2]}
    for by in ("generalist", "expert"):
        gates = average_activation_gates(library, texts, by=by, temperature=0.1)
        assert (gates.mode, gates.scale) == ("cosine", 10.0)
        for place, (name, own) in enumerate(texts.items()):
            want = mlp_inputs(library, library.model(None if by == "generalist" else name), own)
            want = want / want.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(gates.weights[:, place], want, rtol=0, atol=1e-6)


def test_batches_do_not_change_what_is_read(llama):
    model, texts = llama.model(), [text for own in PROMPTS.values() for text in own]
    many, few = (mean_inputs(model, llama.tokenizer, texts, ["model.layers.2"], max_tokens=tokens) for tokens in (4096, 1))
    torch.testing.assert_close(many, few, rtol=0, atol=1e-12)


def test_the_generalist_is_an_expert_where_it_is_given_texts(llama):
    texts = {"generalist": list(tiny.PROBES["general"]), "science": PROMPTS["science"], "legal": PROMPTS["legal"]}
    gates = average_activation_gates(llama, texts)
    assert gates.experts == ("legal", "science", "generalist")
    model = route_untrained(llama, gates)
    assert model.config.experts == ["legal", "science", "generalist"]
    assert (model.config.mode, model.config.scale) == ("cosine", 1.0)
    with recording(model) as seen, torch.no_grad():
        model(IDS)
    assert torch.stack(seen).sum(-1).allclose(torch.ones(3, 1, 8, dtype=torch.float64))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_expert_is_asked_for_by_its_own_direction(llama, depth):
    gates = Gates(torch.randn(3, 3, tiny.HIDDEN), NAMES, "softmax", 0.7)
    model = route_untrained(llama, gates, depth=depth)
    for block, gate in enumerate(model.gates):
        want = [gates.weights[source, NAMES.index(name)] for name, source in model.reach_of(block)]
        assert torch.equal(gate.weight.float(), torch.stack(want))
        assert (gate.mode, gate.scale) == ("softmax", 0.7)
    single = route_untrained(llama, gates, depth=depth, scope="single")
    assert [gate.weight.shape for gate in single.gates] == [(3 * depth, tiny.HIDDEN)]
    assert torch.equal(single.gates[0].weight, model.gates[0].weight)


def test_gates_and_models_that_do_not_fit_are_refused(llama):
    gates = Gates(torch.randn(3, 2, tiny.HIDDEN), ("legal", "code"), "softmax", 1.0)
    with pytest.raises(SettingsError, match=r"(?s)gates are linear.*gate mlp"):
        route_untrained(llama, gates, gate="mlp")
    for other in (
        Gates(torch.randn(5, 2, tiny.HIDDEN), ("legal", "code"), "softmax", 1.0),
        Gates(torch.randn(3, 2, tiny.HIDDEN), ("legal", "medical"), "softmax", 1.0),
    ):
        with pytest.raises(MismatchError, match=r"(?s)another library.*\[[35], 2, 16\] for legal.*\[3, 2, 16\], experts of legal"):
            route_untrained(llama, other)
    with pytest.raises(SettingsError, match="top_k"):
        route_untrained(llama, gates, top_k=3)


def test_prompts_that_cannot_make_gates_are_refused(llama):
    for make in (prompt_gates, average_activation_gates):
        with pytest.raises(UnknownName, match="did you mean 'legal'"):
            make(llama, {"legl": ["a"], "code": ["b"]})
        with pytest.raises(DataError, match=r"(?s)An expert has no (prompts|texts).*code: \[\]"):
            make(llama, {"legal": ["a"], "code": []})
        with pytest.raises(DataError, match=r"(?s)An expert has no (prompts|texts).*legal: 'a'"):
            make(llama, {"legal": "a", "code": ["b"]})
        with pytest.raises(DataError, match="empty"):
            make(llama, {"legal": ["a", ""], "code": ["b"]})
        with pytest.raises(DataError, match="There are no"):
            make(llama, {})
    for other in ("science", "generalist"):
        with pytest.raises(UnknownName, match=other):
            prompt_gates(llama, {"legal": ["a"], "code": ["b"]}, {other: ["c"]})
    with pytest.raises(DataError, match="An expert has no negative prompts"):
        prompt_gates(llama, {"legal": ["a"], "code": ["b"]}, {"code": "c"})
    with pytest.raises(UnknownName, match="did you mean 'last'"):
        prompt_gates(llama, {"legal": ["a"], "code": ["b"]}, pool="lst")
    with pytest.raises(UnknownName, match="did you mean 'expert'"):
        average_activation_gates(llama, PROMPTS, by="experts")
    with pytest.raises(DataError, match="same prompts"):
        prompt_gates(llama, {"legal": ["a", "b"], "code": ["a", "b"]})
    with pytest.raises(DataError, match=r"(?s)cancel.*code"):
        prompt_gates(llama, {"legal": ["a"], "code": ["b"]}, {"code": ["b"]})
    with pytest.raises(SettingsError, match="temperature"):
        average_activation_gates(llama, PROMPTS, temperature=-1.0)
