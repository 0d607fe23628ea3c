"""What to do with two models, from what every way to use them loses: plain advice and the numbers that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from asterism.constellation.diagnosis import CLOSE
from asterism.core.statistics import bootstrap_mean, mean_interval
from asterism.route.experts import GENERALIST
from asterism.route.interpolation import Kind, Sweep
from asterism.route.scoring import TextLosses

BARRIER = 0.05
"""Nats a token above the ends' line from which weights are said not to mix. A first guess, not calibrated yet."""
SIMILAR = 0.8
"""Mean CKA of corresponding layers from which outputs are said to be of one kind, so that a gate can choose between them. A first guess."""
ORDER = ("generalist", "specialist", "merge", "compose", "route")
"""Ways to use the models, cheapest first."""

Advice = Literal["merge", "compose", "route", "neither"]


@dataclass(frozen=True, eq=False)
class Way:
    """One way to answer: chosen by the texts' first halves, scored on their second."""

    what: str
    losses: Tensor
    """[n] nats a token, of each text's second half."""

    @property
    def loss(self) -> float:
        """Its mean."""
        return float(self.losses.mean())

    def to_dict(self, seed: int = 0) -> dict[str, Any]:
        """JSON-able, with the 95 % bootstrap interval over texts; none of one text."""
        loss, low, high = mean_interval(self.losses.numpy(), seed)
        return {"what": self.what, "loss": loss, "low": low, "high": high}


def ways_of(generalist: TextLosses, sweeps: Mapping[Kind, Sweep], left: str, right: str) -> dict[str, Way]:
    """What the texts' second halves cost each way of ORDER that was measured.

    specialist: the one that is better on the first halves; merge: the point of the weights' paths that is; compose: a point for each text,
    or the generalist, by its own first half; route: the point of the activations' path, which any router can reach with gates
    that do not look at the token. `lerp` is there and holds both ends.
    """
    line = sweeps["lerp"]
    ends = [(name, line.losses[line.shares.index(share)]) for name, share in ((left, 1.0), (right, 0.0)) if name != GENERALIST]
    weights = _points([own for kind, own in sweeps.items() if kind != "activation"], left, right)
    every = TextLosses.stack([generalist, *(losses for _, losses in weights)])
    own = every.first.argmin(dim=0)  # [n]
    ways = {
        "generalist": Way("the generalist", generalist.second),
        "specialist": _fixed(ends),
        "merge": _fixed(weights),
        "compose": Way("a mixture for each text", every.second.gather(0, own[None])[0]),
    }
    return ways | ({"route": _fixed(_points([sweeps["activation"]], left, right))} if "activation" in sweeps else {})


def advise(ways: Mapping[str, Way], *, both_help: bool, barrier: float, similar: float) -> tuple[Advice, str]:
    """The cheapest way within CLOSE of the best, and why; `neither` where that is the generalist or one specialist alone.

    Then one doubt is left: if both specialists help, and only their weights do not mix (a barrier above BARRIER) while their layers are
    alike (at least SIMILAR), trained gates may join what weights cannot: route.
    """
    best = min(way.loss for way in ways.values())
    chosen = next(name for name in ORDER if name in ways and ways[name].loss <= best + CLOSE)
    ranked = sorted(ways.values(), key=lambda way: way.loss)
    told = f"On halves of texts not used to choose, in nats a token: {', '.join(f'{way.what} {way.loss:.3f}' for way in ranked)}."
    if chosen not in ("generalist", "specialist"):
        cheap = "" if ways[chosen].loss == best else f" The cheapest within {CLOSE} of the best is {ways[chosen].what}."
        return cast(Advice, chosen), told + cheap
    mixing = f"the barrier on the line between the weights is {barrier:.3f} nats, the mean CKA of corresponding layers {similar:.2f}"
    if both_help and barrier > BARRIER and similar >= SIMILAR:
        return "route", f"{told} Both specialists help and their weights do not mix, but their layers are alike: {mixing}."
    return "neither", f"{told} No mixture is better than {ways[chosen].what} by more than {CLOSE}; {mixing}."


def doubts(ways: Mapping[str, Way], advice: Advice, seed: int = 0) -> list[str]:
    """What the texts are too few to decide: whether the way advised is better than the best of the cheaper ones.

    Under `neither`: whether the best mixture is, by more than CLOSE.
    """
    if advice not in ways and advice != "neither":
        return []
    place = ORDER.index("merge" if advice == "neither" else advice)
    cheaper, dearer = ([ways[name] for name in part if name in ways] for part in (ORDER[:place], ORDER[place:]))
    rival = min(cheaper, key=lambda way: way.loss)
    if len(rival.losses) < 2:
        return ["One text decides nothing; an interval over texts needs several."]
    own = min(dearer, key=lambda way: way.loss) if advice == "neither" else ways[advice]
    gain, low, high = bootstrap_mean((rival.losses - own.losses).numpy(), seed)
    told = f"{gain:.3f} nats, 95 % interval {low:.3f} to {high:.3f}"
    if advice == "neither":
        return [f"{len(own.losses)} texts do not rule out that {own.what} gains over {rival.what}: {told}."] if high > CLOSE else []
    return [f"{len(own.losses)} texts do not decide whether it gains over {rival.what}: {told}."] if low <= 0 else []


def _points(sweeps: Sequence[Sweep], left: str, right: str) -> list[tuple[str, TextLosses]]:
    named = {"lerp": "weights", "slerp": "weights on the arc", "activation": "MLP outputs"}
    return [
        (f"{share:.0%} {left} and {1 - share:.0%} {right} ({named[own.kind]})", own.losses[place])
        for own in sweeps
        for place, share in enumerate(own.shares)
    ]


def _fixed(points: Sequence[tuple[str, TextLosses]]) -> Way:
    """The best on average over the first halves; the first of equals."""
    place = int(torch.stack([losses.first.mean() for _, losses in points]).argmin())
    return Way(points[place][0], points[place][1].second)
