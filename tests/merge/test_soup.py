"""Greedy soup: who joins follows from losses alone, and the model is their mean."""

from __future__ import annotations

import pytest
import torch

from asterism.core.errors import DataError
from asterism.merge.soup import greedy_soup
from asterism.models.deltas import held
from tests import tiny

NAMES = ("medical", "legal", "code")
TEXTS = {name: list(tiny.PROBES[name][:4]) for name in (*NAMES, "general")}


def loss_of(model):
    """Mean over domains of the mean over texts, by transformers' own loss."""
    tokenizer, means = tiny.tiny_tokenizer(), []
    with torch.no_grad():
        for texts in TEXTS.values():
            ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
            means.append(sum(float(model(input_ids=one, labels=one).loss) for one in ids) / len(ids))
    return sum(means) / len(means)


def averaged(library, names):
    model = library.fresh_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = [held(library, specialist, name) for specialist in names]
            parameter.copy_(torch.stack([parameter if tensor is None else tensor for tensor in own]).double().mean(0))
    return model


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "full"), ("llama", "lora")])
def test_who_joins_is_who_lowers_the_loss(tmp_path, family, kind):
    library = tiny.tiny_library(tmp_path, family, NAMES, kind)
    alone = {name: loss_of(library.model(name)) for name in NAMES}
    names: list[str] = []
    best = float("inf")
    for name in sorted(alone, key=alone.__getitem__):
        tried = loss_of(averaged(library, [*names, name]))
        if tried <= best:
            names, best = [*names, name], tried
    soup = greedy_soup(library, TEXTS)
    assert soup.names == tuple(names)
    assert soup.loss == pytest.approx(best, rel=1e-4)
    assert list(soup.alone) == list(soup.tried) == sorted(alone, key=alone.__getitem__)
    assert soup.alone == pytest.approx(alone, rel=1e-4)
    assert soup.loss <= min(soup.alone.values())
    for name, parameter in averaged(library, names).named_parameters():
        torch.testing.assert_close(soup.model.get_parameter(name), parameter, rtol=1e-5, atol=1e-6)
        assert soup.model.get_parameter(name).requires_grad


def test_a_ruined_specialist_stays_out_and_a_twin_may_join(tmp_path):
    library = tiny.tiny_library(tmp_path, names=("medical",))
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2"), 3, 20.0), tmp_path / "ruined")
    library.add("ruined", "ruined")
    library.add("twin", "medical")
    soup = greedy_soup(library, TEXTS)
    assert soup.names == ("medical", "twin")
    assert soup.tried["ruined"] > soup.loss
    theirs = library.model("medical")
    assert all(torch.equal(ours, theirs.get_parameter(name)) for name, ours in soup.model.named_parameters())


def test_without_texts_or_specialists_there_is_no_soup(tmp_path):
    library = tiny.tiny_library(tmp_path, names=())
    with pytest.raises(DataError, match="without specialists"):
        greedy_soup(library, TEXTS)
    with pytest.raises(DataError, match="texts by domain"):
        greedy_soup(library, {})
    tiny.save(tiny.perturbed(tiny.tiny_model("gpt2"), 3, 0.1), tmp_path / "medical")
    library.add("medical", "medical")
    with pytest.raises(DataError, match="not a number"):
        greedy_soup(library, {"general": [tiny.tiny_tokenizer().decode([90])]})
