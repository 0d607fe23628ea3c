"""Look-ups in a ladder's results.json, and the figure that comes out of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from asterism.core.errors import DataError
from experiments.measures import Measure, difference, over_seeds, share

ROW = ("scale", "seed", "protocol", "task", "group", "candidate", "rival")
SPACES = {"default": "generalist, default's basis", "paper": "generalist, paper's basis", "specialist": "specialist"}
"""Whose retrieval -> the name of its space in the results."""


def rate_of(row: Mapping[str, Any], key: str = "rate") -> Measure:
    """A win rate of a sweep's row, with the interval that stands beside it (Wilson's where none does)."""
    low, high = ("low", "high") if key == "rate" else (f"{key}_low", f"{key}_high")
    return Measure(row[key], row[low], row[high], row["n"]) if low in row else share(row[key], row["n"])


class View:
    """A ladder's results; rungs whose training diverged are left out of every look-up."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        if missing := [key for key in ("rungs", "domains", "seeds") if key not in results]:
            raise DataError("These are no results of a ladder.", met=f"no {', '.join(missing)}", mend="python -m experiments.constellation")
        self.results = results
        self.domains: list[str] = list(results["domains"])
        self.seeds: list[int] = list(results["seeds"])
        self.rungs = [rung for rung in results["rungs"] if not rung.get("diverged")]
        self.diverged = [rung for rung in results["rungs"] if rung.get("diverged")]
        self.names: list[str] = [rung["name"] for rung in self.rungs]

    @property
    def seed(self) -> Any:
        """The seed whose rows speak for all: `all` where there are several."""
        return "all" if len(self.seeds) > 1 else self.seeds[0]

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Family -> its rungs' names, smallest first."""
        found: dict[str, list[str]] = {}
        for rung in sorted(self.rungs, key=lambda rung: rung["parameters"]):
            found.setdefault(rung["family"], []).append(rung["name"])
        return found

    @property
    def grown(self) -> list[list[str]]:
        """Families of two rungs or more: those that can say something about scale."""
        return [names for names in self.families.values() if len(names) > 1]

    def family(self, rung: str) -> str:
        """The family of a rung."""
        return next(each["family"] for each in self.rungs if each["name"] == rung)

    def rows(self, section: str, **match: Any) -> list[dict[str, Any]]:
        """Rows of a section that agree with `match`, of rungs that did not diverge."""
        left_out = {rung["name"] for rung in self.diverged}
        found = [row for row in self.results.get(section) or [] if row.get("scale") not in left_out]
        return [row for row in found if all(row.get(key) == value for key, value in match.items())]

    def pooled(self, section: str, **match: Any) -> list[dict[str, Any]]:
        """The same for the seed that speaks for all."""
        found = self.rows(section, **match)
        return [row for row in found if row["seed"] == "all"] or [row for row in found if row["seed"] == self.seeds[0]]

    def each_seed(self, section: str, **match: Any) -> list[dict[str, Any]]:
        """The same, one row a seed."""
        return [row for row in self.rows(section, **match) if row["seed"] != "all"]

    @cached_property
    def _wins(self) -> dict[tuple, Mapping[str, Any]]:
        return {tuple(row[key] for key in ROW): row for row in self.rows("table")}

    @cached_property
    def _losses(self) -> dict[tuple, Mapping[str, Any]]:
        return {tuple(row[key] for key in ROW[:-1]): row for row in self.rows("losses")}

    def row(
        self, rung: str, candidate: str, rival: str, task: str = "cross", protocol: str = "whole", group: str = "all", seed: Any = None
    ) -> Mapping[str, Any] | None:
        """One row of the win rates."""
        return self._wins.get((rung, self.seed if seed is None else seed, protocol, task, group, candidate, rival))

    def win(self, rung: str, candidate: str, rival: str, *where: str, **named: Any) -> Measure | None:
        """Share of probes on which the candidate has the lower loss."""
        row = self.row(rung, candidate, rival, *where, **named)
        return Measure(row["rate"], row["low"], row["high"], row["n"]) if row else None

    def loss(self, rung: str, candidate: str, task: str = "cross", protocol: str = "whole", seed: Any = None) -> Measure | None:
        """Mean loss in nats a token."""
        row = self._losses.get((rung, self.seed if seed is None else seed, protocol, task, "all", candidate))
        return Measure(row["loss"], row["low"], row["high"], row["n"], "nats") if row else None

    def reduction(self, rung: str, candidate: str, task: str = "single", protocol: str = "whole") -> Measure | None:
        """Share by which the candidate's mean loss is below the generalist's, over seeds."""
        found = [self.row(rung, candidate, "generalist", task, protocol, seed=seed) for seed in self.seeds]
        return over_seeds([1 - row["loss"] / row["rival_loss"] for row in found if row], "share")

    def collinearity(self, rung: str, key: str = "mean") -> Measure | None:
        """Mean cosine between centroids; `paper_post_mean` and `post_mean` after the paper's and the default's orthogonalisation."""
        return over_seeds(row[key] for row in self.rows("collinearity", scale=rung) if row.get(key) is not None)

    def cosines(self, rung: str, seed: int | None = None) -> np.ndarray | None:
        """[N, N] cosines between centroids, mean over seeds or of one seed."""
        found = [row["raw"] for row in self.rows("collinearity", scale=rung) if seed in (None, row["seed"])]
        return np.mean(np.array(found, dtype=float), axis=0) if found else None

    def cosine(self, rung: str, a: str, b: str) -> Measure | None:
        """Cosine between two domains' centroids over seeds."""
        i, j = self.domains.index(a), self.domains.index(b)
        return over_seeds(row["raw"][i][j] for row in self.rows("collinearity", scale=rung))

    def mixture(self, rung: str, key: str, candidate: str = "paper", task: str = "single", group: str = "all") -> Measure | None:
        """`gini` of the coefficients or `entropy` of the weights in bits, over seeds."""
        rows = self.each_seed("mixtures", scale=rung, candidate=candidate, task=task, group=group)
        return over_seeds(row[key] for row in rows)

    def leads(self, rung: str, domain: str, candidate: str = "paper", task: str = "single") -> Measure | None:
        """Share of probes on which a specialist weighs most; mean over seeds, each probe counted once."""
        rows = self.each_seed("mixtures", scale=rung, candidate=candidate, task=task, group="all")
        return share(float(np.mean([row["first"].get(domain, 0.0) for row in rows])), rows[0]["n"]) if rows else None

    def retrieval(self, rung: str, whose: str = "paper") -> Measure | None:
        """Share of single-domain probes whose own specialist has the largest coefficient; mean over seeds, each probe counted once."""
        rows = self.each_seed("retrieval", scale=rung, space=SPACES[whose])
        return share(float(np.mean([row["top1"] for row in rows])), rows[0]["n"]) if rows else None

    def correlation(self, rung: str) -> Measure | None:
        """Pearson correlation of signal and perplexity: mean over seeds, widest of their intervals."""
        rows = self.each_seed("correlation", scale=rung)
        if not rows:
            return None
        r = float(np.mean([row["r"] for row in rows]))
        return Measure(r, min(row["low"] for row in rows), max(row["high"] for row in rows), rows[0]["n"], "plain", "pairs")

    def noise(self, rung: str, site: str = "centroids", protocol: str = "whole") -> dict[float, Measure]:
        """Fraction -> win rate of the paper's composition against task arithmetic; 0 is the one without noise, shared by all sites."""
        rows = self.pooled("noise", scale=rung, protocol=protocol)
        if not any(row["site"] == site for row in rows):
            return {}
        rows = [row for row in rows if row["site"] == site or not row["fraction"]]
        rows.sort(key=lambda row: (row["fraction"], row["site"] == site))  # of several without noise the site's own is kept
        return {float(row["fraction"]): rate_of(row) for row in rows}

    def lifts(self, rung: str, site: str = "centroids") -> dict[float, Measure]:
        """Fraction -> win rate with noise minus without, in points."""
        rates = self.noise(rung, site)
        return {fraction: difference(rate, rates[0.0]) for fraction, rate in rates.items() if fraction and 0.0 in rates}


def measured(view: View, find, names: Sequence[str] | None = None) -> dict[str, Measure]:
    """Rung -> find(rung), for the rungs where there is something to find."""
    found = {name: find(name) for name in (view.names if names is None else names)}
    return {name: measure for name, measure in found.items() if measure is not None}
