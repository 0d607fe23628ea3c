"""Plans from headers alone: every output tensor with its sources, as mergekit's planner has it, and every misfit refused."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
import torch
import yaml

from asterism.core.errors import MismatchError, SettingsError, UnsupportedError
from asterism.merge.methods import method
from asterism.merge.parts import embedding_of, is_early, is_head, is_vocabulary, parts_of
from asterism.merge.plan import Piece, Source, plan
from asterism.merge.recipe import Recipe
from asterism.merge.references import Reference
from asterism.models.checkpoints import Checkpoint
from tests import tiny
from tests.merge import recipes

WIDTH, TOKENS = 8, 40


def header(layers: int = 3, *, kind: str = "BF16", head: bool = True, tokens: int = TOKENS, prefix: str = "model.", **changes: Any):
    """A Llama-like model's tensors."""
    found: dict[str, tuple[tuple[int, ...], str]] = {f"{prefix}embed_tokens.weight": ((tokens, WIDTH), kind)}
    for layer in range(layers):
        for part, shape in {
            "self_attn.q_proj": (WIDTH, WIDTH),
            "self_attn.o_proj": (WIDTH, WIDTH),
            "mlp.down_proj": (WIDTH, 2 * WIDTH),
            "norm": (WIDTH,),
        }.items():
            found[f"{prefix}layers.{layer}.{part}.weight"] = (shape, kind)
    found[f"{prefix}norm.weight"] = ((WIDTH,), kind)
    if head:
        found["lm_head.weight"] = ((tokens, WIDTH), kind)
    return {name: value for name, value in (found | changes).items() if value is not None}


def recipe_of(given) -> Recipe:
    return Recipe.of(yaml.safe_load(given) if isinstance(given, str) else given)


def planned(given, headers: dict[str, Any] | None = None, **values: Any) -> list[Piece]:
    recipe = recipe_of(given)
    everyone = {model: (headers or {}).get(str(model), header()) for model in recipe.models}
    values = {name: {Reference.of(k): v for k, v in value.items()} if name == "layers" else value for name, value in values.items()}
    return list(plan(recipe, method(recipe.merge_method), everyone, **values))


def linear(*models: str, **changes: Any):
    listed = [{"model": model, "parameters": {"weight": number + 1}} for number, model in enumerate(models)]
    return {"merge_method": "linear", "models": listed, **changes}


def test_whole_models_by_hand():
    pieces = planned(recipes.TIES)
    assert [piece.name for piece in pieces] == list(header())
    by_name = {piece.name: piece for piece in pieces}
    down = by_name["model.layers.1.mlp.down_proj.weight"]
    assert down.sources == tuple(Source(number, down.name) for number in range(4))
    assert (down.shape, down.dtype, down.base, down.vocabulary, down.wide) == ((WIDTH, 2 * WIDTH), torch.float16, 3, None, False)
    assert down.nbytes == 2 * 2 * WIDTH * WIDTH
    assert down.shared == {"normalize": True, "int8_mask": True}
    assert down.each[:2] == ({"weight": 1.0, "density": 0.7}, {"weight": 0.5, "density": 0.5})
    assert down.each[2:] == ({"weight": 0.5, "density": 0.33}, {})
    last = by_name["model.layers.2.self_attn.q_proj.weight"]
    assert [each.get("weight") for each in last.each] == [1.0, 1.0, 0.0, None]
    assert by_name["model.norm.weight"].each[0] == {"weight": 1.0, "density": 1.0}  # outside the layers: t = 0
    assert [piece.name for piece in pieces if piece.vocabulary == 0] == ["model.embed_tokens.weight", "lm_head.weight"]


def test_slices_by_hand():
    pieces = planned(recipes.STACKED)
    assert [piece.name for piece in pieces] == list(header(4))
    chosen = {piece.name: (piece.sources[0].model, piece.sources[0].name) for piece in pieces}
    assert chosen["model.embed_tokens.weight"] == (0, "model.embed_tokens.weight")  # from the first slice
    assert chosen["model.norm.weight"] == (1, "model.norm.weight")  # from the last
    assert chosen["lm_head.weight"] == (1, "lm_head.weight")
    layers = [(*chosen[f"model.layers.{layer}.norm.weight"],) for layer in range(4)]
    want = [(0, "0"), (0, "1"), (1, "1"), (1, "2")]
    assert layers == [(model, f"model.layers.{layer}.norm.weight") for model, layer in want]


def test_filters_see_a_slices_own_names():
    content = yaml.safe_load(recipes.SCALED)
    content["slices"][1]["sources"][0]["parameters"] = {"scale": [{"filter": "layers.2.", "value": 3}, {"value": 1}]}
    by_name = {piece.name: piece for piece in planned(content)}
    assert by_name["model.layers.3.norm.weight"].each == ({"scale": 3.0},)  # layer 2 of the model
    assert by_name["model.layers.2.norm.weight"].each == ({"scale": 1.0},)
    assert by_name["model.layers.0.self_attn.o_proj.weight"].each == ({"scale": 0.5},)


def test_gradients_run_over_a_slices_layers():
    pieces = {piece.name: piece for piece in planned(recipes.SLERP)}
    got = [pieces[f"model.layers.{layer}.self_attn.q_proj.weight"].shared["t"] for layer in range(3)]
    assert got == [0, 0.3, 1]
    assert pieces["lm_head.weight"].shared["t"] == 0.5
    one = planned({**yaml.safe_load(recipes.STACKED), "parameters": {"scale": [2, 4]}}, {"org/two": header(5)})
    assert [piece.each[0]["scale"] for piece in one if ".norm." in piece.name] == [2, 4, 2, 4, 2]  # the last is outside the layers
    content = yaml.safe_load(recipes.STACKED)
    content["slices"][0]["sources"][0]["layer_range"] = [1, 2]
    single = {piece.name: piece for piece in planned({**content, "parameters": {"scale": [2, 4]}})}
    assert single["model.layers.0.norm.weight"].each == ({"scale": 4.0},)  # one layer: t = 1


@pytest.mark.parametrize(
    ("asked", "kinds", "want", "wide"),
    [
        ({}, ("BF16", "BF16"), torch.bfloat16, False),
        ({}, ("BF16", "F16"), torch.float32, False),
        ({}, ("BF16", "F64"), torch.float64, False),
        ({"dtype": "float16"}, ("BF16", "F32"), torch.float16, False),
        ({"dtype": "float64"}, ("BF16", "F32"), torch.float64, True),
        ({"dtype": "float64"}, ("F64", "F32"), torch.float64, False),
        ({"dtype": "float64", "out_dtype": "torch.bfloat16"}, ("F32", "F32"), torch.bfloat16, True),
        ({"out_dtype": "float32"}, ("F16", "F16"), torch.float32, False),
    ],
)
def test_dtypes(asked, kinds, want, wide):
    pieces = planned(linear("a", "b", **asked), {"a": header(kind=kinds[0]), "b": header(kind=kinds[1])})
    assert {(piece.dtype, piece.wide) for piece in pieces} == {(want, wide)}


def test_names_with_and_without_prefix():
    bare = {name.removeprefix("model."): value for name, value in header().items()}
    for first, second, names in ((header(), bare, header()), (bare, header(), bare)):
        pieces = planned(linear("a", "b"), {"a": first, "b": second})
        assert [piece.name for piece in pieces] == list(names)
        assert [[source.name for source in piece.sources] for piece in pieces] == [list(pair) for pair in zip(first, second, strict=True)]
    based = planned({**linear("a", "b"), "base_model": "b"}, {"a": bare, "b": header()})
    assert [piece.name for piece in based] == list(header())  # the base's way


def test_layers_of_several_stacks():
    def two(encoder, decoder):
        return {f"encoder.block.{n}.layer.0.q": ((2, 2), "F32") for n in range(encoder)} | {
            f"decoder.block.{n}.layer.0.q": ((2, 2), "F32") for n in range(decoder)
        }

    pieces = planned(
        {**linear("a", "b"), "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": [0, 1]}}, dict.fromkeys("ab", two(3, 2))
    )
    got = [each.each[0]["weight"] for each in pieces]
    assert got == [0, 0.5, 1, 0, 1]
    with pytest.raises(UnsupportedError, match="one stack of layers"):
        planned(recipes.STACKED, dict.fromkeys(("org/one", "org/two"), two(3, 3)))


def test_parts_of_real_names():
    names = (
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.h.0.attn.c_attn.bias",
        "transformer.h.0.attn.bias",
        "transformer.ln_f.bias",
    )
    parts = parts_of(names, "x")
    assert list(parts.loose) == ["wte.weight", "wpe.weight", "ln_f.bias"]
    assert parts.layers == ({"attn.c_attn.bias": "transformer.h.0.attn.c_attn.bias"},)  # the old mask is no tensor of the model
    neox = parts_of(("gpt_neox.embed_in.weight", "embed_out.weight", "gpt_neox.layers.0.attention.rotary_emb.inv_freq"), "x")
    assert neox.loose == {"embed_in.weight": "gpt_neox.embed_in.weight", "lm_head.weight": "embed_out.weight"}
    assert neox.stacks == {}
    experts = parts_of(("model.layers.1.mlp.experts.7.w", "model.layers.0.mlp.experts.7.w"), "x")
    assert [list(layer) for layer in experts.layers] == [["mlp.experts.7.w"]] * 2
    with pytest.raises(MismatchError, match=r"under two names.\n  met:  model.norm.weight and norm.weight in x"):
        parts_of(("model.norm.weight", "norm.weight"), "x")
    with pytest.raises(MismatchError, match=r"lacks a layer.\n  met:  layers.1 in x"):
        parts_of(("model.layers.0.a", "model.layers.2.a"), "x")


def test_what_names_mean():
    tokens = {
        "embed_tokens.weight",
        "wte.weight",
        "embed_in.weight",
        "word_embeddings.weight",
        "embeddings.weight",
        "decoder.embed_tokens.weight",
    }
    heads = {"lm_head.weight", "lm_head.bias"}
    early = {"wpe.weight", "embed_positions.weight", "embeddings.LayerNorm.weight", "word_embeddings_layernorm.bias"}
    late = {"norm.weight", "ln_f.bias", "final_layer_norm.weight", "score.weight"}
    for key in tokens | heads | early | late:
        assert is_vocabulary(key) is (key in tokens | heads), key
        assert is_early(key) is (key in tokens | early), key
        assert is_head(key) is (key in heads), key
    head = header()
    assert embedding_of(parts_of(head, "x"), head) == (TOKENS, WIDTH)
    assert embedding_of(parts_of(("a.b",), "x"), {"a.b": ((1,), "F32")}) is None


def refusal(kind, given, headers=None, **values) -> str:
    with pytest.raises(kind) as caught:
        planned(given, headers, **values)
    return str(caught.value)


def test_models_that_do_not_fit_together():
    def told(**changes):
        return refusal(MismatchError, linear("a", "b"), {"b": header(**changes)})

    assert told(layers=2).startswith("The models have different numbers of layers.\n  met:  3 in a, 2 in b\n")
    lacking = told(**{"model.layers.1.norm.weight": None})
    assert lacking.startswith("A model lacks a tensor that another has.\n  met:  layers.1.norm.weight is in a, not in b\n")
    assert "met:  layers.1.norm.extra is in b, not in a\n" in told(**{"model.layers.1.norm.extra": ((1,), "F32")})
    assert "met:  extra.weight is in b, not in a\n" in told(**{"model.extra.weight": ((1,), "F32")})
    assert "met:  norm.weight is in a, not in b\n" in told(**{"model.norm.weight": None})
    shape = told(**{"model.layers.2.mlp.down_proj.weight": ((WIDTH, 3 * WIDTH), "BF16")})
    assert "model.layers.2.mlp.down_proj.weight is [8, 24] in b, [8, 16] in a" in shape
    assert "architecture and size" in shape
    assert "add tokenizer: {source: base} or {source: union}" in told(tokens=TOKENS + 2)
    assert told(head=False).startswith(
        "Tied and untied embeddings do not merge.\n  met:  b ties its head to the embedding or has none, a has lm_head\n"
    )
    assert "different widths" in told(**{"model.embed_tokens.weight": ((TOKENS, 4), "F32")})


def test_a_head_stored_beside_the_embedding_it_is_tied_to():
    everyone = {"a": header(), "b": header(head=False)}
    tied = [Reference.of("a"), Reference.of("b")]
    assert [piece.name for piece in planned(linear("a", "b"), everyone, tied=tied)] == list(header(head=False))
    assert "Tied and untied" in refusal(MismatchError, linear("a", "b"), tied=tied[:1])


def test_kinds_of_numbers_that_do_not_merge():
    told = refusal(UnsupportedError, linear("a", "b"), {"b": header(**{"model.layers.0.norm.weight": ((WIDTH,), "I8")})})
    assert "model.layers.0.norm.weight in b is I8" in told
    planned(linear("a", "b"), {"b": header(**{"model.layers.0.self_attn.rotary_emb.inv_freq": ((4,), "I8")})})  # rebuilt, not merged


def test_layers_against_the_config():
    planned(linear("a", "b"), layers={"a": 3, "b": 3})
    assert "3 layers in the weights, 4 in the config of b" in refusal(MismatchError, linear("a", "b"), layers={"b": 4})


def test_bases():
    content = yaml.safe_load(recipes.TIES)
    assert "ties needs a base." in refusal(SettingsError, {**content, "base_model": None})
    levels = yaml.safe_load(recipes.LEVELS)
    levels["slices"][0]["sources"] = levels["slices"][0]["sources"][1:]
    assert refusal(SettingsError, levels).startswith("slices[0] does not merge its base.\n  met:  base_model org/base\n")
    passed = planned({**yaml.safe_load(recipes.STACKED), "base_model": "org/base"})  # needs no base, so it may name any
    assert {piece.base for piece in passed} == {None}
    own = yaml.safe_load(recipes.SLERP)
    own["slices"][0]["base_model"] = "org/two"
    assert {piece.base for piece in planned(own)} == {1}
    assert {piece.base for piece in planned(recipes.BASED)} == {None}


@pytest.mark.parametrize(
    ("text", "models", "told"),
    [
        (recipes.SLERP, 1, "slerp merges 2 models."),
        (recipes.SLERP, 3, "slerp merges 2 models."),
        (recipes.STACKED, 2, "passthrough merges 1 model."),
        (recipes.STOCK, 2, "model_stock merges at least 2 models besides the base."),
        (recipes.BASELESS, 3, "nuslerp merges 2 models"),
        (recipes.BASELESS, 1, "nuslerp merges 2 models"),
    ],
)
def test_numbers_of_models(text, models, told):
    content = yaml.safe_load(text)
    held = content["models"] if "models" in content else content["slices"][0]["sources"]
    more = [{**held[0], "model": f"org/more{number}"} for number in range(4)]
    held[:] = (held + more)[:models]
    assert told in refusal(MismatchError, content)


def test_layer_ranges():
    content = yaml.safe_load(recipes.STACKED)
    content["slices"][1]["sources"][0]["layer_range"] = [2, 4]
    told = refusal(SettingsError, content)
    assert told.startswith("A layer_range goes beyond the model's layers.\n  met:  slices[1].sources[0]: [2, 4], org/two has 3\n")


def test_slices_lack_a_tensor():
    headers = {"org/two": header(**{"model.layers.1.norm.weight": None})}
    assert "layers.1.norm.weight is in org/one, not in org/two" in refusal(MismatchError, recipes.SLERP, headers)
    planned(recipes.STACKED, {"org/two": header(**{"model.layers.0.norm.weight": None})})  # a layer that is not merged


def test_a_filter_that_matches_nothing():
    told = refusal(
        SettingsError, {**yaml.safe_load(recipes.SLERP), "parameters": {"t": [{"filter": "self_atn", "value": 1}, {"value": 0}]}}
    )
    assert told.startswith("A filter matches no tensor.\n  met:  'self_atn' in parameters.t[0]\n")


def test_rows_of_a_mapped_vocabulary():
    everyone = {"b": header(tokens=TOKENS + 2)}
    pieces = {piece.name: piece for piece in planned(linear("a", "b"), everyone, rows=64)}
    assert pieces["model.embed_tokens.weight"].shape == pieces["lm_head.weight"].shape == (64, WIDTH)
    assert pieces["model.norm.weight"].shape == (WIDTH,)
    uneven = {"b": header(**{"lm_head.weight": ((TOKENS + 8, WIDTH), "F32")})}
    told = refusal(MismatchError, linear("a", "b"), uneven, rows=64)
    assert f"lm_head.weight of b has {TOKENS + 8} rows, its embedding {TOKENS}" in told
    odd = dict.fromkeys("ab", header(**{"model.tokens_again.weight": ((TOKENS, WIDTH), "F32")}))
    assert "model.tokens_again.weight [40, 8] in a" in refusal(UnsupportedError, linear("a", "b"), odd, rows=64)
    planned(linear("a", "b"), odd)
    nameless = {model: {"x.weight": ((3, 3), "F32")} for model in "ab"}
    assert "known to be a token embedding" in refusal(UnsupportedError, linear("a", "b"), nameless, rows=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny checkpoints of several families, by family and whether the head is tied."""
    folder = tmp_path_factory.mktemp("models")
    for family, tied in (("llama", False), ("qwen2", True), ("gpt2", True), ("gpt_neox", False), ("phi3", False)):
        plain = {"attention_bias": False, "mlp_bias": False} if family == "llama" else {}
        tiny.save(tiny.tiny_model(family, tie_word_embeddings=tied, num_hidden_layers=3, **plain), folder / family)
    tiny.save(tiny.tiny_model("llama"), folder / "biased")
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("text", recipes.ALL)
def test_mergekit_plans_the_same(models, tmp_path, text, family):
    """Names, sources and parameters of every tensor of mergekit's plan, and no tensor besides."""
    content = yaml.safe_load(recipes.ALL[text].replace("filter: self_attn", "filter: norm").replace("filter: q_proj", "filter: norm"))
    if text == "scaled":
        content = yaml.safe_load(recipes.SCALED.replace("o_proj", "norm").replace("down_proj", "mlp"))
    if family == "gpt2":
        content = yaml.safe_load(yaml.safe_dump(content).replace("filter: norm", "filter: ln_"))
    content = placed(content, models / family, tmp_path)
    recipe = recipe_of(content)
    heads = {model: Checkpoint.open(model.model.path).headers for model in recipe.models}
    pieces = {piece.name: piece for piece in plan(recipe, method(recipe.merge_method), heads)}
    theirs = by_mergekit(content)
    assert pieces.keys() == theirs.keys()
    numbers = {str(model): number for number, model in enumerate(recipe.models)}
    for name, (sources, base, shared, each) in theirs.items():
        piece = pieces[name]
        assert [(source.model, source.name) for source in piece.sources] == [(numbers[model], own) for model, own in sources]
        if piece.base is not None:
            assert numbers[base] == piece.sources[piece.base].model
        assert {key: value for key, value in shared.items() if key in piece.shared} == piece.shared
        for mine, own in zip(piece.each, each, strict=True):
            assert {key: value for key, value in own.items() if key in mine} == mine
    assert Counter(piece.vocabulary for piece in pieces.values())[0] in (1, 2)


def test_tensors_that_mergekit_drops_without_a_word(models, tmp_path):
    """Its table of Llama has no biases: a merge of models that have them comes out without."""
    content = placed(yaml.safe_load(recipes.LINEAR), models / "biased", tmp_path)
    recipe = recipe_of(content)
    names = {piece.name for piece in plan(recipe, method("linear"), {m: Checkpoint.open(m.model.path).headers for m in recipe.models})}
    lost = names - by_mergekit(content).keys()
    assert len(lost) == 3 * 7
    assert all(name.endswith(".bias") for name in lost)


def placed(content, model, folder):
    """A recipe whose four models are folders, all with the same checkpoint."""
    written = yaml.safe_dump(content).replace("org/two@main", "org/two").replace("revision: abc", "revision: null")
    for name in ("org/one", "org/two", "org/three", "org/base"):
        place = folder / name.replace("/", "-")
        place.symlink_to(model)
        written = written.replace(name, str(place))
    return yaml.safe_load(written)


def by_mergekit(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit")
        from mergekit.architecture import get_architecture_info
        from mergekit.config import MergeConfiguration
        from mergekit.io.tasks import LoaderCache
        from mergekit.merge import _model_out_config
        from mergekit.options import MergeOptions
        from mergekit.plan import MergePlanner

        config, options = MergeConfiguration.model_validate(content), MergeOptions()
        LoaderCache().setup(options)
        architecture = get_architecture_info(config, options)
        planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
        planner._plan()
    found = {}
    for weight, task in planner._tensors:
        if not any(_stored(model, info) for model, info in task.gather_tensors.weight_info.items()):
            continue  # a buffer that its table of the architecture names and no checkpoint holds
        sources = [(str(model), _stored(model, task.gather_tensors.weight_info[model])) for model in task.model_order]
        each = [dict(task.input_parameters[model].items()) for model in task.model_order]
        name = next(own for _, own in sources) if weight.name == "embed_out.weight" else weight.name
        found[name] = (sources, str(task.base_model), dict(task.parameters.items()), each)
    return found


def _stored(model, info):
    from mergekit.io.tasks import LoaderCache

    known = LoaderCache().get(model).index.tensor_paths
    return next((name for name in (info.name, *(info.aliases or ()), info.name.replace("embed_out", "lm_head")) if name in known), None)
