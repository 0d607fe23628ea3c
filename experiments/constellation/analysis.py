"""The paper's Tables 1-7 and section 5.6 as plain rows from a ladder's results, and what the ranks of its geometry say.

Win rates are over probes (each counted once, whatever the seeds) with Wilson intervals; cosines, Gini and entropy are means over
seeds with their range. `candidate` is whose composition is told of: `paper` for the paper's tables, `default` for ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from experiments.constellation.ranks import Agreement, pairs_of, same_order, same_pairs
from experiments.constellation.view import View, measured
from experiments.measures import Measure, difference, over_seeds
from experiments.tables import Table

Value = Measure | Agreement | str | float | int | None
PAPERS = {
    "GPT-2 124M": ("GPT-2", 0.940, 0.987), "Qwen 0.5B": ("Qwen 2.5", 0.906, 0.233), "Qwen 1.5B": ("Qwen 2.5", 0.934, 0.640),
    "Qwen 3B": ("Qwen 2.5", 0.969, 0.920), "Qwen 7B": ("Qwen 2.5", 0.973, 0.607),
}  # fmt: skip
"""The paper's own points (its Tables 1 and 4): model -> family, mean collinearity, cross-domain win rate against task arithmetic."""
OLD, NEW = "specialist_space", "paper"


def paper_tables(view: View, candidate: str = NEW, protocol: str = "whole") -> list[Table]:
    """Tables 1-7, the table of section 5.5 and section 5.6; those without a single figure are left out."""
    tables = [
        collinearities(view),
        old_and_new(view, protocol),
        single_domain(view, candidate, protocol),
        cross_domain(view, candidate, protocol),
        by_collinearity(view, candidate, protocol),
        similarities(view),
        sparsity(view, candidate),
        *(noise_sweep(view, site, protocol) for site in ("centroids", "weights", "control")),
        stability(view, protocol),
    ]
    return [table for table in tables if not table.empty]


def collinearities(view: View) -> Table:
    """Table 1: cosine between the centroids of each pair, their mean, and the mean that is left after orthogonalisation."""
    rows = [(f"{a}–{b}", *(view.cosine(name, a, b) for name in view.names)) for a, b in combinations(view.domains, 2)]
    rows += [("mean", *(view.collinearity(name) for name in view.names))]
    rows += [("mean after Gram-Schmidt (paper)", *(view.collinearity(name, "paper_post_mean") for name in view.names))]
    rows += [("mean after the default's basis", *(view.collinearity(name, "post_mean") for name in view.names))]
    return _by_rung(view, "Table 1", "Collinearity of the domains", "pair", rows, "Cosine between centroids; mean and range over seeds.")


def old_and_new(view: View, protocol: str = "whole") -> Table:
    """Table 2: indexing by the specialists' own activations (old) against the generalist's with Gram-Schmidt (new)."""
    rows: list[tuple[Value, ...]] = []
    for name in view.names:
        for told, candidate in (("old (specialist space)", OLD), ("new (generalist space)", NEW)):
            single = view.win(name, candidate, "generalist", "single", protocol)
            cross = (view.win(name, candidate, rival, "cross", protocol) for rival in ("generalist", "task_arithmetic"))
            rows.append((name, told, single, view.mixture(name, "gini", candidate), *cross))
    columns = ("rung", "method", "single > generalist", "Gini", "cross > generalist", "cross > task arithmetic")
    return Table("Table 2", "Specialist space against generalist space", columns, tuple(rows), f"Protocol {protocol}.", 2)


def single_domain(view: View, candidate: str = NEW, protocol: str = "whole") -> Table:
    """Table 3: single-domain probes, overall and by domain, with the share of the generalist's loss that is saved."""

    def won(rival: str, group: str = "all") -> list[Measure | None]:
        return [view.win(name, candidate, rival, "single", protocol, group=group) for name in view.names]

    rows: list[tuple[Value, ...]] = [
        ("> generalist", *won("generalist")),
        ("> task arithmetic", *won("task_arithmetic")),
        ("> best single (oracle)", *won("best_single")),
        ("Gini", *(view.mixture(name, "gini", candidate) for name in view.names)),
        *((f"{domain}: > generalist", *won("generalist", domain)) for domain in view.domains),
        ("loss reduction", *(view.reduction(name, candidate, "single", protocol) for name in view.names)),
    ]
    return _by_rung(view, "Table 3", f"Single-domain probes, {candidate}", "", rows, f"Protocol {protocol}.")


def cross_domain(view: View, candidate: str = NEW, protocol: str = "whole") -> Table:
    """Table 4: cross-domain probes."""
    rivals = {"generalist": "> generalist", "task_arithmetic": "> task arithmetic", "best_single": "> best single (oracle)"}
    rivals["ensemble"] = "> weighted ensemble"
    rows = [(told, *(view.win(name, candidate, rival, "cross", protocol) for name in view.names)) for rival, told in rivals.items()]
    rows += [("Gini", *(view.mixture(name, "gini", candidate, "cross") for name in view.names))]
    rows += [("entropy a node, bits", *(view.mixture(name, "entropy", candidate, "cross") for name in view.names))]
    rows += [("mean loss, nats a token", *(view.loss(name, candidate, "cross", protocol) for name in view.names))]
    return _by_rung(view, "Table 4", f"Cross-domain probes, {candidate}", "", rows, f"Protocol {protocol}.")


def by_collinearity(view: View, candidate: str = NEW, protocol: str = "whole") -> Table:
    """Section 5.5: within each family from the smallest rung up, collinearity and the win rate against task arithmetic."""
    rows: list[tuple[Value, ...]] = []
    for family, names in view.families.items():
        before = None
        for name in names:
            rate = view.win(name, candidate, "task_arithmetic", "cross", protocol)
            gain = difference(rate, before) if rate and before else None
            rows.append((name, family, view.collinearity(name), rate, gain))
            before = rate
    columns = ("rung", "family", "collinearity", "> task arithmetic", "change from the rung below")
    return Table("Section 5.5", f"Scale, collinearity and task arithmetic, {candidate}", columns, tuple(rows), f"Protocol {protocol}.", 2)


def similarities(view: View) -> Table:
    """Table 5: the cosines again, with each pair's rank in its rung (1 = most alike)."""
    ranks = {name: _ranks(view.cosines(name)) for name in view.names}
    rows = []
    for place, (a, b) in enumerate(combinations(view.domains, 2)):
        cells = [f"{m.value:.3f} ({ranks[name][place]})" if (m := view.cosine(name, a, b)) else None for name in view.names]
        rows.append((f"{a}–{b}", *cells))
    return _by_rung(view, "Table 5", "Similarities of the domains with their ranks", "pair", rows, "Mean cosine over seeds (rank).")


def sparsity(view: View, candidate: str = NEW) -> Table:
    """Table 6: Gini of the coefficients by domain (single-domain probes)."""
    groups = {**{domain: domain for domain in view.domains}, "all": "mean"}
    rows = [(told, *(view.mixture(name, "gini", candidate, "single", group) for name in view.names)) for group, told in groups.items()]
    return _by_rung(view, "Table 6", f"Sparsity (Gini) by domain, {candidate}", "domain", rows, "Mean and range over seeds.")


def noise_sweep(view: View, site: str, protocol: str = "whole") -> Table:
    """Table 7 for one site of the noise, with the best fraction's gain over none."""
    sweeps = {name: view.noise(name, site, protocol) for name in view.names}
    fractions = sorted({fraction for rates in sweeps.values() for fraction in rates})
    rows: list[tuple[Value, ...]] = [(f"{fraction:g}", *(sweeps[name].get(fraction) for name in view.names)) for fraction in fractions]
    rows.append(("best gain over none", *((best := best_lift(view, name, site)) and best[1] for name in view.names)))
    note = "Paper's composition, cross-domain probes, against task arithmetic; the best gain is of several, so its interval is too narrow."
    return _by_rung(view, "Table 7", f"Noise on the {site}" if site != "control" else "Noise: control", "fraction", rows, note)


def best_lift(view: View, rung: str, site: str = "centroids") -> tuple[float, Measure] | None:
    """(fraction, gain in points) of the fraction that gains most."""
    lifts = view.lifts(rung, site)
    return max(lifts.items(), key=lambda item: item[1].value) if lifts else None


def stability(view: View, protocol: str = "whole") -> Table:
    """Section 5.6: mean, standard deviation and range over seeds, cross-domain probes."""
    rows: list[tuple[Value, ...]] = []
    for name in view.names:
        for candidate in (OLD, NEW, "default"):
            for told, values in seed_values(view, name, candidate, protocol).items():
                if values:
                    rows.append((name, candidate, told, over_seeds(values), float(np.std(values, ddof=1)) if len(values) > 1 else None))
    columns = ("rung", "candidate", "figure", "mean (range)", "standard deviation")
    note = f"Protocol {protocol}; the paper's own figures are of specialist space."
    return Table("Section 5.6", "Over seeds", columns, tuple(rows), note, 3)


def seed_values(view: View, rung: str, candidate: str, protocol: str = "whole") -> dict[str, list[float]]:
    """Cross-domain win rates against generalist and task arithmetic, and mean loss, a value a seed."""
    rivals = {"> generalist": "generalist", "> task arithmetic": "task_arithmetic"}
    found = {
        told: [row["rate"] for seed in view.seeds if (row := view.row(rung, candidate, rival, "cross", protocol, seed=seed))]
        for told, rival in rivals.items()
    }
    losses = [view.loss(rung, candidate, "cross", protocol, seed=seed) for seed in view.seeds]
    return found | {"mean loss": [loss.value for loss in losses if loss]}


@dataclass(frozen=True)
class Pairing:
    """How two rungs agree on which domains are alike."""

    a: str
    b: str
    same_family: bool
    agreement: Agreement
    seeds: Measure | None
    """Mean and range of rho over seeds, each seed's index probes in both rungs."""

    def __str__(self) -> str:
        """`ρ = 0.94 (p = 0.042, n = 6; seeds 0.83 to 1.00)`."""
        seeds = f"; seeds {self.seeds.low:.2f} to {self.seeds.high:.2f})".replace("-", "−") if self.seeds else ")"
        return f"{str(self.agreement)[:-1]}{seeds}"


def rank_pairings(view: View, pairs: Sequence[tuple[str, str]] | None = None) -> list[Pairing]:
    """Spearman of the pairs' similarities between every two rungs (or the given ones), with the relabelling test."""
    found = []
    for a, b in combinations(view.names, 2) if pairs is None else pairs:
        first, second = view.cosines(a), view.cosines(b)
        agreement = same_pairs(first, second) if first is not None and second is not None else None
        if agreement:
            found.append(Pairing(a, b, view.family(a) == view.family(b), agreement, over_seeds(_seed_rhos(view, a, b))))
    return found


def rank_table(view: View) -> Table:
    """The pairings as a table, within families first."""
    pairings = sorted(rank_pairings(view), key=lambda pairing: not pairing.same_family)
    rows = [(f"{p.a} and {p.b}", "within" if p.same_family else "across", p.agreement, p.seeds) for p in pairings]
    p = pairings[0].agreement if pairings else None
    how = f"{'All' if p and p.exact else 'A sample of'} {p.relabellings if p else 0} relabellings of the domains; p is one-sided"
    note = f"{how} and cannot fall below {1 / p.relabellings:.3f}." if p else ""
    return Table("Ranks", "Do rungs rank the pairs of domains alike?", ("rungs", "family", "Spearman", "over seeds"), tuple(rows), note, 2)


def tracking(view: View, names: Sequence[str], find: Callable[[str], Measure | None]) -> Agreement | None:
    """Spearman, over rungs, of mean collinearity with find(rung)."""
    found = measured(view, find, names)
    both = [(c.value, m.value) for name, m in found.items() if (c := view.collinearity(name))]
    return same_order([cosine for cosine, _ in both], [value for _, value in both])


def tracking_table(view: View, protocol: str = "whole") -> Table:
    """Does the advantage over task arithmetic rise with collinearity: over all rungs and within each family."""
    sets: dict[str, list[str]] = {"all rungs": view.names, **{f"family {family}": names for family, names in view.families.items()}}
    rows: list[tuple[Value, ...]] = []
    for told, names in sets.items():
        cells = [tracking(view, names, lambda name, c=c: view.win(name, c, "task_arithmetic", "cross", protocol)) for c in (NEW, "default")]
        rows.append((told, *cells))
    note = "Spearman over rungs of mean collinearity with the cross-domain win rate against task arithmetic; p one-sided, by permutation."
    return Table("Collinearity", "Does the advantage follow collinearity?", ("rungs", NEW, "default"), tuple(rows), note)


def plain_table(name: str, title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Any section of the results as it stands: one column a key, rows of seeds pooled where they are."""
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, dict | list)))
    return Table(name, title, tuple(keys), tuple(tuple(row.get(key) for key in keys) for row in rows))


def _by_rung(view: View, name: str, title: str, head: str, rows: Sequence[tuple[Value, ...]], note: str = "") -> Table:
    return Table(name, title, (head, *view.names), tuple(rows), note)


def _ranks(cosines: np.ndarray | None) -> list[int]:
    """Rank of each pair, 1 = most alike; none where there are no cosines."""
    if cosines is None:
        return []
    pairs = pairs_of(cosines)
    return [int((pairs > pair).sum()) + 1 for pair in pairs]


def _seed_rhos(view: View, a: str, b: str) -> list[float]:
    both = [(view.cosines(a, seed), view.cosines(b, seed)) for seed in view.seeds]
    found = [same_pairs(x, y) for x, y in both if x is not None and y is not None]
    return [agreement.rho for agreement in found if agreement]
