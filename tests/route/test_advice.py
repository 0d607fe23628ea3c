"""Advice from losses whose best use is known."""

from __future__ import annotations

import pytest
import torch

from asterism.constellation.diagnosis import CLOSE
from asterism.route.advice import Way, advise, ways_of
from asterism.route.interpolation import Sweep
from asterism.route.scoring import TextLosses

SHARES = (0.0, 0.5, 1.0)
N = 40


def losses(*levels: float, odd: tuple[float, ...] | None = None) -> TextLosses:
    """[points, N]: each point's level, on odd texts another one; both halves alike but for a text's own height."""
    rows = torch.tensor(levels, dtype=torch.float64)[:, None].expand(-1, N).clone()
    if odd:
        rows[:, 1::2] = torch.tensor(odd, dtype=torch.float64)[:, None]
    height = torch.linspace(0, 1, N, dtype=torch.float64)
    return TextLosses(rows + height, rows + 2 * height, rows)


def advised(generalist: float, line: TextLosses, *, activation: TextLosses | None = None):
    sweeps = {"lerp": Sweep("lerp", SHARES, line)}
    if activation:
        sweeps["activation"] = Sweep("activation", SHARES, activation)
    ways = ways_of(losses(generalist)[0], sweeps, "math", "code")  # pyright: ignore[reportArgumentType]
    return ways, advise(ways)


def test_a_mixture_better_than_both_ends_is_a_merge():
    ways, (advice, reason, _) = advised(3.0, losses(2.5, 2.2, 2.6))
    assert advice == "merge"
    assert ways["merge"].what == "50% math and 50% code (weights)"
    assert ways["merge"].loss == pytest.approx(2.2)
    assert ways["specialist"].what == "code"  # share 0
    assert "2.200" in reason
    assert "3.000" in reason


def test_texts_that_want_different_specialists_are_composed():
    ways, (advice, *_) = advised(3.0, losses(2.0, 2.4, 3.0, odd=(3.0, 2.4, 2.0)))
    assert advice == "compose"
    assert ways["compose"].loss == pytest.approx(2.0)
    assert ways["merge"].loss == pytest.approx(2.4)
    assert ways["specialist"].loss == pytest.approx(2.5)


def test_outputs_that_mix_better_than_weights_are_routed():
    ways, (advice, *_) = advised(3.0, losses(2.5, 2.6, 2.5), activation=losses(2.5, 2.1, 2.5))
    assert advice == "route"
    assert ways["route"].what.endswith("(MLP outputs)")


@pytest.mark.parametrize(("generalist", "line"), [(2.0, (2.5, 2.4, 2.5)), (3.0, (2.5, 2.5 - CLOSE / 2, 2.6))])
def test_a_single_model_that_is_as_good_is_enough(generalist, line):
    _, (advice, reason, _) = advised(generalist, losses(*line))
    assert advice == "neither"
    assert ("over the generalist" in reason) == (generalist == 2.0)


def test_what_is_chosen_on_first_halves_is_scored_on_second_ones():
    line = losses(2.5, 2.5, 2.5)
    line.first[1] -= 1  # looks good, and is bad
    line.second[1] += 1
    ways, (advice, *_) = advised(3.0, line)
    assert ways["merge"].loss == ways["compose"].loss == pytest.approx(3.5)
    assert advice == "neither"


def test_a_path_to_the_generalist_has_one_specialist():
    ways = ways_of(losses(3.0)[0], {"lerp": Sweep("lerp", SHARES, losses(3.0, 2.0, 2.5))}, "math", "generalist")
    assert ways["specialist"].what == "math"
    assert ways["specialist"].loss == pytest.approx(2.5)


def waves(size: float) -> torch.Tensor:
    """[N] noise of zero mean."""
    return size * torch.linspace(-1, 1, N, dtype=torch.float64)


@pytest.mark.parametrize(
    ("gain", "noise", "want", "doubted"),
    [(0.1, 0.1, "merge", False), (0.1, 2.0, "neither", True), (0.0, 1.0, "neither", True), (-1.0, 0.1, "neither", False)],
)
def test_a_gain_must_be_sure(gain, noise, want, doubted):
    ways, _ = advised(3.0, losses(2.5, 2.2, 2.6))
    code = ways["specialist"]
    mixed = Way("half", code.losses - gain + waves(noise))
    advice, reason, notes = advise({"generalist": ways["generalist"], "specialist": code, "merge": mixed})
    assert advice == want
    assert ("Nothing dearer surely gains more" in reason) == (want == "neither")
    assert [note.startswith(f"{N} texts do not rule out that half gains over code: ") for note in notes] == [True] * doubted


def test_a_dearer_way_must_surely_gain_over_the_cheaper_one():
    ways, _ = advised(3.0, losses(2.5, 2.2, 2.6))
    merge = ways["merge"]
    a_little = {**ways, "compose": Way("own", merge.losses - 0.02 + waves(1.0))}
    advice, _, notes = advise(a_little)
    assert advice == "merge"
    assert notes[0].startswith(f"{N} texts do not rule out that own gains over {merge.what}: 0.020 nats")
    assert advise({**ways, "compose": Way("own", merge.losses - 0.02)})[0] == "compose"


def test_one_text_decides_nothing():
    ways, _ = advised(3.0, losses(2.5, 2.2, 2.6))
    one = {name: Way(way.what, way.losses[:1]) for name, way in ways.items()}
    assert advise(one)[2] == ["One text decides nothing; an interval over texts needs several."]
