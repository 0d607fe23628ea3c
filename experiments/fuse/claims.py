"""The register: every claim of HeteroFusion that these results can test. Texts are ours; `where` names the place in the review page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.fuse.judging import FUSED_IN, MARGIN, RIVALS, WORSE, beats, conditioned, keeps, silenced, steady
from experiments.fuse.parts import CLEAN
from experiments.fuse.rivals import CONTROL, CONTROL_UP, FUSED, TARGET
from experiments.fuse.setting import NOISY, SHUFFLED, SINGLE
from experiments.fuse.view import View
from experiments.verdicts import Claim, Verdict

BETTER, SOURCES, ROBUST, PIECES = "Better than its rivals", "Do the sources matter?", "Noise, other families, other anchors", "Its pieces"
SCORE = "mean over tasks of F1 or accuracy"


def over(what: str, whom: str) -> str:
    """The criterion of most claims."""
    return f"Held if {what} surely scores above {whom} ({SCORE}); not held if surely below any."


def fused_beats(part: str, *rivals: str, by: Any = "score") -> Any:
    """The rule of most claims: the fused adapter in every setting of a part."""
    return beats(part, FUSED_IN[part], FUSED, rivals, by)


CLAIMS = (
    Claim(
        "gains-single", BETTER, "A source of another family makes the target better.", "abstract; heterogeneous transfer",
        over("the fused adapter", "the target alone"), fused_beats("single", TARGET),
    ),
    Claim(
        "outperforms-single", BETTER, "It consistently outperforms merging, fusion and ensemble baselines.", "abstract",
        over("the fused adapter", "each of FuseLLM, GAC, UniTE and six in-family merges"), fused_beats("single", *RIVALS),
    ),
    Claim(
        "gains-multi", BETTER, "It remains effective with several sources of different families.", "If this is right, 2",
        over("the fused adapter", "the target alone, its tasks those of all sources"), fused_beats("multi", TARGET),
    ),
    Claim(
        "outperforms-multi", BETTER, "With several families, too, it outperforms the baselines.", "abstract; multi-source fusion",
        "As above, with sources of two families.", fused_beats("multi", *RIVALS),
    ),
    Claim(
        "sources-single", SOURCES, "What it gains comes from the source: training on the same examples without one gains less.",
        "implied: not among the paper's baselines", over("the fused adapter", "the control (A and B trained, same examples and steps)"),
        fused_beats("single", CONTROL),
    ),
    Claim(
        "sources-single-loss", SOURCES, "The same by the loss of the responses.", "as above",
        "Held if the fused adapter surely loses less than the control; not held if surely more.", fused_beats("single", CONTROL, by="loss"),
    ),
    Claim(
        "sources-single-up", SOURCES, "The same against a control that, as a fusion, changes B alone.", "as above",
        over("the fused adapter", "the control that trains B alone"), fused_beats("single", CONTROL_UP),
    ),
    Claim(
        "sources-multi", SOURCES, "The same with several families.", "as above", over("the fused adapter", "the control"),
        fused_beats("multi", CONTROL),
    ),
    Claim(
        "structure", SOURCES, "Without shared structure there is no gain: sources whose rows are shuffled do not help as the real ones do.",
        "What would settle it", over("the fusion with the real source", "the one with the same source, its factors' rows in random order"),
        beats("ablations", (SINGLE,), FUSED, (SHUFFLED,)),
    ),
    Claim(
        "robust", ROBUST, "It keeps its performance when sources are noise.", "If this is right, 3; Fig. 2",
        f"Held if among irrelevant and random sources the score surely stays within {100 * MARGIN:g} points of the fusion without them; "
        "not held if it surely falls further in any setting.", keeps("noisy", NOISY, FUSED, CLEAN),
    ),
    Claim(
        "outperforms-noisy", ROBUST, "Among noise it still outperforms the baselines.", "Fig. 2",
        "As among the claims above; the baselines have the irrelevant experts, too.", beats("noisy", NOISY[:1], FUSED, RIVALS),
    ),
    Claim(
        "silenced", ROBUST, "Denoising suppresses noisy signals: the gates close before noise.", "Core claim",
        "Held if with every seed each source of noise has a smaller share of open gate entries than the real source, in every setting; "
        "not held if a larger one with every seed in any.", silenced,
    ),
    Claim(
        "unseen", ROBUST, "It generalises to a source family that nothing was chosen by.", "If this is right, 4",
        over("the fused adapter, its settings chosen with another family,", "the target alone"), fused_beats("unseen", TARGET),
    ),
    Claim(
        "unseen-control", ROBUST, "There, too, the source matters.", "as above", over("it", "the control"), fused_beats("unseen", CONTROL),
    ),
    Claim(
        "anchors", ROBUST, "It works for other targets: of another task, rank, family.", "Fig. 5",
        over("the fused adapter", "its own target alone, for every anchor"), fused_beats("anchors", TARGET),
    ),
    Claim(
        "anchors-control", ROBUST, "And the sources matter for each.", "as above", over("it", "its own control, for every anchor"),
        fused_beats("anchors", CONTROL),
    ),
    Claim(
        "alignment", PIECES, "Matching modules by function carries it: paired at random they transfer less.", "Load-bearing premise",
        over("pairing by function", "random pairing"), beats("ablations", (SINGLE,), FUSED, ("random pairing",)),
    ),
    Claim(
        "layers", PIECES, "Layers matched from the top transfer more than those of equal depth in proportion.", "method",
        over("the map from the top", "the proportional one"), beats("ablations", (SINGLE,), FUSED, ("layers proportional",)),
    ),
    Claim(
        "gate", PIECES, "The gate helps.", "conflict-aware denoising", over("the fusion", "one without gates"),
        beats("ablations", (SINGLE,), FUSED, ("no gate",)),
    ),
    Claim(
        "regulariser", PIECES, "The distribution regulariser helps.", "conflict-aware denoising", over("the fusion", "one without it"),
        beats("ablations", (SINGLE,), FUSED, ("no regulariser",)),
    ),
    Claim(
        "basis", PIECES, "Keeping the target's basis is better than changing A as well.", "Core claim; analytical part",
        over("the fusion", "one that predicts A, too"), beats("ablations", (SINGLE,), FUSED, ("A free",)),
    ),
    Claim(
        "conditioned", PIECES, "Keeping the basis makes a stable, well-conditioned transfer.", "Core claim; analytical part",
        f"Held if no slot's B has its condition number grow {WORSE:g} times, in any setting with any seed; not held if the median slot's "
        "does.", conditioned,
    ),
    Claim(
        "steady", PIECES, "It depends little on where alpha and mu_gate start.", "Fig. 4",
        f"Held if every value tried changes the score by surely less than {100 * MARGIN:g} points; not held if any surely by more.", steady,
    ),
)  # fmt: skip


def judged(results: Mapping[str, Any]) -> list[tuple[Claim, Verdict]]:
    """Every claim with its verdict, in the register's order."""
    view = View(results)
    return [(claim, claim.rule(view)) for claim in CLAIMS]
