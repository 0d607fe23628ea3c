"""The rules of the claims register: each makes, from a ladder's results, the figures and the verdict of one kind of claim.

Everything is judged on the paper's own composition and protocol (`paper`, `whole`), rung by rung; the same figure of our default
stands beside it where it tells something.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations, product

from experiments.constellation.analysis import NEW, OLD, best_lift, rank_pairings, seed_values, tracking
from experiments.constellation.ranks import Agreement, same_order
from experiments.constellation.rules import peaked, rising
from experiments.constellation.view import View, measured, rate_of
from experiments.measures import Measure, difference, over_seeds
from experiments.verdicts import Figures, Found, Outcome, Verdict, above, anywhere, below, by, everywhere, unmeasured

Rule = Callable[[View], Verdict]
Find = Callable[[View, str], Measure | None]
MERGE, SPENT = 0.93, 0.97
"""The paper's thresholds of mean collinearity (section 5.5): below, task arithmetic suffices; above, the residuals are too thin."""
SURE = 0.05
"""A rank correlation is taken for real at p up to this."""
NEARLY = 0.90
"""A text's "nearly always" and "near-perfect" are taken for this share of the probes, and "catastrophic" for one minus it: ours."""
STRONG = 0.20
"""A win rate depends "strongly" on something that moves it by this: ours; the paper's own example is 0.52."""
HARDLY = 0.0025
"""Seeds "hardly differ" within this share of their mean: ours, about two of the paper's own standard deviations (0.002 of 1.755)."""
TA = "task_arithmetic"


def won(rival: str, task: str = "cross", candidate: str = NEW, group: str = "all") -> Find:
    """A win rate as something to find at each rung."""
    return lambda view, name: view.win(name, candidate, rival, task, group=group)


def found_at(view: View, find: Find, names: list[str] | None = None) -> dict[str, Measure]:
    """Rung -> figure."""
    return measured(view, lambda name: find(view, name), names)


def limit(side: Callable[[float, Found], Mapping[str, Outcome]], bound: float, find: Find, beside: Find | None = None) -> Rule:
    """A figure against a bound at every rung; `beside` is the default's figure, told but not judged."""

    def judge(view: View) -> Verdict:
        found, ours = found_at(view, find), found_at(view, beside) if beside else {}
        return everywhere(side(bound, found), {"paper" if ours else "": found, "default": ours})

    return judge


def win_limit(side: Callable[[float, Found], Mapping[str, Outcome]], bound: float, rival: str, task: str = "cross", **named: str) -> Rule:
    """The same for a win rate of the paper's composition, with the default's beside it."""
    return limit(side, bound, won(rival, task, **named), won(rival, task, "default", **named))


def where(kept: Callable[[float], bool], told_as: str, judge: Callable[[View, list[str]], Verdict]) -> Rule:
    """A rule for the rungs whose mean collinearity is `kept`; undecided, with the collinearities, where there is none."""

    def judged(view: View) -> Verdict:
        cosines = measured(view, view.collinearity)
        names = [name for name, cosine in cosines.items() if kept(cosine.value)]
        if not names:
            return Verdict("undecided", {"mean collinearity": cosines}, f"No rung lies {told_as}.")
        return judge(view, names)

    return judged


def won_where(kept: Callable[[float], bool], told_as: str, side, rival: str, candidate: str = NEW, against: str = TA) -> Rule:
    """A win rate against one half at the rungs whose mean collinearity is `kept`."""

    def judge(view: View, names: list[str]) -> Verdict:
        found = found_at(view, won(against, candidate=candidate), names)
        ours = found_at(view, won(against, candidate="default"), names) if candidate == NEW else {}
        told_of = candidate.replace("_", " ")
        return everywhere(side(0.5, found), {f"{told_of} > {rival}": found, f"default > {rival}": ours})

    return where(kept, told_as, judge)


def new_over_old(rival: str, task: str) -> Rule:
    """Generalist space minus specialist space, in points, above zero at every rung."""

    def judge(view: View) -> Verdict:
        old, new = (found_at(view, won(rival, task, candidate)) for candidate in (OLD, NEW))
        gains = {name: difference(new[name], old[name]) for name in new if name in old}
        return everywhere(above(0.0, gains), {"old": old, "new": new, "new − old": gains})

    return judge


def rescued(view: View) -> Verdict:
    """From broken to near-perfect at some rung, single-domain probes against the generalist."""
    old, new = (found_at(view, won("generalist", "single", candidate)) for candidate in (OLD, NEW))
    names = [name for name in new if name in old]
    status = by(names, lambda n: (old[n].high < 0.5 and new[n].low >= NEARLY, old[n].low >= 0.5 or new[n].high < NEARLY))
    return anywhere(status, {"old": old, "new": new})


def every_baseline(bound: float) -> Rule:
    """The bound reached against each baseline of single-domain probes at every rung."""

    def judge(view: View) -> Verdict:
        rivals = {rival: found_at(view, won(rival, "single")) for rival in ("generalist", TA, "best_single")}
        status: dict[str, Outcome] = {
            f"{name} (> {rival.replace('_', ' ')})": s for rival, found in rivals.items() for name, s in above(bound, found).items()
        }
        return everywhere(status, {f"> {rival.replace('_', ' ')}": found for rival, found in rivals.items()})

    return judge


def finds_own(view: View) -> Verdict:
    """Retrieval by the paper's basis in generalist space minus retrieval in specialist space."""
    old, new, ours = (measured(view, lambda name, w=w: view.retrieval(name, w)) for w in ("specialist", "paper", "default"))
    gains = {name: difference(new[name], old[name]) for name in new if name in old}
    spaces = {"specialist space": old, "generalist space": new, "default's basis": ours}
    return everywhere(above(0.0, gains), spaces)


def first_in_order(view: View) -> Verdict:
    """Whether the domain that comes first in Gram-Schmidt's order leads more mixtures than its share."""
    first = view.domains[0]
    found, ours = (measured(view, lambda name, c=c: view.leads(name, first, c)) for c in (NEW, "default"))
    fair = 1 / len(view.domains)
    said = f"{first} comes first; its own probes are {fair:.0%}."
    return everywhere(by(list(found), lambda n: (found[n].low <= fair, found[n].low > fair)), {"paper": found, "default": ours}, said)


def vanishes(view: View) -> Verdict:
    """Mean cosine after Gram-Schmidt."""
    found = measured(view, lambda name: view.collinearity(name, "paper_post_mean"))
    size = {name: max(abs(measure.low), abs(measure.high)) for name, measure in found.items()}
    return everywhere(by(list(found), lambda n: (size[n] < 1e-4, size[n] > 1e-2)), {"": found})


def trend(find: Find, *, ends: bool = False, falling: bool = False) -> Rule:
    """A figure rising (falling) with scale within every family."""

    def judge(view: View) -> Verdict:
        found = found_at(view, find)
        return everywhere(rising(view, found, ends=ends, falling=falling), {"": found})

    return judge


def both_rise(view: View) -> Verdict:
    """Win rates against generalist and task arithmetic, each rising from the smallest to the largest rung of every family."""
    rivals = {"> generalist": found_at(view, won("generalist")), "> task arithmetic": found_at(view, won(TA))}
    status: dict[str, Outcome] = {
        f"{name} ({rival})": s for rival, found in rivals.items() for name, s in rising(view, found, ends=True).items()
    }
    return everywhere(status, rivals)


def inner_peak(view: View) -> Verdict:
    """The win rate against task arithmetic highest at an inner rung."""
    found, ours = found_at(view, won(TA)), found_at(view, won(TA, candidate="default"))
    return everywhere(peaked(view, found), {"paper": found, "default": ours})


def follows(kept: Callable[[float], bool], head: str, find: Find, sign: int = 1) -> Rule:
    """A rate, `head` in words, that rises (sign 1) or falls (sign -1) with collinearity over the rungs kept."""

    def judge(view: View) -> Verdict:
        cosines = measured(view, view.collinearity)
        names = [name for name, cosine in cosines.items() if kept(cosine.value)]
        found = found_at(view, find, names)
        turned = {name: Measure(sign * m.value, m.low, m.high, m.n) for name, m in found.items()}
        agreement = tracking(view, list(found), turned.get)
        figures = {"collinearity": {n: cosines[n] for n in found}, head: found}
        return _ranked(agreement, "collinearity with the rate" if sign > 0 else "collinearity with minus the rate", figures)

    return judge


def mirrors(view: View) -> Verdict:
    """Single-domain against task arithmetic ranks the rungs as cross-domain does."""
    single, cross = found_at(view, won(TA, "single")), found_at(view, won(TA))
    names = [name for name in single if name in cross]
    agreement = same_order([single[n].value for n in names], [cross[n].value for n in names])
    return _ranked(agreement, "one with the other", {"single": single, "cross": cross})


def spent_after_peak(view: View, names: list[str]) -> Verdict:
    """Rungs above the upper threshold against the best rung between the thresholds."""
    cosines, rates = measured(view, view.collinearity), found_at(view, won(TA))
    inside = [name for name in rates if MERGE <= cosines[name].value <= SPENT]
    if not inside:
        return Verdict("undecided", {"": rates}, f"No rung lies between {MERGE} and {SPENT} to compare with.")
    peak = max(inside, key=lambda name: rates[name].value)
    falls = {name: difference(rates[name], rates[peak]) for name in names if name in rates}
    return everywhere(below(0.0, falls), {"": rates, f"minus {peak}": falls})


def most_distinct(domain: str) -> Rule:
    """A domain whose mean cosine with the others is the lowest, in every seed."""

    def judge(view: View) -> Verdict:
        if domain not in view.domains:
            return unmeasured(f"no domain {domain}")
        k, found, status = view.domains.index(domain), {}, {}
        for name in view.names:
            tables = [each for seed in view.seeds if (each := view.cosines(name, seed)) is not None]
            firsts = [int(((table.sum(axis=0) - 1).argmin()) == k) for table in tables]
            means = over_seeds(float((table[k].sum() - 1) / (len(table) - 1)) for table in tables)
            if means:
                found[name] = means
                status |= by([name], lambda _, f=firsts: (all(f), not any(f)))
        return everywhere(status, {"": found})

    return judge


def pair_ranks(kept: Callable[[set[str]], bool], lowest: bool) -> Rule:
    """All pairs of domains that are `kept` rank below (or above) all others, in every seed."""

    def judge(view: View) -> Verdict:
        pairs = list(combinations(range(len(view.domains)), 2))
        inside = [pair for pair in pairs if kept({view.domains[k] for k in pair})]
        outside = [pair for pair in pairs if pair not in inside]
        if not inside or not outside:
            return unmeasured("the results have other domains")
        found, status = {}, {}
        for name in view.names:
            tables = [each for seed in view.seeds if (each := view.cosines(name, seed)) is not None]
            gaps = [
                min(t[p] for p in outside) - max(t[p] for p in inside) if lowest else min(t[p] for p in inside) - max(t[p] for p in outside)
                for t in tables
            ]
            if gap := over_seeds(gaps):
                found[name] = gap
                status |= by([name], lambda _, g=gap: (g.low > 0, g.high < 0))
        kind = "lowest of the others minus highest of these" if lowest else "this cosine minus the next"
        return everywhere(status, {kind: found})

    return judge


def ranks_agree(least: float, *, within: bool, smallest: bool = False) -> Rule:
    """Spearman of the pairs' similarities of two rungs at least `least` and beyond chance, within or across families.

    Missed where rho stays below with the mean similarities and with every seed's. `smallest`: only the smallest rung of all against
    each larger one.
    """

    def judge(view: View) -> Verdict:
        order = sorted(view.rungs, key=lambda rung: rung["parameters"])
        pairs = [(order[0]["name"], rung["name"]) for rung in order[1:]] if smallest else None
        pairings = [p for p in rank_pairings(view, pairs) if smallest or p.same_family == within]
        found = {f"{p.a} and {p.b}": p for p in pairings}
        rhos = {name: (p.agreement.rho, p.seeds.high if p.seeds else p.agreement.rho) for name, p in found.items()}
        status = by(
            list(found),
            lambda n: (rhos[n][0] >= least - 1e-9 and found[n].agreement.p <= SURE, max(rhos[n]) < least - 1e-9),
        )
        floor = f"With {len(view.domains)} domains no p is below {1 / pairings[0].agreement.relabellings:.3f}." if pairings else ""
        return everywhere(status, {"": found}, floor)

    return judge


def no_lift(view: View, names: list[str]) -> Verdict:
    """No fraction of noise on the centroids gains more than the paper's own largest null effect (2 points)."""
    found = {name: best[1] for name in names if (best := best_lift(view, name))}
    status = by(list(found), lambda n: (found[n].value <= 0.02, found[n].low > 0))
    return everywhere(status, {"best gain": found}) if found else unmeasured("no noise sweep")


def lifted(site: str) -> Callable[[View, list[str]], Verdict]:
    """Some fraction of noise at this site surely gains."""

    def judge(view: View, names: list[str]) -> Verdict:
        best = {name: lift for name in names if (lift := best_lift(view, name, site))}
        found = {f"{name} at {fraction:g}": measure for name, (fraction, measure) in best.items()}
        status = by(list(best), lambda n: (best[n][1].low > 0, all(lift.high < 0 for lift in view.lifts(n, site).values())))
        return everywhere(status, {"best gain": found}) if found else unmeasured(f"no noise on the {site}")

    return judge


def large_noise_harms(view: View, names: list[str]) -> Verdict:
    """The largest fraction loses at every rung."""
    found = {name: lifts[max(lifts)] for name in names if (lifts := view.lifts(name))}
    return everywhere(below(0.0, found), {"largest fraction minus none": found}) if found else unmeasured("no noise sweep")


def only_random_noise(view: View) -> Verdict:
    """Where noise on the centroids gains, the control of equal norm in one fixed direction gains less."""
    gains, apart = {}, {}
    for name in view.names:
        best, control = best_lift(view, name), best_lift(view, name, "control")
        if best and control:
            gains[name] = best[1]
            if best[1].low > 0:
                apart[name] = difference(view.noise(name)[best[0]], view.noise(name, "control")[control[0]])
    figures = {"best gain on the centroids": gains, "against the control's best": apart}
    if not apart:
        return Verdict("undecided", figures, "Noise gains nowhere, so there is no gain to explain.")
    return everywhere(by(list(apart), lambda n: (apart[n].low > 0, apart[n].high < 0)), figures)


def steady(candidate: str, within: float) -> Rule:
    """Cross-domain win rates of every seed within so much of their mean."""

    def judge(view: View) -> Verdict:
        rates: dict[str, dict[str, Measure]] = {"> generalist": {}, "> task arithmetic": {}}
        for name, rival in product(view.names, rates):
            values = seed_values(view, name, candidate)[rival]
            if len(values) > 1 and (rate := over_seeds(values, "share")):
                rates[rival][name] = rate
        apart = {
            name: max(max(m.high - m.value, m.value - m.low) for found in rates.values() if (m := found.get(name)))
            for name in view.names
            if any(name in found for found in rates.values())
        }
        status = by(list(apart), lambda n: (apart[n] <= within, apart[n] > within))
        said = f"Farthest seed from its mean: {100 * max(apart.values()):.1f} points." if apart else ""
        return everywhere(status, rates, said)

    return judge


def steady_loss(view: View) -> Verdict:
    """Mean composed loss of every seed within HARDLY of their mean."""
    found = {name: m for name in view.names if (m := over_seeds(seed_values(view, name, NEW)["mean loss"], "nats")) and m.n > 1}
    apart = {name: max(m.high - m.value, m.value - m.low) / m.value for name, m in found.items()}
    return everywhere(by(list(found), lambda n: (apart[n] <= HARDLY, apart[n] > HARDLY)), {"nats a token": found})


def probe_draws(view: View, names: list[str]) -> Verdict:
    """The win rate against task arithmetic moves by STRONG between draws of the index probes, as many a domain as there are.

    The gap is that of the highest and the lowest draw, which share their test probes; its interval takes them for independent.
    """
    rates: dict[str, Measure] = {}
    gaps: dict[str, Measure] = {}
    for name in names:
        rows = [row for row in view.each_seed("probes", scale=name, mixture=NEW, protocol="whole", task="cross") if "rate_ta" in row]
        most = max((row["count"] for row in rows), default=0)
        usual = [row for row in rows if row["count"] == most]
        if len(usual) > 1:
            ends = [side(usual, key=lambda row: row["rate_ta"]) for side in (max, min)]
            if rate := over_seeds((row["rate_ta"] for row in usual), "share"):
                rates[name] = rate
            gaps[name] = difference(*(rate_of(row, "rate_ta") for row in ends))
    figures = {"over draws": rates, "highest minus lowest": gaps}
    status = by(list(gaps), lambda n: (gaps[n].low >= STRONG, gaps[n].high < STRONG))
    return everywhere(status, figures) if gaps else unmeasured("no draws")


def grows_with_library(view: View) -> Verdict:
    """The win rate against task arithmetic at the largest library minus at the smallest."""
    gains: dict[str, Measure] = {}
    ends: dict[str, dict[str, Measure]] = {}
    for name in dict.fromkeys(row["scale"] for row in view.rows("sizes")):
        rates = {row["size"]: rate_of(row, "rate_ta") for row in view.pooled("sizes", scale=name) if row.get("rate_ta") is not None}
        if len(rates) > 1:
            few, many = min(rates), max(rates)
            gains[name] = difference(rates[many], rates[few])
            for size in (few, many):
                ends.setdefault(f"with {size}", {})[name] = rates[size]
    return everywhere(above(0.0, gains), {**ends, "change": gains}) if gains else unmeasured("no sizes")


def _ranked(agreement: Agreement | None, what: str, figures: Figures) -> Verdict:
    if agreement is None:
        return Verdict("undecided", figures, "Fewer than three rungs, or all alike.")
    outcome: Outcome = "held" if agreement.rho > 0 and agreement.p <= SURE else "not held" if agreement.rho <= 0 else "undecided"
    return Verdict(outcome, figures, f"Spearman of {what} over rungs: {agreement}.")
