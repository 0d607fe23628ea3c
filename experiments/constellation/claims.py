"""The register: every claim of the paper and of its author's summary page that a ladder's results can test.

`judged(results)` gives each with its verdict. Texts are ours; `where` says in which text and section the claim stands. Unless a
criterion says otherwise it is judged on the paper's own composition (last four blocks, Gram-Schmidt, K = 3) with weights taken from
the text that is scored (`whole`), because that is what the paper measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.constellation.analysis import best_lift
from experiments.constellation.judging import (
    MERGE,
    NEARLY,
    SPENT,
    TA,
    both_rise,
    every_baseline,
    finds_own,
    first_in_order,
    follows,
    grows_with_library,
    inner_peak,
    large_noise_harms,
    lifted,
    limit,
    mirrors,
    most_distinct,
    new_over_old,
    no_lift,
    only_random_noise,
    pair_ranks,
    probe_draws,
    ranks_agree,
    rescued,
    spent_after_peak,
    steady,
    steady_loss,
    trend,
    vanishes,
    where,
    win_limit,
    won,
    won_where,
)
from experiments.constellation.view import View
from experiments.verdicts import Claim, Verdict, above, below

INDEX, RIVALS, SCALE = "Indexing and orthogonalisation", "Against generalist and specialists", "Against task arithmetic, and scale"
GEOMETRY, SPARSITY, NOISE, STEADY = "Geometry of the domains", "Sparsity", "Noise", "Stability"
MED_LEG = {"medical", "legal"}


def at_least(what: str, bound: str) -> str:
    """The criterion of most claims: an interval against a bound at every rung."""
    return f"Held if the lower end of {what} reaches {bound} at every rung; not held if the upper end lies below it at any."


def at_most(what: str, bound: str) -> str:
    """The same the other way round."""
    return f"Held if the upper end of {what} lies at or below {bound} at every rung; not held if the lower end lies above it at any."


def with_scale(what: str, verb: str = "rises") -> str:
    """The criterion of a trend within families."""
    back = {"rises": "falls", "falls": "rises"}[verb]
    return f"Held if {what} surely {verb} at every step up within every family; not held if it surely {back} at any."


CLAIMS = (
    Claim(
        "generalist-space", INDEX, "Indexing by the generalist's activations composes better on single-domain probes than indexing "
        "by the specialists' own.", "5.2, Table 2; summary",
        at_least("the win rate against the generalist, new minus old,", "zero"), new_over_old("generalist", "single"),
    ),
    Claim(
        "broken-to-near-perfect", INDEX, "The new index turns single-domain composition from broken (20.6 % against the generalist) to "
        "near-perfect (98.1 %).", "abstract, 5.2; summary",
        "Held if at some rung the old index's upper end lies below 50 % and the new one's lower end reaches 90 %; not held if at every "
        "rung the old one's lower end reaches 50 % or the new one's upper end stays below 90 %. (90 % is our reading of “near-perfect”, "
        "50 % of “broken”.)", rescued,
    ),
    Claim(
        "new-index-beats-merging", INDEX, "The new index raises the cross-domain win rate against task arithmetic wherever it was "
        "compared.", "5.2, Table 2", at_least("the win rate against task arithmetic, new minus old,", "zero"), new_over_old(TA, "cross"),
    ),
    Claim(
        "finds-its-own", INDEX, "A query finds its own specialist in an index of the generalist's activations, and cannot in one of the "
        "specialists'.", "3.2", at_least("the share of single-domain probes whose own specialist comes first, generalist space minus "
        "specialist space,", "zero"), finds_own,
    ),
    Claim(
        "raw-collinear", INDEX, "Raw centroids are nearly parallel: mean cosine 0.91 to 0.97.", "3.2, 5.1, Table 1; summary",
        "Held if the mean cosine is at least 0.90 with every seed at every rung; not held if it is below with every seed at any.",
        limit(above, 0.90, lambda view, name: view.collinearity(name)),
    ),
    Claim(
        "orthogonalised", INDEX, "Gram-Schmidt brings the mean cosine to about zero.", "3.2, 5.1; summary",
        "Held if it stays below 0.0001 at every rung and seed; not held if it is above 0.01 at any. (Both bounds are ours.)", vanishes,
    ),
    Claim(
        "coefficients-tell-domains", INDEX, "The coefficients on the orthogonal basis encode the query's domain directly, without a "
        "retrieval step.", "3.2, 3.3",
        at_least("the share of single-domain probes whose own domain has the largest coefficient", "50 %")
        + " (The bound is ours; one in as many as there are domains would be chance.)",
        limit(above, 0.5, lambda view, name: view.retrieval(name), lambda view, name: view.retrieval(name, "default")),
    ),
    Claim(
        "no-cross-contamination", INDEX, "Each coefficient holds the query's affinity for its own domain alone, with nothing from "
        "collinear neighbours.", "5.1",
        "Held if the domain that comes first in Gram-Schmidt's order leads no more single-domain mixtures than its equal share (lower "
        "end) at every rung; not held if it surely leads more at any.", first_in_order,
    ),
    Claim(
        "signal-tells-quality", INDEX, "Coefficient times activation norm tells how good a specialist is for the probe (the paper "
        "measures this and prints no figure).", "4.2, pass 3",
        at_most("the correlation with the specialist's perplexity", "zero") + " (Ours: any surely negative one counts.)",
        limit(below, 0.0, lambda view, name: view.correlation(name)),
    ),
    Claim(
        "entropy", INDEX, "Mixtures truly mix: the mean entropy of a node's weights is above one bit.", "3.4",
        "Held if it is above 1 bit on cross-domain probes with every seed at every rung; not held if below with every seed at any.",
        limit(above, 1.0, lambda view, name: view.mixture(name, "entropy", task="cross")),
    ),
    Claim(
        "joint-fails", INDEX, "Normalising over specialists and nodes together (Eq. 10) fails catastrophically.", "3.4",
        at_most("its cross-domain win rate against the generalist", "10 %") + " (10 % is our reading of “catastrophically”.)",
        limit(below, 1 - NEARLY, won("generalist", candidate="joint")),
    ),
    Claim(
        "cross-93", RIVALS, "On cross-domain probes the composition beats the generalist on at least 93 % at every scale.",
        "abstract, 5.4, Table 4", at_least("the win rate", "93 %"), win_limit(above, 0.93, "generalist"),
    ),
    Claim(
        "single-beats-generalist", RIVALS, "On single-domain probes it beats the generalist at every scale (64 to 98 %).", "5.3, Table 3",
        at_least("the win rate", "50 %"), win_limit(above, 0.5, "generalist", "single"),
    ),
    Claim(
        "code-95", RIVALS, "On code it beats the generalist on at least 95 % of the probes at every scale.", "5.3, Table 3",
        at_least("the win rate on code probes", "95 %"), win_limit(above, 0.95, "generalist", "single", group="code"),
    ),
    Claim(
        "loss-reduction", RIVALS, "Single-domain loss falls by 3.0 to 9.8 %.", "5.3, Table 3",
        "Held if it falls by at least 3 % with every seed at every rung; not held if by less with every seed at any.",
        limit(above, 0.03, lambda view, name: view.reduction(name, "paper"), lambda view, name: view.reduction(name, "default")),
    ),
    Claim(
        "smaller-hidden-lower", RIVALS, "A smaller hidden state gives the mixing less resolution, and so a lower single-domain win rate.",
        "5.3", "Held if the win rate surely rises from the smallest to the largest rung of every family; not held if it surely "
        "falls in any.",
        trend(won("generalist", "single"), ends=True),
    ),
    Claim(
        "any-architecture", RIVALS, "The composition works in both families without anything made for one of them.", "summary",
        at_least("the cross-domain win rate against the generalist", "50 %") + " (Our reading of “works”.)",
        win_limit(above, 0.5, "generalist"),
    ),
    Claim(
        "summary-98", RIVALS, "It wins 98.1 % over baselines (the page speaks of all; the paper means one scale, single-domain probes and "
        "the generalist alone).", "summary",
        at_least("the single-domain win rate against the generalist, task arithmetic and the best single specialist", "98.1 %"),
        every_baseline(0.981),
    ),
    Claim(
        "best-single-is-hard", RIVALS, "The best single specialist, picked with hindsight, is not beaten (0.7 to 50 %).", "5.4, Table 4",
        at_most("the cross-domain win rate against it", "50 %"), win_limit(below, 0.5, "best_single"),
    ),
    Claim(
        "gpt2-dominates", SCALE, "In the GPT-2 shape, composition wins nearly always against task arithmetic (98.7 %).", "5.4, 5.5",
        "Held if the win rate's lower end reaches 90 % at every rung of that family; not held if the upper end lies below at any. (90 % is "
        "our reading of “nearly always”.)",
        limit(above, NEARLY, lambda view, name: view.win(name, "paper", TA) if view.family(name) == "gpt2" else None),
    ),
    Claim(
        "peaked", SCALE, "Within a family the advantage over task arithmetic rises with scale to a peak and then falls.", "5.4, 5.5, 7.1",
        "Held if in every family some inner rung surely stands above both the smallest and the largest; not held if in any family every "
        "inner rung is surely below one of them.", inner_peak,
    ),
    Claim(
        "improves-with-scale", SCALE, "Composition improves with scale (the paper itself reports a fall at its largest).", "summary",
        "Held if the cross-domain win rates against generalist and task arithmetic surely rise from the smallest to the largest rung of "
        "every family; not held if one surely falls.", both_rise,
    ),
    Claim(
        "single-mirrors-cross", SCALE, "Against task arithmetic, single-domain probes mirror the cross-domain pattern over scales.", "5.3",
        "Held if Spearman over rungs is above zero with p ≤ 0.05; not held if it is zero or below.", mirrors,
    ),
    Claim(
        "follows-collinearity", SCALE, f"Up to {SPENT}, the advantage over task arithmetic follows collinearity (ρ = 1.0).", "5.5, 7.1",
        f"Held if Spearman over the rungs up to {SPENT} is above zero with p ≤ 0.05; not held if it is zero or below.",
        follows(lambda cosine: cosine <= SPENT, "paper > task arithmetic", won(TA)),
    ),
    Claim(
        "merging-interferes", SCALE, "The more collinear the domains, the more task arithmetic destroys.", "5.5 (effect 1), 7.1",
        "Held if Spearman over rungs of collinearity with task arithmetic's loss of win rate against the generalist is above zero with "
        "p ≤ 0.05; not held if it is zero or below.",
        follows(lambda cosine: True, "task arithmetic > generalist", won("generalist", candidate=TA), sign=-1),
    ),
    Claim(
        "addition-works-when-apart", SCALE, f"Below {MERGE}, task vectors hardly interfere and plain addition works.", "7.1",
        f"Held if task arithmetic's lower end against the generalist reaches 50 % at every rung below {MERGE}; not held if its upper end "
        "lies below at any.",
        won_where(lambda c: c < MERGE, f"below {MERGE}", above, "generalist", TA, "generalist"),
    ),
    Claim(
        "advice-merge", SCALE, f"Advice: below a mean collinearity of {MERGE}, task arithmetic suffices.", "5.5",
        f"Held if the composition's win rate against it has its upper end at or below 50 % at every rung below {MERGE}; not held if its "
        "lower end lies above at any.", won_where(lambda c: c < MERGE, f"below {MERGE}", below, "task arithmetic"),
    ),
    Claim(
        "advice-compose", SCALE, f"Advice: between {MERGE} and {SPENT}, the sweet spot, composition wins.", "5.5, 7.1",
        "Held if its win rate against task arithmetic has its lower end at or above 50 % at every rung there; not held if its upper end "
        "lies below at any.",
        won_where(lambda c: MERGE <= c <= SPENT, f"between {MERGE} and {SPENT}", above, "task arithmetic"),
    ),
    Claim(
        "attenuation", SCALE, f"Above {SPENT} the residuals carry too little, and the advantage falls again.", "5.5 (effect 2), 7.1",
        "Held if the win rate against task arithmetic at every rung there surely lies below that of the best rung of the sweet spot; not "
        "held if it surely lies above at any.", where(lambda c: c > SPENT, f"above {SPENT}", spent_after_peak),
    ),
    Claim(
        "grows-with-library", SCALE, "The advantage over task arithmetic should grow with the library (expected, not tested there).", "7.6",
        at_least("the win rate against it at the largest library minus at the smallest", "zero"), grows_with_library,
    ),
    Claim(
        "collinearity-rises", GEOMETRY, "Collinearity rises with scale within a family.", "5.1, Table 1",
        with_scale("the mean cosine"), trend(lambda view, name: view.collinearity(name)),
    ),
    Claim(
        "more-separable", GEOMETRY, "With scale the activation geometry becomes more separable (the paper says less).", "summary",
        "Held if the mean cosine surely falls from the smallest to the largest rung of every family; not held if it surely rises in any.",
        trend(lambda view, name: view.collinearity(name), ends=True, falling=True),
    ),
    Claim(
        "code-most-distinct", GEOMETRY, "Code is the most distinct domain at every scale.", "abstract, 6",
        "Held if its mean cosine with the others is the lowest with every seed at every rung; not held if with no seed at any.",
        most_distinct("code"),
    ),
    Claim(
        "code-pairs-lowest", GEOMETRY, "The pairs with code are the least alike, all others the most, without exception.", "6, Table 5",
        "Held if every pair with code is less alike than every other with every seed at every rung; not held if with no seed at any.",
        pair_ranks(lambda pair: "code" in pair, lowest=True),
    ),
    Claim(
        "medical-legal-closest", GEOMETRY, "Medical and legal are the most entangled pair.", "abstract, 6",
        "Held if their cosine is the highest with every seed at every rung; not held if with no seed at any.",
        pair_ranks(lambda pair: pair == MED_LEG, lowest=False),
    ),
    Claim(
        "medical-legal-988", GEOMETRY, "The cosine of medical and legal is at least 0.988.", "5.1, Table 1",
        "Held if it is so with every seed at every rung; not held if it is below with every seed at any.",
        limit(above, 0.988, lambda view, name: view.cosine(name, *sorted(MED_LEG)) if set(view.domains) >= MED_LEG else None),
    ),
    Claim(
        "same-ranks-within", GEOMETRY, "Within a family the pairs rank alike at every scale (ρ = 1.0).", "abstract, 6, Table 5",
        "Held if ρ is 1 and p ≤ 0.05 between every two rungs of a family; not held if ρ is below 1, with every seed, between any.",
        ranks_agree(1.0, within=True),
    ),
    Claim(
        "same-ranks-across", GEOMETRY, "Across families they rank nearly alike (ρ = 0.75): geometry comes from the data, not from the "
        "architecture.", "abstract, 6, 7.2",
        "Held if ρ is at least 0.75 and p ≤ 0.05 between every two rungs of different families; not held if ρ is below, with every "
        "seed, between any.",
        ranks_agree(0.75, within=False),
    ),
    Claim(
        "small-model-tells", GEOMETRY, "A small, cheap model tells which domains will be hard to separate in larger ones.", "abstract, 6",
        "Held if the smallest rung's ranks agree with every larger rung's at ρ ≥ 0.75 and p ≤ 0.05; not held if ρ is below, with every "
        "seed, with any. (The bound is ours: the paper's figure across families.)",
        ranks_agree(0.75, within=False, smallest=True),
    ),
    Claim(
        "gini-rises", SPARSITY, "The coefficients' sparsity (Gini) rises with scale within a family.", "6.1, 7.3, Table 6",
        with_scale("the Gini over single-domain probes"), trend(lambda view, name: view.mixture(name, "gini")),
    ),
    Claim(
        "code-gini-rises", SPARSITY, "Code's own sparsity rises at every step.", "6.1, 7.3, Table 6",
        with_scale("the Gini over code probes"), trend(lambda view, name: view.mixture(name, "gini", group="code")),
    ),
    Claim(
        "noise-null", NOISE, f"Up to a collinearity of {SPENT}, noise on the centroids gains nothing (2.0 points at most).", "7.4, Table 7",
        f"Held if no fraction gains more than 2 points at any rung up to {SPENT}; not held if the best gain's lower end lies above zero at "
        "any.", where(lambda c: c <= SPENT, f"at or below {SPENT}", no_lift),
    ),
    Claim(
        "noise-harms", NOISE, "There, much noise (0.1 of the mean norm) does harm.", "7.4, Table 7",
        "Held if the largest fraction surely loses at every such rung; not held if it surely gains at any.",
        where(lambda c: c <= SPENT, f"at or below {SPENT}", large_noise_harms),
    ),
    Claim(
        "noise-rescues", NOISE, f"Above {SPENT}, noise on the centroids before Gram-Schmidt rescues composition (+90.7 points at 0.02).",
        "7.4, Table 7", "Held if some fraction surely gains at every rung there; not held if every fraction surely loses at any.",
        where(lambda c: c > SPENT, f"above {SPENT}", lifted("centroids")),
    ),
    Claim(
        "noise-on-weights", NOISE, "At the largest scale, noise on the composition weights (0.02) rescues what would otherwise fail.",
        "summary",
        f"Read as above {SPENT}, where the paper's largest scale lies: held if some fraction on the weights surely gains at every rung "
        "there; not held if every fraction surely loses at any.", where(lambda c: c > SPENT, f"above {SPENT}", lifted("weights")),
    ),
    Claim(
        "noise-is-resonance", NOISE, "The gain comes from randomness in every direction (stochastic resonance), not from a mere shift "
        "of the centroids.", "7.4",
        "Judged where noise on the centroids surely gains: held if there it surely gains more than a control of equal norm in one fixed "
        "direction; not held if it surely gains less.", only_random_noise,
    ),
    Claim(
        "probe-sensitivity", NOISE, "At very high collinearity the win rate depends strongly on the draw of probes (8.7 against 60.7 %).",
        "7.4", f"Held if at every rung above {SPENT} the highest of the draws of index probes surely lies 20 points or more above the "
        "lowest; not held if surely less at any. (20 points is our reading of “strongly”.)",
        where(lambda c: c > SPENT, f"above {SPENT}", probe_draws),
    ),
    Claim(
        "seeds-2-points", STEADY, "Win rates vary by two points at most over seeds 42, 43 and 44.", "5, 5.6",
        "Held if every seed's cross-domain win rates against generalist and task arithmetic lie within 2 points of their mean at every "
        "rung; not held if one lies farther off at any.", steady("paper", 0.02),
    ),
    Claim(
        "old-method-2-points", STEADY, "The same for indexing in specialist space, on which the paper measured it.", "5.6",
        "As above, for the specialist-space composition.", steady("specialist_space", 0.02),
    ),
    Claim(
        "loss-steady", STEADY, "The composed model's mean loss hardly differs between seeds (1.753 to 1.756).", "5.6",
        "Held if every seed lies within 0.25 % of their mean at every rung; not held if one lies farther off at any. (Ours: about two of "
        "the paper's own standard deviations.)", steady_loss,
    ),
)  # fmt: skip


def judged(results: Mapping[str, Any]) -> list[tuple[Claim, Verdict]]:
    """Every claim with its verdict, in the register's order."""
    view = View(results)
    return [(claim, claim.rule(view)) for claim in CLAIMS]


def where_the_noise_goes(view: View) -> str:
    """How the two texts differ about the noise, and what each site does here."""
    told = (
        "The two texts disagree about the place of the noise. The paper (7.4) adds it once, to the domain centroids before "
        "Gram-Schmidt, with a standard deviation that is a fraction of the mean centroid norm: the index changes, and every query is "
        "measured against other axes. The summary page adds it to the composition weights, of which it says that it rescues queries near "
        "a boundary: the index stays, and each query's mixture is shaken. The page also calls the gain of 90.7 points one of aggregate "
        "performance; in the paper it is the win rate against task arithmetic of one model, in a sweep whose baseline (8.7 %) is not that "
        "of its main table (60.7 %)."
    )
    sites = []
    called_as = {"centroids": "on the centroids", "weights": "on the weights", "control": "as a control in one fixed direction"}
    for site, called in called_as.items():
        best = {name: lift for name in view.names if (lift := best_lift(view, name, site))}
        if best:
            name = max(best, key=lambda each: best[each][1].value)
            sure = sum(lift.low > 0 for _, lift in best.values())
            fraction, lift = best[name]
            sites.append(f"{called} at most {lift} (fraction {fraction:g}, {name}), surely above zero at {sure} of {len(best)} rungs")
    return f"{told} Here the best fraction of noise gains, in win rate against task arithmetic: {'; '.join(sites)}." if sites else told
