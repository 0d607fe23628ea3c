"""The ladders' recipes: what each would take, without a network; and the corpus of a rung, from folders or from data sets."""

from __future__ import annotations

import json

import pytest

from asterism.core.corpus import GENERAL
from asterism.core.errors import DataError, StorageError
from asterism.demo.corpus import write_corpus
from asterism.models.starts import from_nothing
from experiments.constellation.rung import DOMAINS, RECIPES, Rung, Text, rungs
from experiments.constellation.texts import HELDOUT, LONGEST, config_of, corpus_of, plan
from tests import tiny

LADDERS = sorted(each.name for each in RECIPES.iterdir())
PAPER = {rung.name: rung for rung in rungs("paper")}
PARAMETERS = {
    "gpt2-124m": 124_439_808,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
}
"""Of the published checkpoints."""


def test_there_are_three_ladders():
    assert LADDERS == ["lab", "paper", "pocket"]


@pytest.mark.parametrize("rung", [rung for ladder in LADDERS for rung in rungs(ladder)], ids=lambda rung: rung.name)
def test_every_recipe_runs_dry(rung):
    told = plan(rung)
    assert json.loads(json.dumps(told)) == told
    assert told["parameters"] > 0
    assert told["gpu_memory_gib"]["training"] * 2**30 > 15.5 * told["parameters"]
    assert set(told["steps"]) == {"generalist", *DOMAINS}
    settings = rung.specialist
    assert told["tokens"]["code"] == settings.steps * settings.batch_size * settings.max_length


def test_the_ladder_on_hand_quadruples_in_each_family():
    sizes = {rung.name: plan(rung)["parameters"] for rung in rungs("lab")}
    for family in ("gpt2", "qwen2"):
        small, middle, large = (sizes[f"{family}-{size}"] for size in ("0.5m", "2m", "8m"))
        assert 3 < middle / small < 5
        assert 3 < large / middle < 5


def test_the_papers_five_scales_are_as_it_gives_them():
    assert list(PAPER) == list(PARAMETERS)
    assert {name: plan(rung)["parameters"] for name, rung in PAPER.items()} == PARAMETERS
    told = {name: (plan(rung)["hidden"], plan(rung)["blocks"]) for name, rung in PAPER.items()}
    assert list(told.values()) == [(768, 12), (896, 24), (1536, 28), (2048, 36), (3584, 28)]
    for name, rung in PAPER.items():
        given = rung.specialist
        assert (given.steps, given.batch_size, given.learning_rate, given.max_length) == (2000, 4, 5e-5, 256)
        assert rung.generalist
        assert rung.generalist.steps == (2005 if name == "gpt2-124m" else 2000)
        assert (rung.probes, rung.last, rung.share) == (40, 4, 0)
        assert set(rung.texts) == {GENERAL, *DOMAINS}
        assert rung.texts == PAPER["gpt2-124m"].texts
        assert rung.start == f"Qwen/Qwen2.5-{name[8:].upper()}" or name == "gpt2-124m"


def test_sizes_are_null_where_no_config_is_at_hand():
    unknown = PAPER["qwen2.5-0.5b"].changed(start="no-such-owner/no-such-model", config=None)
    assert config_of(unknown) is None
    told = plan(unknown)
    assert told["parameters"] is told["hidden"] is told["blocks"] is told["gpu_memory_gib"] is None
    assert told["tokens"]["generalist"] == 2000 * 4 * 256


def test_a_scratch_model_may_take_a_tokenizer(tmp_path):
    tiny.tiny_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = from_nothing([], hidden=32, blocks=1, tokenizer=str(tmp_path))
    assert model.config.vocab_size == len(tokenizer) == len(tiny.tiny_tokenizer())
    assert tokenizer("insulin")["input_ids"] == tiny.tiny_tokenizer()("insulin")["input_ids"]
    with pytest.raises(StorageError, match="The tokenizer cannot be loaded"):
        from_nothing([], hidden=32, blocks=1, tokenizer=str(tmp_path / "absent"))


def stored(folder, name, texts):
    """A data set on disk whose column is nested."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"row": {"parts": text.split("|")}}) + "\n" for text in texts), "utf-8")
    return Text(dataset=str(path), column="row.parts")


def sentence(name, n):
    return f"{name} text number {n}|with enough words to be no heading at all"


@pytest.fixture
def rung(tmp_path):
    texts = {}
    for name in (GENERAL, *DOMAINS):
        rows = [sentence(name, n) for n in range(50)] + [sentence(name, 3), "too short"]
        texts[name] = (stored(tmp_path / "sets", name, rows),)
    laws = [sentence("cases", n) for n in range(30)] + [sentence("legal", 7), "x" * (LONGEST + 1)]
    texts["legal"] = (*texts["legal"], stored(tmp_path / "sets", "cases", laws))
    return rungs("pocket")[0].changed(texts={name: [each.model_dump() for each in own] for name, own in texts.items()})


def test_a_corpus_of_data_sets_holds_out_their_ends(rung):
    corpus = corpus_of(rung, [])
    assert set(corpus.train) == set(corpus.heldout) == {GENERAL, *DOMAINS}
    everyone = [text for texts in corpus.train.values() for text in texts]
    heldout = [probe.text for probes in corpus.heldout.values() for probe in probes]
    assert len(set(everyone + heldout)) == len(everyone) + len(heldout) == 5 * 50 + 31  # no text twice, in whichever domain or half
    assert corpus.train["code"] == [sentence("code", n).replace("|", "\n") for n in range(45)]
    assert [probe.text.split("|")[0][:19] for probe in corpus.heldout["code"]] == [f"code text number {n}" for n in range(45, 50)]
    assert len(corpus.heldout["legal"]) == 5 + 3  # of each of its two sets
    assert max(map(len, everyone + heldout)) == LONGEST
    assert len({probe.id for probes in corpus.heldout.values() for probe in probes}) == len(heldout) < HELDOUT
    assert corpus.cross == []


def test_cross_domain_probes_come_from_folders(rung, tmp_path):
    write_corpus(tmp_path / "folder", train=4, heldout=2, cross=3)
    corpus = corpus_of(rung, [tmp_path / "folder"])
    assert len(corpus.cross) == 18
    assert all(len(set(probe.domains) & set(DOMAINS)) == 2 for probe in corpus.cross)
    assert len(corpus.train["medical"]) == 45  # the folder's own text is not read


def test_folders_serve_where_the_recipe_names_no_data_set(tmp_path):
    write_corpus(tmp_path, train=4, heldout=2, cross=3)
    assert len(corpus_of(rungs("pocket")[0], [tmp_path]).train["medical"]) == 4


def test_what_a_corpus_lacks_is_named(rung, tmp_path):
    with pytest.raises(DataError, match="reads its text from folders"):
        corpus_of(rungs("pocket")[0], [])
    with pytest.raises(DataError, match=r"no text for a domain.\n  met:  gpt2-tiny: code"):
        corpus_of(rung.changed(texts={name: own for name, own in rung.model_dump()["texts"].items() if name != "code"}), [])
    few = stored(tmp_path / "sets", "few", [sentence("few", n) for n in range(5)])
    with pytest.raises(DataError, match=r"too little text.\n  met:  .*few\.jsonl: 5 different texts"):
        corpus_of(rung.changed(texts=rung.model_dump()["texts"] | {"code": [few.model_dump()]}), [])


def test_a_recipe_is_read_whole():
    assert all(isinstance(rung, Rung) for ladder in LADDERS for rung in rungs(ladder))
