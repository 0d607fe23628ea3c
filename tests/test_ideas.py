"""The experiments on validation probes at their tiny setting: every idea is scored, and renewing means what it says."""

from __future__ import annotations

import json

import pytest
import torch

from asterism.constellation.index import Constellation
from asterism.core.corpus import read_corpus
from asterism.core.progress import quiet
from asterism.demo.corpus import write_corpus
from asterism.evaluate.probes import draw
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.likelihood import logits_of, token_losses
from experiments.constellation import ideas, updating
from experiments.constellation.workshop import Workshop
from tests.tiny import DOMAINS, tiny_cross, tiny_library, tiny_probes, tiny_singles

SETTINGS = EvaluationSettings(max_length=48)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    library = tiny_library(tmp_path_factory.mktemp("library"))
    probes = [*tiny_singles()[:3], *tiny_cross()[:3]]
    with quiet():
        return Workshop(library, Constellation.build(library, tiny_probes()), probes, SETTINGS)


def test_every_idea_and_rival_has_a_row(shop):
    with quiet():
        rows = list(ideas.rows_of(shop, "tiny"))
    named = {row["idea"] for row in rows}
    assert len(named) == len(rows) == len(list(ideas.ideas())) + 4
    assert all(0 < row["mean"] < 20 for row in rows)
    by = {row["idea"]: row for row in rows}
    assert by["evidence, top 4"]["whole/cross"] != by["evidence, top 1"]["whole/cross"]
    assert by["evidence, 3 gradient steps"]["whole/cross"] < by["evidence, scale 1.3"]["whole/cross"]
    assert by["evidence, blocks x 1.2"]["mean"] != by["evidence, embeddings x 1.2"]["mean"]


def test_em_finds_the_one_who_predicts_every_token(shop, monkeypatch):
    losses = [torch.full_like(found, 5.0) for found in shop.token_losses]
    for found in losses:
        found[2] = 0.1
    monkeypatch.setattr(shop, "token_losses", losses)
    for mixture in ideas.by_em(shop, "whole"):
        assert mixture.shares[DOMAINS[2]] > 0.99


def test_an_unchanging_mixture_is_the_plain_loss_however_it_is_cut(shop, monkeypatch):
    monkeypatch.setattr(updating, "READ", 4)
    made = updating._mixture(shop, 0, updating._prefix_fingerprints(shop, 0), 4)
    monkeypatch.setattr(updating, "_mixture", lambda *given: made)
    ids = torch.tensor([shop.tokens[0]])
    with torch.inference_mode():
        want = float(token_losses(logits_of(shop.composer.materialise(made), ids), ids)[0, 3:].mean())
    prints = updating._prefix_fingerprints(shop, 0)
    for every, kept in ((3, False), (3, True), (100, False)):
        assert updating._continued(shop, 0, prints, every, kept) == pytest.approx(want, abs=1e-4)


def test_prefix_fingerprints_end_in_the_whole_text(shop):
    prints = updating._prefix_fingerprints(shop, 1)
    torch.testing.assert_close(
        prints[-1], shop.constellation.fingerprint(shop.library.tokenizer.decode(shop.tokens[1])), atol=1e-4, rtol=1e-3
    )


def test_the_command_keeps_finished_rungs(tmp_path, monkeypatch, capsys):
    write_corpus(tmp_path / "data", train=20, heldout=42, cross=26)
    assert draw(read_corpus(tmp_path / "data"), DOMAINS, EvaluationSettings())
    kept = {"probes": 1, "rows": [{"scale": "gpt2-tiny", "idea": "x", "cost": 1, "mean": 4.2, "whole/cross": 4.2}]}
    (tmp_path / "ideas.json").write_text(json.dumps(kept))
    folder = tmp_path / "runs" / "pocket" / "gpt2-tiny" / "seed-42"
    folder.mkdir(parents=True)
    (folder / "library.json").write_text("{}")  # never opened: the rung is finished
    asked = ["--data", str(tmp_path / "data"), "--scale", "pocket", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "ideas.json")]
    monkeypatch.setattr("sys.argv", ["ideas", *asked])
    ideas.main()
    assert "4.2000  x" in capsys.readouterr().out
    assert json.loads((tmp_path / "ideas.json").read_text()) == kept
