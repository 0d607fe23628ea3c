"""`asterism route`: what each command says is what was done; another library, seen texts and bad requests are told."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from asterism.models.library import Library
from asterism.models.likelihood import read
from asterism.route.arrow import arrow_gates
from asterism.route.build import load_router, route
from asterism.route.texts import kept_texts
from tests import tiny

TEXT = "def dose(weight): return 0.5 * weight"
SHORT = ("--steps", 3, "--batch-size", 2, "--max-length", 16, "--learning-rate", 0.05, "--device", "cpu", "--json")


@pytest.fixture(scope="module")
def mlps(tmp_path_factory):
    """A library whose specialists differ from the generalist in their MLPs alone."""
    return tiny.tiny_library(tmp_path_factory.mktemp("mlps"), "qwen2", ("medical", "code", "legal"), "mlp").root


@pytest.fixture
def file(tmp_path):
    """Prompts and responses of a task."""
    rows = [{"prompt": text[: len(text) // 2], "response": text[len(text) // 2 :]} for text, _ in tiny.CROSS]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "task.jsonl"


def test_a_router_is_trained_told_and_not_trained_twice(asterism, mlps, file, tmp_path):
    asked = ("route", "train", mlps, tmp_path / "router", "--data", file, "--held-out", 0.25, "--experts", "medical,code", "--depth", 2)
    ran = asterism(*asked, *SHORT, "--whole")
    assert ran.code == 0, ran.err
    told = ran.answer
    assert (told["texts"], told["held_out"], told["experts"], told["gates"]) == (9, 3, ["medical", "code"], 3 * 4 * 16)
    assert told["training"]["method"] == "router"
    assert told["training"]["schedule"] == "cosine_to_tenth"
    assert told["settings"]["depth"] == 2
    library = Library.open(mlps)
    model = load_router(tmp_path / "router", library)
    start = route(library, experts=("medical", "code"), depth=2)
    assert not torch.equal(model.gates[0].weight, start.gates[0].weight)
    assert len(kept_texts(tmp_path / "router")) == 3
    loaded = AutoModelForCausalLM.from_pretrained(told["whole"])
    ids = torch.tensor([library.tokenizer(TEXT)["input_ids"]])
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    before = (tmp_path / "router" / "router.safetensors").stat().st_mtime_ns
    assert asterism(*asked, *SHORT).code == 0
    assert (tmp_path / "router" / "router.safetensors").stat().st_mtime_ns == before


def test_eval_takes_the_texts_held_out_and_refuses_those_seen(asterism, mlps, file, data, tmp_path):
    assert asterism("route", "train", mlps, tmp_path / "router", "--data", file, *SHORT).code == 0
    page = tmp_path / "eval.html"
    told = asterism("route", "eval", mlps, tmp_path / "router", "--max-length", 32, "--report", page, "--json").answer
    library, texts = Library.open(mlps), kept_texts(tmp_path / "router")
    model = load_router(tmp_path / "router", library)
    assert told["texts"] == len(texts) == 1
    assert {key: told["router_loss"][key] for key in ("low", "high")} == {"low": None, "high": None}
    assert told["router_loss"]["loss"] == pytest.approx(float(read(model, library.tokenizer, texts, max_length=32)[1].mean()), abs=1e-5)
    assert [row["name"] for row in told["rivals"]] == ["generalist", "medical", "code", "legal"]
    assert "Beside the models it is made of" in page.read_text()
    refused = asterism("route", "eval", mlps, tmp_path / "router", "--data", file)
    assert refused.code == 2
    assert "learnt from these texts" in refused.err
    people = asterism("route", "eval", mlps, tmp_path / "router", "--data", data, "--domain", "medical")
    assert people.code == 0, people.err
    for part in ("the router saves", "generalist", "Load of each block's gate", "entropy, bits"):
        assert part in people.out
    one = asterism("route", "eval", mlps, tmp_path / "router", "--max-length", 32)
    assert "Losses on 1 text, nats" in one.out
    assert one.out.count(" – │") == 5  # the router, three models and the generalist
    assert "one text decides nothing" in page.read_text()


def test_a_file_without_texts_is_told_as_such(asterism, mlps, tmp_path):
    assert asterism("route", "train", mlps, tmp_path / "arrow", "--untrained", "arrow").code == 0
    (tmp_path / "none.jsonl").write_text("")
    ran = asterism("route", "eval", mlps, tmp_path / "arrow", "--data", tmp_path / "none.jsonl")
    assert f"no texts to tell the router by.\n  met:  {tmp_path / 'none.jsonl'}\n" in ran.err


def test_untrained_routers_need_no_task(asterism, mlps, data, tmp_path):
    ran = asterism("route", "train", mlps, tmp_path / "arrow", "--untrained", "arrow", "--top-k", 2, "--normalise", "--scale", 2, "--json")
    assert ran.code == 0, ran.err
    library = Library.open(mlps)
    model = load_router(tmp_path / "arrow", library)
    assert (model.config.mode, model.config.scale, model.config.num_experts_per_tok) == ("absolute", 2, 2)
    torch.testing.assert_close(torch.stack([gate.weight for gate in model.gates]), arrow_gates(library).weights)
    (tmp_path / "prompts.yaml").write_text("medical: ['What dose?']\ncode: ['def add(a, b):']\n")
    for asked in (("prompts", "--prompts", tmp_path / "prompts.yaml"), ("average", "--data", data, "--with-generalist")):
        ran = asterism("route", "train", mlps, tmp_path / asked[0], "--untrained", *asked, "--json")
        assert ran.code == 0, ran.err
    assert load_router(tmp_path / "prompts", library).config.experts == ["medical", "code"]
    seen = asterism("route", "eval", mlps, tmp_path / "average", "--data", data / "medical.train.jsonl")
    assert "learnt from these texts" in seen.err


def test_show_tells_and_draws_every_token(asterism, mlps, tmp_path):
    assert asterism("route", "train", mlps, tmp_path / "arrow", "--untrained", "arrow", "--json").code == 0
    page = tmp_path / "text.html"
    told = asterism("route", "show", mlps, tmp_path / "arrow", TEXT, "--report", page, "--json").answer
    assert "".join(told["tokens"]).endswith(TEXT)
    assert all(sum(rows) == pytest.approx(1) for rows in zip(*(told["shares"][name][1] for name in told["models"]), strict=True))
    assert "Where the tokens of a text go" in page.read_text()
    people = asterism("route", "show", mlps, tmp_path / "arrow", TEXT)
    assert "Weights on every token" in people.out


def test_export_writes_either_form(asterism, mlps, tmp_path):
    assert asterism("route", "train", mlps, tmp_path / "prompts", "--untrained", "arrow", "--json").code == 0
    assert "--data" in asterism("route", "eval", mlps, tmp_path / "prompts").err
    refused = asterism("route", "export", mlps, tmp_path / "prompts", tmp_path / "moe")
    assert refused.code == 2
    assert "mode absolute" in refused.err
    assert "--as routed" in refused.err
    assert asterism("route", "export", mlps, tmp_path / "prompts", tmp_path / "routed", "--as", "routed").code == 0
    assert (tmp_path / "routed" / "tokenizer.json").exists()


def test_what_is_wrong_is_told(asterism, mlps, original, file, tmp_path):
    small, short = ("--data", file, *SHORT), tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a", "b", "c", "d")))
    for given, wrong in (
        (("train", mlps, tmp_path / "r"), "--untrained arrow"),
        (("train", mlps, tmp_path / "r", *small, "--experts", "medicl,code"), "did you mean 'medical'"),
        (("train", mlps, tmp_path / "r", *small, "--top-k", 4), "1 <= top_k <= 3"),
        (("train", mlps, tmp_path / "r", *small, "--held-out", 0.01), "Too few texts to hold some out"),
        (("train", mlps, tmp_path / "r", *small, "--gate", "fixed"), "linear or mlp"),
        (("train", original, tmp_path / "r", *small), 'attention="generalist"'),
        (("train", mlps, tmp_path / "r", "--untrained", "average"), "--data"),
        (("train", mlps, tmp_path / "r", "--untrained", "average", "--data", file), "give a folder of <expert>.train.jsonl files"),
        (("train", mlps, tmp_path / "r", "--untrained", "arrow", "--data", file), "--data is of --untrained average"),
        (("train", mlps, tmp_path / "r", "--untrained", "average", "--prompts", file), "--prompts is of --untrained prompts"),
        (("train", mlps, tmp_path / "r", "--data", short, "--held-out", 0.5, *SHORT), "A held-out text has fewer than 3 tokens"),
        (("train", mlps, tmp_path / "r", "--untrained", "arrow", "--mode", "cosine"), "mode of their own"),
        (
            ("train", mlps, tmp_path / "r", "--untrained", "arrow", "--batch-size", 2),
            "--batch-size is of training.\n  met:  --untrained arrow",
        ),
        (("train", mlps, tmp_path / "r", "--untrained", "arrow", "--held-out", 0.5), "--held-out is of training."),
        (("train", mlps, tmp_path / "r", "--untrained", "average", "--data", file, "--domain", "code"), "--domain is of training."),
        (("eval", mlps, tmp_path, "--report", tmp_path), "a folder lies there"),
        (("show", mlps, tmp_path, "text", "--report", short / "page.html"), "short.jsonl cannot be written to"),
        (("eval", mlps, tmp_path), "no router here"),
        (("show", mlps, tmp_path, "text"), "no router here"),
        (("show", mlps, tmp_path, " "), "empty"),
        (("trian", mlps), "Did you mean 'train'"),
        (("eval", mlps), "`asterism route eval --help`"),
    ):
        ran = asterism("route", *given)
        assert ran.code == 2, given
        assert wrong in ran.err, given
        assert not (tmp_path / "r").exists()


def test_a_router_of_another_library_is_refused(asterism, mlps, tmp_path):
    assert asterism("route", "train", mlps, tmp_path / "arrow", "--untrained", "arrow").code == 0
    other = tiny.tiny_library(tmp_path / "other", "qwen2", ("medical", "code", "legal"), "mlp", seed=3).root
    for command in (("show", other, tmp_path / "arrow", "text"), ("export", other, tmp_path / "arrow", tmp_path / "out")):
        assert "made with another library" in asterism("route", *command).err


def test_a_router_is_evaluated_beside_everything_else(asterism, original, data, tmp_path):
    arrow = tmp_path / "arrow"
    assert asterism("route", "train", original, arrow, "--untrained", "arrow", "--attention", "mean").code == 0
    few = ("--single-per-domain", 1, "--cross-per-pair", 1, "--max-length", 24, "--protocol", "whole", "--out", tmp_path / "out", "--json")
    ran = asterism("evaluate", original, "--data", data, "--routers", f"arrow={arrow}", *few)
    assert ran.code == 0, ran.err
    assert "router:arrow" in {row["candidate"] for row in ran.answer["losses"]}
    assert "arrow router" in (tmp_path / "out" / "report.html").read_text()
    refused = asterism("evaluate", original, "--data", data, "--routers", "arrow", *few)
    assert "name=FOLDER" in refused.err


def test_a_group_shows_its_commands(asterism):
    for given in (("route",), ("route", "--help")):
        ran = asterism(*given)
        assert "export" in ran.out + ran.err
        assert "error" not in ran.err
