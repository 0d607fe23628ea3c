"""A routed model beside its parts: the losses are each model's own, the gains are paired."""

from __future__ import annotations

import numpy as np
import pytest

from asterism.models.likelihood import read
from asterism.route.build import route
from asterism.route.comparison import compare
from tests import tiny

TEXTS = [*tiny.PROBES["medical"][:3], *tiny.PROBES["code"][:3]]


def test_losses_gains_and_load(tmp_path):
    library = tiny.tiny_library(tmp_path, "qwen2", ("medical", "code"), "mlp")
    model = route(library, with_generalist=True)
    found = compare(model, library, TEXTS, max_length=24)
    assert list(found.rivals) == ["generalist", "medical", "code"]
    own = {None: model, "generalist": library.model(), "code": library.model("code")}
    want = {name: read(each, library.tokenizer, TEXTS, max_length=24)[1].numpy() for name, each in own.items()}
    np.testing.assert_allclose(found.router, want[None], atol=1e-5)
    np.testing.assert_allclose(found.rivals["code"], want["code"], atol=1e-5)
    told = found.to_dict()
    assert told["texts"] == 6
    code = told["rivals"][2]
    assert code["name"] == "code"
    assert code["gain"] == pytest.approx(float((want["code"] - want[None]).mean()), abs=1e-5)
    assert code["gain_low"] <= code["gain"] <= code["gain_high"]
    assert code["rate"] == pytest.approx((want[None] < want["code"]).mean())
    assert told["models"] == ["medical", "code", "generalist"]
    assert [block["block"] for block in told["blocks"]] == [0, 1, 2]
    assert sum(told["blocks"][1]["mass"]) == pytest.approx(1)
