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


def advise(ways: Mapping[str, Way], seed: int = 0) -> tuple[Advice, str, list[str]]:
    """The cheapest way that nothing dearer is surely better than, why, and what the texts are too few to decide.

    Surely: by more than CLOSE on average, with a 95 % paired bootstrap interval over texts above zero. `neither` where that is the
    generalist or one specialist alone.
    """
    order = [name for name in ORDER if name in ways]
    chosen = order[0]
    for name in order[1:]:
        gain, low, _ = _gain(ways[chosen], ways[name], seed)
        if gain > CLOSE and low > 0:
            chosen = name
    ranked = sorted(ways.values(), key=lambda way: way.loss)
    told = f"On halves of texts not used to choose, in nats a token: {', '.join(f'{way.what} {way.loss:.3f}' for way in ranked)}."
    dearer = [ways[name] for name in order[order.index(chosen) + 1 :]]
    if dearer:
        told += f" Nothing dearer surely gains more than {CLOSE} over {ways[chosen].what}."
    advice = "neither" if chosen in ("generalist", "specialist") else cast(Advice, chosen)
    return advice, told, _doubts(ways[chosen], dearer, seed)


def _gain(own: Way, other: Way, seed: int) -> tuple[float, float, float]:
    return bootstrap_mean((own.losses - other.losses).numpy(), seed)


def _doubts(chosen: Way, dearer: Sequence[Way], seed: int) -> list[str]:
    """Whether the best of the dearer ways may gain more than CLOSE for all that the texts say."""
    if len(chosen.losses) < 2:
        return ["One text decides nothing; an interval over texts needs several."]
    if not dearer:
        return []
    best = min(dearer, key=lambda way: way.loss)
    gain, low, high = _gain(chosen, best, seed)
    told = f"{len(chosen.losses)} texts do not rule out that {best.what} gains over {chosen.what}"
    return [f"{told}: {gain:.3f} nats, 95 % interval {low:.3f} to {high:.3f}."] if high > CLOSE else []


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
