"""python docs/make_claims.py [--check]: write docs/claims.md, the claims registers, from the experiments' results, where there are any."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "claims.md"
RESULTS = ROOT / "experiments" / "constellation" / "results.json"
ROUTING = ROOT / "experiments" / "route" / "results.json"
FUSION = ROOT / "experiments" / "fuse" / "results.json"
sys.path.insert(0, str(ROOT))  # experiments/ is no installed package

from experiments.constellation.claims import judged, where_the_noise_goes  # noqa: E402
from experiments.constellation.view import View  # noqa: E402
from experiments.fuse import claims as fusing  # noqa: E402
from experiments.fuse.report import size  # noqa: E402
from experiments.fuse.view import View as Fusions  # noqa: E402
from experiments.route import claims as routing  # noqa: E402
from experiments.verdicts import Claim, Verdict, by_theme, counted  # noqa: E402

HEAD = """# The paper's claims, tested

Written by `docs/make_claims.py` from `experiments/constellation/results.json`; `make check` holds it in step. No figure and no verdict
was typed by hand: each claim has a criterion, and the criterion is computed.

Where a claim stands: a number is a section of the paper, "summary" its author's page. The claims are in our words. Unless its criterion
says otherwise, a claim is judged on the paper's own composition (last four blocks, Gram-Schmidt, K = 3) with the mixture taken from the
very text whose loss counts, as the paper does it; the figures of our default stand beside where they tell something. Win rates carry
95 % Wilson intervals, differences between them Newcombe's, both over probes, each probe counted once whatever the number of seeds; cosines,
Gini and entropy are means over seeds with their range. "Surely" means that the interval excludes zero, or that the ranges do not overlap.
"Held" and "not held" speak of the models measured here, and of no others.
"""


SECOND = """# Compatible specialization: its claims, tested

From `experiments/route/results.json`. Losses are of held-out texts, in nats a token; a gain is the mean difference between two ways' losses
text by text, each text's losses averaged over seeds first, with its 95 % bootstrap interval over texts. "Surely" means that this
interval excludes zero and no seed disagrees; where only seeds can tell (CKA), that every seed agrees, with their range beside the mean.
"""


THIRD = """# HeteroFusion: its claims, tested

From `experiments/fuse/results.json`; `where` names a place in the paper's abstract, figures or public review. Scores are F1 of extracted
items or accuracy, the mean over tasks; a gain is the difference between two candidates on the same held-out examples, marks averaged over
seeds first, with its 95 % bootstrap interval over examples. "Surely" means that this interval excludes zero and no seed disagrees; where
only seeds can tell (gates), that every seed agrees. The control is the target's adapter trained on the same examples without sources.
"""


def page(results: Mapping[str, Any], routed: Mapping[str, Any] | None = None, fused: Mapping[str, Any] | None = None) -> str:
    """The whole page; the second part where routing has been measured, the third where fusion has."""
    view, register = View(results), judged(results)
    parts = [HEAD, measured_on(view), f"**{counted(register)}.**\n"]
    for theme, lines in by_theme(register).items():
        parts += [*told(theme, lines), *([where_the_noise_goes(view), ""] if theme == "Noise" else [])]
    return "\n".join(parts + (second(routed) if routed else []) + (third(fused) if fused else []))


def second(results: Mapping[str, Any]) -> list[str]:
    """The part on routing between experts."""
    register, model = routing.judged(results), results["model"]
    size = f"{model['parameters']:,} parameters, {model['blocks']} blocks of width {model['hidden']}"
    measured = f"Measured on a generalist of {size}, and experts of seeds {', '.join(map(str, results['seeds']))}.\n"
    return [SECOND, measured, f"**{counted(register)}.**\n", *(part for each in by_theme(register).items() for part in told(*each))]


def third(results: Mapping[str, Any]) -> list[str]:
    """The part on fusing experts of different families."""
    register = fusing.judged(results)
    found = [part for each in by_theme(register).items() for part in told(*each)]
    return [THIRD, f"{size(Fusions(results))}\n", f"**{counted(register)}.**\n", *found]


def told(theme: str, lines: list[tuple[Claim, Verdict]]) -> list[str]:
    """One theme as a table."""
    parts = [f"## {theme}\n", "| claim | where | verdict | measured | criterion, and why |", "| --- | --- | --- | --- | --- |"]
    for claim, verdict in lines:
        figures = "<br>".join(verdict.measured) or "–"
        parts.append(f"| {claim.text} | {claim.where} | **{verdict.outcome}** | {figures} | {claim.criterion} *{verdict.why}* |")
    return [*parts, ""]


def measured_on(view: View) -> str:
    """The rungs, their sizes and collinearity, and those left out."""
    lines = ["| rung | family | parameters | mean cosine of the domains |", "| --- | --- | --- | --- |"]
    lines += [f"| {r['name']} | {r['family']} | {r['parameters']:,} | {view.collinearity(r['name']) or '–'} |" for r in view.rungs]
    lines += [f"| {r['name']} | {r['family']} | – | left out, training diverged: {r['diverged']} |" for r in view.diverged]
    seeds = ", ".join(map(str, view.seeds))
    return f"Measured on these rungs, seeds {seeds}:\n\n" + "\n".join(lines) + "\n"


def main() -> None:
    """Write the page, or with --check say that it is not in step."""
    if not RESULTS.exists():
        return
    routed, fused = (json.loads(path.read_text("utf-8")) if path.exists() else None for path in (ROUTING, FUSION))
    made = page(json.loads(RESULTS.read_text("utf-8")), routed, fused)
    if "--check" not in sys.argv:
        PAGE.write_text(made, "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != made:
        sys.exit("docs/claims.md is not in step with the JSON: run `python docs/make_claims.py`")


if __name__ == "__main__":
    main()
