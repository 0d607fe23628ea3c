"""A ladder: one line a rung, joined in order, with the losses of other ways beside it."""

from __future__ import annotations

from asterism.report.ladders import ladder
from tests.report.svg import lines, texts

RUNGS = [("LERP", 3.2, 3.1, 3.3), ("single router", 3.1, 3.0, 3.2), ("full-layer router", 2.9, 2.8, 3.0), ("top-1", 3.0, 2.9, 3.1)]


def test_a_ladder_tells_every_loss_and_joins_only_its_own_rungs():
    svg = ladder({"": RUNGS}, title="Degrees of freedom", xlabel="loss, nats a token (n = 9)", levels={"fine-tuning": 2.5}, apart=["top-1"])
    assert {"LERP", "top-1", "3.200", "3.000", "fine-tuning", "loss, nats a token (n = 9)"} <= set(texts(svg))
    joined = next(points for points in lines(svg, "--s1") if len(points) == 3)
    assert joined[0][0] > joined[1][0] > joined[2][0]
    assert joined[0][1] < joined[1][1] < joined[2][1]


def test_several_series_share_the_rungs_and_get_a_legend():
    svg = ladder({"gsm-hard": RUNGS, "mbpp": RUNGS[1:]}, title="Degrees of freedom", xlabel="loss")
    shown = texts(svg)
    assert shown.count("LERP") == 1
    assert {"gsm-hard", "mbpp"} <= set(shown)
    assert "3.200" not in shown
    assert svg == ladder({"gsm-hard": RUNGS, "mbpp": RUNGS[1:]}, title="Degrees of freedom", xlabel="loss")
