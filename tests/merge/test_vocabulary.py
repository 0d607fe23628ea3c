"""Embeddings mapped by token: against an oracle in NumPy, against mergekit, and from tokenizers on disk."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from asterism.core.errors import MismatchError, StorageError, UnknownName, UnsupportedError
from asterism.core.storage import read_json, write_json
from asterism.merge.recipe import Recipe, TokenRule
from asterism.merge.references import Origin, Reference
from asterism.merge.vocabulary import Known, Vocabulary, aligned
from asterism.merge.words import check_alike, words_of
from asterism.models.tokenizers import train_tokenizer
from tests import tiny

A, B, C = (Reference(Origin(name)) for name in "abc")
WIDTH = 4


def known(model: Reference, *tokens: str, rows: int | None = None) -> Known:
    return Known(model, {token: row for row, token in enumerate(tokens)}, len(tokens) if rows is None else rows)


def embedding(rows: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tensors_of(vocabulary: Vocabulary, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [embedding(model.rows, number, dtype) for number, model in enumerate(vocabulary.known)]


def mapped(vocabulary: Vocabulary, tensors: list[torch.Tensor], **values: Any) -> list[torch.Tensor]:
    return aligned(tensors, vocabulary.alignment(range(len(tensors)), **values))


def oracle(vocabulary: Vocabulary, tensors: list[torch.Tensor]) -> list[np.ndarray]:
    """Row by row, in words: keep your own; else the base's, the only owner's, the owners' mean, or zero; the rest is padding."""
    models = [(each.model, each.tokens, each.rows, tensor.double().numpy()) for each, tensor in zip(vocabulary.known, tensors, strict=True)]

    def own(model, token):
        row = model[1].get(token)
        return None if row is None or row >= model[2] else model[3][row]

    outputs = []
    for model in models:
        out = np.full((vocabulary.rows, WIDTH), np.nan)
        for token, at in vocabulary.tokens.items():
            rule = vocabulary.rules.get(token, TokenRule())
            mine = own(model, token)
            if mine is not None and not rule.force:
                out[at] = mine
                continue
            if rule.zero:
                out[at] = 0
            elif rule.donor is not None:
                (giver,) = (each for each in models if each[0] == rule.donor)
                out[at] = giver[3][rule.row] if rule.row is not None else giver[3][giver[1][rule.token or token]]
            else:
                owners = {each[0]: row for each in models if (row := own(each, token)) is not None}
                rows = [owners[vocabulary.base]] if vocabulary.base in owners else list(owners.values())
                out[at] = np.mean(rows, axis=0) if rows else 0
        held = sorted(vocabulary.tokens.values())
        padding = [row for row in range(vocabulary.rows) if row not in held]
        out[padding] = out[held].mean(0)
        outputs.append(out)
    return outputs


def test_each_rule_by_hand():
    vocabulary = Vocabulary(
        {"shared": 0, "in base": 1, "in b": 2, "in b and c": 3, "nowhere": 4},
        (known(A, "in base", "shared"), known(B, "shared", "in b", "in b and c"), known(C, "in b and c", "shared")),
        base=A,
    )
    a, b, c = tensors = tensors_of(vocabulary)
    got_a, got_b, got_c = mapped(vocabulary, tensors)
    mean = (b[2] + c[0]) / 2
    for got, want in (
        (got_a, [a[1], a[0], b[1], mean, 0 * mean]),
        (got_b, [b[0], a[0], b[1], b[2], 0 * mean]),
        (got_c, [c[1], a[0], b[1], c[0], 0 * mean]),
    ):
        assert torch.equal(got, torch.stack(want))
    baseless = Vocabulary(vocabulary.tokens, vocabulary.known)
    assert torch.equal(mapped(baseless, tensors)[1][1], a[0])  # its only owner's
    alone = vocabulary.alignment([1])
    assert torch.equal(aligned([b], alone)[0], torch.stack([b[0], 0 * mean, b[1], b[2], 0 * mean]))  # others are not asked
    other = vocabulary.alignment([1, 2], base=1)
    assert torch.equal(aligned([b, c], other)[0][1], 0 * mean)


def test_a_mean_of_rows_is_the_same_in_any_order():
    """In float32, where the order of a sum shows."""
    names = [Reference.of(name) for name in ("a", "b", "c", "d")]
    rows = [torch.tensor([[1.0, 0.1]]), torch.tensor([[3e-8, 0.2]]), torch.tensor([[3e-8, 0.3]])]
    models = [known(name, "token") for name in names[:3]] + [known(names[3], "other")]
    found = []
    for order in ([0, 1, 2, 3], [1, 2, 0, 3], [3, 2, 1, 0]):
        vocabulary = Vocabulary({"token": 0}, tuple(models[place] for place in order))
        tensors = [rows[place] if place < 3 else torch.ones(1, 2) for place in order]
        found.append(aligned(tensors, vocabulary.alignment(range(4)))[order.index(3)])
    assert all(torch.equal(each, found[0]) for each in found)
    assert not torch.equal(rows[0] + rows[1] + rows[2], rows[1] + rows[2] + rows[0])


def test_named_sources_and_force():
    rules = {
        "x": TokenRule(donor=B),
        "y": TokenRule(donor=B, token="z", force=True),
        "new": TokenRule(donor=A, row=2),
        "zero": TokenRule(zero=True, force=True),
        "added": TokenRule(),
    }
    vocabulary = Vocabulary(
        {"x": 0, "y": 1, "z": 2, "zero": 3, "new": 4, "added": 5}, (known(A, "y", "z", "zero"), known(B, "z", "x", "y", "zero")), A, rules
    )
    a, b = tensors = tensors_of(vocabulary)
    zero = torch.zeros(WIDTH, dtype=a.dtype)
    got_a, got_b = mapped(vocabulary, tensors)
    assert torch.equal(got_a, torch.stack([b[1], b[0], a[1], zero, a[2], zero]))
    assert torch.equal(got_b, torch.stack([b[1], b[0], b[0], zero, a[2], zero]))


def test_a_source_that_is_not_there():
    def told(kind, **rule):
        vocabulary = Vocabulary({"x": 0, "y": 1}, (known(A, "x", "y"), known(B, "y", "q", rows=1)), A, {"x": TokenRule(**rule)})
        with pytest.raises(kind) as caught:
            vocabulary.alignment([0, 1])
        return str(caught.value)

    assert "'x' from c" in told(MismatchError, donor=C)
    assert "No such token in b." in told(UnknownName, donor=B)
    assert "'x' from row 1 of b, which has 1" in told(MismatchError, donor=B, token="q")
    assert "'x' from row 9 of a, which has 2" in told(MismatchError, donor=A, row=9)
    harmless = Vocabulary({"y": 0}, (known(A, "x", "y"), known(B, "y")), A, {"y": TokenRule(donor=C)})
    harmless.alignment([0, 1])  # both have the token, nobody is asked


def test_padding_and_gaps():
    vocabulary = Vocabulary({"x": 0, "y": 3}, (known(A, "x", "y", rows=7), known(B, "y")), A, multiple=8)
    assert vocabulary.rows == 8
    assert Vocabulary({"x": 0, "y": 3}, (), multiple=4).rows == 4
    assert Vocabulary({"x": 0, "y": 3}, ()).rows == 4
    a, b = tensors = tensors_of(vocabulary)
    got_a, got_b = mapped(vocabulary, tensors)
    for got, want in ((got_a, [a[0], a[1]]), (got_b, [a[0], b[0]])):
        assert torch.equal(got[[0, 3]], torch.stack(want))
        assert torch.allclose(got[[1, 2, 4, 5, 6, 7]], ((want[0] + want[1]) / 2).expand(6, -1), rtol=1e-15)


def test_what_needs_no_change_is_not_copied():
    vocabulary = Vocabulary({"x": 0, "y": 1}, (known(A, "x", "y"), known(B, "x", "y", "z", rows=9), known(C, "y", "x")))
    tensors = tensors_of(vocabulary, torch.bfloat16)
    got = mapped(vocabulary, tensors)
    assert got[0].data_ptr() == tensors[0].data_ptr()
    assert got[1].data_ptr() == tensors[1].data_ptr()
    assert [tuple(each.shape) for each in got] == [(2, WIDTH)] * 3
    assert torch.equal(got[2], tensors[2][[1, 0]])


def test_dtypes_and_axes():
    vocabulary = Vocabulary({"x": 0, "y": 1, "z": 2}, (known(A, "x", "y"), known(B, "z", "y"), known(C, "z")))
    narrow = [tensor.to(torch.bfloat16) for tensor in tensors_of(vocabulary)]
    got = mapped(vocabulary, narrow)
    mean = (narrow[1][0].float() + narrow[2][0].float()) / 2
    assert torch.equal(got[0][2], mean.bfloat16())  # rounded once
    mixed = mapped(vocabulary, [narrow[0], narrow[1].float(), narrow[2]])
    assert {each.dtype for each in mixed} == {torch.float32}
    assert torch.equal(mixed[0][2], mean)
    across = aligned([tensor.T for tensor in narrow], vocabulary.alignment([0, 1, 2]), axis=1)
    assert all(torch.equal(one, other.T) for one, other in zip(got, across, strict=True))
    biases = aligned([tensor[:, 0] for tensor in narrow], vocabulary.alignment([0, 1, 2]))
    assert all(torch.equal(one[:, 0], other) for one, other in zip(got, biases, strict=True))


TEXTS = [f"t{n}" for n in range(7)]


@st.composite
def vocabularies(draw):
    """Three models with some of seven tokens each, in any order, some beyond the embedding; any output; any rules."""
    models = []
    for model in (A, B, C):
        tokens = draw(st.lists(st.sampled_from(TEXTS), unique=True, min_size=1))
        models.append(known(model, *tokens, rows=draw(st.integers(1, len(tokens) + 2))))
    output = draw(st.lists(st.sampled_from(TEXTS), unique=True, min_size=1))
    places = draw(st.permutations(range(len(output) + draw(st.integers(0, 2)))))
    rules = {}
    for token in draw(st.lists(st.sampled_from(output), unique=True, max_size=3)):
        donor = draw(st.sampled_from(models))
        force = draw(st.booleans())
        kept = [name for name, row in donor.tokens.items() if row < donor.rows]
        rules[token] = draw(
            st.sampled_from(
                [
                    TokenRule(zero=True, force=force),
                    TokenRule(donor=donor.model, row=donor.rows - 1, force=force),
                    TokenRule(donor=donor.model, token=kept[0], force=force),
                    TokenRule(),
                ]
            )
        )
    base = draw(st.sampled_from([None, A, B]))
    multiple = draw(st.sampled_from([None, 1, 5]))
    return Vocabulary({token: places[number] for number, token in enumerate(output)}, tuple(models), base, rules, multiple)


@given(vocabularies())
def test_any_vocabularies_agree_with_the_oracle(vocabulary):
    tensors = tensors_of(vocabulary)
    for got, want in zip(mapped(vocabulary, tensors), oracle(vocabulary, tensors), strict=True):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-14)


LEGAL = train_tokenizer(list(tiny.PROBES["legal"]) * 4, 300)
CODE = train_tokenizer(list(tiny.PROBES["code"]) * 4, 290)


@pytest.fixture
def folders(tmp_path):
    """Three models with vocabularies of their own: legal; legal with two added tokens (one special); code, its embedding padded."""
    chat = train_tokenizer(list(tiny.PROBES["legal"]) * 4, 300)
    chat.add_tokens(["<plain>", AddedToken("<|im_end|>", special=True)])
    saved(tmp_path / "base", LEGAL)
    saved(tmp_path / "chat", chat)
    saved(tmp_path / "code", CODE, rows=304)
    return tmp_path


def saved(folder, tokenizer, rows: int | None = None):
    tokenizer.save_pretrained(folder)
    config = tiny.tiny_config("llama", vocab_size=rows or len(tokenizer))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def opened(folder, name: str) -> Any:
    rows = read_json(folder / name / "config.json")["vocab_size"]
    header = {"model.embed_tokens.weight": ((rows, WIDTH), "F32"), "lm_head.weight": ((rows, WIDTH), "F32")}
    return SimpleNamespace(reference=Reference.of(str(folder / name)), folder=folder / name, header=header)


def recipe_for(folder, names, base: str | None = "base", **tokenizer: Any) -> Recipe:
    content = {"merge_method": "linear", "models": [{"model": str(folder / name)} for name in names], "tokenizer": tokenizer}
    return Recipe.of(content if base is None else content | {"base_model": str(folder / base)})


def words_for(folder, names, base: str | None = "base", **tokenizer: Any):
    recipe = recipe_for(folder, names, base, **tokenizer)
    models = [opened(folder, model.model.path.rpartition("/")[2]) for model in recipe.models]
    donor = next(model for model in models if model.reference == recipe.donor)
    return words_of(recipe, donor, models), recipe


NAMED = {
    "union": {"source": "union"},
    "base": {"source": "base"},
    "padded": {"source": "union", "pad_to_multiple_of": 64},
    "tokens": {
        "source": "union",
        "tokens": {
            "<|im_end|>": {"source": "DIR/chat"},
            "<new>": {"source": {"kind": "model_token", "model": "DIR/code", "token_id": 3}},
            "Ġthe": {"source": {"kind": "zero"}, "force": True},
        },
    },
    "model": {"source": "DIR/code"},
}


@pytest.mark.parametrize("base", ["base", "code", None])
@pytest.mark.parametrize("name", NAMED)
def test_mergekit_maps_the_same(folders, name, base):
    """The same tokens, and the same row for each of them in every model; the numbers of new tokens are random in mergekit.

    `tokens` with `source: base` is left out: mergekit adds them to the base's own tokenizer first, so that they seem to be the base's, and
    either breaks off with a KeyError or takes one of the base's padding rows.
    """
    content = _filled(NAMED[name], str(folders))
    words, recipe = words_for(folders, ("base", "chat", "code"), base, **content)
    numbers, theirs = by_mergekit(recipe, folders, content)
    assert set(words.vocabulary.tokens) == set(numbers)
    for number, token in enumerate(sorted(LEGAL.get_vocab(), key=LEGAL.get_vocab().__getitem__)):
        if base == "base" and name != "model":
            assert words.vocabulary.tokens[token] == numbers[token] == number
    tensors = [embedding(model.rows, number, torch.float32) for number, model in enumerate(words.vocabulary.known)]
    ours = mapped(words.vocabulary, tensors)
    for mine, other in zip(ours, theirs(tensors), strict=True):
        assert len(mine) == len(other) == words.rows
        for token, row in numbers.items():
            torch.testing.assert_close(mine[words.vocabulary.tokens[token]], other[row], atol=1e-6, rtol=0)
        if words.rows > len(numbers):
            torch.testing.assert_close(mine[-1], other[-1], atol=1e-5, rtol=0)


def by_mergekit(recipe: Recipe, folder, content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit")
        from mergekit.common import ImmutableMap, ModelReference
        from mergekit.io.tasks import GatherTensors
        from mergekit.tokenizer import BuildTokenizer, PermutedVocabulary, TokenizerConfig
        from mergekit.tokenizer.build import build_tokenizer

        models = [ModelReference.parse(str(model)) for model in recipe.models]
        base = None if recipe.base_model is None else ModelReference.parse(str(recipe.base_model))
        config = TokenizerConfig.model_validate(content)
        tokens = tuple(config.tokens or {})
        info = build_tokenizer(base, models, config.source, False, tokens)
        task = BuildTokenizer(base_model=base, referenced_models=tuple(models), tokenizer_source=config.source, add_tokens=tokens)
        permuted = PermutedVocabulary(
            gather_tensors=GatherTensors(weight_info=ImmutableMap(data={})),
            tokenizer_task=task,
            tokens=config.tokens,
            pad_to_multiple_of=config.pad_to_multiple_of,
            base_model=base,
            vocabulary_axis=0,
        )

    def mapping(tensors):
        found = permuted.execute(tokenizer_info=info, tensors=dict(zip(models, tensors, strict=True)))
        return [found[model] for model in models]

    return info.tokenizer.get_vocab(), mapping


def _filled(value, folder: str):
    if isinstance(value, dict):
        return {key: _filled(entry, folder) for key, entry in value.items()}
    return value.replace("DIR", folder) if isinstance(value, str) else value


def test_a_union_is_the_same_every_time_and_keeps_settings(folders):
    first, _ = words_for(folders, ("chat", "code"), source="union")
    again, _ = words_for(folders, ("chat", "code"), source="union")
    assert first.vocabulary.tokens == again.vocabulary.tokens
    first.save(folders / "out")
    tokenizer = words_for(folders, ("chat",), source={"model": str(folders / "out")})[0].tokenizer
    assert tokenizer.get_vocab() == first.vocabulary.tokens
    end = tokenizer.added_tokens_decoder[tokenizer.get_vocab()["<|im_end|>"]]
    assert end.special
    assert not tokenizer.added_tokens_decoder[tokenizer.get_vocab()["<plain>"]].special
    text = "The court<|im_end|> was <plain>."
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text)).count("<|im_end|>") == 1
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_without_a_row_are_left_out(folders):
    config = read_json(folders / "chat" / "config.json")
    write_json(folders / "chat" / "config.json", config | {"vocab_size": len(LEGAL)})
    words, _ = words_for(folders, ("chat", "base"), "chat", source="base")
    assert words.vocabulary.tokens == LEGAL.get_vocab()
    assert words.tokenizer.encode("The court<|im_end|>") == LEGAL.encode("The court<|im_end|>")
    write_json(folders / "chat" / "config.json", config | {"vocab_size": len(LEGAL) - 5})
    words, _ = words_for(folders, ("chat", "base"), "chat", source="base")
    assert words.rows == len(LEGAL) - 5
    text = "The plaintiff must file the complaint."
    assert words.tokenizer.decode(words.tokenizer.encode(text)) == text
    assert max(words.tokenizer.encode(text)) < words.rows
    union, _ = words_for(folders, ("base", "chat"), source="union")
    assert set(union.vocabulary.tokens) == set(LEGAL.get_vocab())  # the others' tokens without a row are none of the union's


def test_models_without_a_tokenizer(folders):
    bare = folders / "bare"
    bare.mkdir()
    write_json(bare / "config.json", {"vocab_size": len(LEGAL)})
    words, _ = words_for(folders, ("bare", "chat"), source="union")
    assert words.vocabulary.known[0].tokens == LEGAL.get_vocab()
    write_json(bare / "config.json", {"vocab_size": 17})
    with pytest.raises(MismatchError, match=r"no tokenizer.*\n  met:  .*bare, whose embedding has 17 rows; .*base has"):
        words_for(folders, ("bare", "chat"), source="union")
    with pytest.raises(StorageError, match="A tokenizer is missing"):
        words_for(folders, ("chat",), "bare", source="base")
    with pytest.raises(StorageError, match="A tokenizer is missing"):
        words_for(folders, ("chat",), source=str(bare))


def test_more_tokens_than_rows_outside_bpe(folders):
    path = folders / "base" / "tokenizer.json"
    content = read_json(path)
    model = {"type": "WordLevel", "vocab": content["model"]["vocab"], "unk_token": "a"}
    write_json(path, content | {"model": model})
    write_json(folders / "base" / "config.json", {"vocab_size": 17})
    with pytest.raises(UnsupportedError, match=r"more tokens than its model has rows.\n  met:  .* whose tokenizer is WordLevel"):
        words_for(folders, ("base", "chat"), source="base")


def test_vocabularies_without_a_rule(folders):
    def told(*names):
        check_alike([(Reference.of(name), folders / name) for name in names])

    told("base", "base")
    saved(folders / "same", LEGAL)
    pretty = read_json(folders / "same" / "tokenizer.json")
    write_json(folders / "same" / "tokenizer.json", pretty | {"truncation": None})
    (folders / "none").mkdir()
    told("base", "none", "same")
    with pytest.raises(MismatchError, match=r"'<plain>' is no token in base, token 300 in chat\n  mend: add tokenizer: {source: base} or"):
        told("base", "same", "chat")
    with pytest.raises(MismatchError, match="different vocabularies and the recipe no rule for them"):
        told("none", "chat", "code")
    (folders / "old").mkdir()
    (folders / "old" / "vocab.txt").write_text("x")
    with pytest.raises(MismatchError, match="not alike, or cannot be compared"):
        told("base", "old")
    told("old", "old")
    (folders / "chat" / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(StorageError, match="damaged"):
        told("base", "chat")
