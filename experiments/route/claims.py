"""The register: every claim of compatible specialization that these results can test. Texts are ours; `where` names the section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asterism.constellation.diagnosis import CLOSE
from asterism.core.corpus import GENERAL
from experiments.route.gather import MERGING
from experiments.route.judging import (
    beats,
    counterparts,
    each_rung,
    flattens,
    grows_apart,
    neighbours,
    no_better,
    specialise,
    turns,
    valley,
)
from experiments.route.tuned import FINETUNED, MIX
from experiments.route.view import View
from experiments.verdicts import Claim, Verdict

TIME, FREEDOM = "Similarity degrades as experts specialise", "More degrees of freedom"
LAYERS, TRAINING = "Layers that are alike", "Merging against training"


def gains(what: str, over: str, place: str = "on every target") -> str:
    """The criterion of most claims."""
    return f"Held if {what} surely loses less than {over} {place}; not held if surely more on any."


CLAIMS = (
    Claim(
        "experts-specialise", TIME, "As they are fine-tuned, the experts' losses on their own tasks fall steadily.", "3, Fig. 3 (left)",
        "Held if each expert's loss on its own held-out text surely falls to the first checkpoint and never surely rises from one to "
        "the next; not held if it surely rises once.", specialise,
    ),
    Claim(
        "critical-point", TIME, "The merged model's loss on the task that needs both first falls and, past a critical point, rises again "
        "(activation interpolation).", "1, 3, Fig. 3 (left)",
        "The lowest point of the curve is chosen by texts of the adaptation set. Held if the held-out loss surely falls from the "
        "generalist to it and surely rises from it to the last checkpoint; not held if either surely does not, or the last is the lowest.",
        turns("activation"),
    ),
    Claim(
        "critical-point-weights", TIME, "The same for weights that are averaged (LERP).", "1, 3", "As above.", turns("lerp"),
    ),
    Claim(
        "critical-point-routing", TIME, "A trained router does not remove it: over late experts it loses more than over early ones.",
        "3; the paper's public logs (1.328 against 1.344)", "As above, for the full-layer router.", turns("layer"),
    ),
    Claim(
        "grow-apart-target", TIME, "The experts' representations of the task that needs both grow apart.", "1, 3, Fig. 3 (middle)",
        "Held if CKA at the middle block falls from the first checkpoint to the last with every seed, the paper's way (biased) and "
        "debiased; not held if by either it rises with every seed.", grows_apart("target"),
    ),
    Claim(
        "grow-apart-general", TIME, "So do their representations of the pretraining text.", "3, Fig. 3 (right)", "As above.",
        grows_apart(GENERAL),
    ),
    Claim(
        "u-shape-target", TIME, "Merged loss against similarity has the shape of a U: too much and too little are both worse.",
        "3, Fig. 3 (middle)",
        "Held if there is a critical point (above) and CKA there lies below the first checkpoint's and above the last's with every seed; "
        "not held if there is none, or it lies outside with every seed.", valley("target"),
    ),
    Claim("u-shape-general", TIME, "The same on the pretraining text.", "3, Fig. 3 (right)", "As above.", valley(GENERAL)),
    Claim(
        "ladder", FREEDOM, "In all tasks performance improves with every degree of freedom: interpolation, a single router, one a layer, "
        "the base model beside.", "4.1, Fig. 4",
        "Held if each of the three steps surely loses less than the one before on every target; not held if any surely loses more.",
        each_rung,
    ),
    Claim(
        "routing-beats-interpolation", FREEDOM, "Routing is more effective than static interpolation.", "2.2, 4.1, Fig. 4",
        gains("the full-layer router", "the best interpolation"), beats("layer", "interpolation"),
    ),
    Claim(
        "base-helps", FREEDOM, "The base model as one more expert improves routing.", "4.1, Fig. 4",
        gains("the router with it", "the one without"), beats("with_generalist", "layer"),
    ),
    Claim(
        "second-layer", FREEDOM, "Routing to the next layer as well brings notable gains.", "4.2, Fig. 5",
        gains("two-layer routing", "standard routing"), beats("depth2", "layer"),
    ),
    Claim(
        "third-layer", FREEDOM, "A third layer brings further improvements.", "4.2, Fig. 5",
        gains("three-layer routing", "two-layer routing"), beats("depth3", "depth2"),
    ),
    Claim(
        "plateau", FREEDOM, "These are minor: the gains flatten on all tasks.", "4.2, Fig. 5",
        "Held if the second layer's gain surely exceeds the third's on every target; not held if it surely falls short on any.", flattens,
    ),
    Claim(
        "neighbours", LAYERS, "Within a model neighbouring layers are the most alike, distant ones much less.", "4.2, 4.3, Fig. 7, 8",
        "Held if with every seed the mean CKA of neighbouring layers lies above that of layers at least half the depth apart, in every "
        "expert, on target and general text; not held if below with every seed in any.", neighbours,
    ),
    Claim(
        "counterparts", LAYERS, "Between the experts layers at the same place are the most alike, too.", "4.3, Fig. 7, 8",
        "The same for layers of the same place against those at least half the depth apart, for every target.", counterparts,
    ),
    Claim(
        "averaging-below-tuning", TRAINING, "Averaging features falls short of fine-tuning a base model for the task.", "1, 5",
        gains("the fine-tuned generalist", "the best interpolation"), beats(FINETUNED, "interpolation"),
    ),
    Claim(
        "merging-below-tuning", TRAINING, "So does the best of the routers: 1.17, 1.10 and 1.36 against 1.04, 0.91 and 1.01.",
        "5, Table 1",
        "Routers and fine-tuning read the same windows; the rung of the ladder and the rate are chosen by the same texts. "
        + gains("the fine-tuned generalist", "the best of the ladder"), beats(FINETUNED, MERGING),
    ),
    Claim(
        "data-mix", TRAINING, "Experts trained with pretraining text mixed in, meant to stay compatible, are no better to route between "
        "(1.35 against 1.30).", "3, A.4, Table 3",
        f"Held if the upper end of their gain lies below {CLOSE:g} nats; not held if the lower end lies above it.",
        no_better(MIX, "layer"),
    ),
    Claim(
        "two-layer-router", TRAINING, "A router of two layers is slightly better than a linear one (1.28 against 1.30).", "A.4, Table 3",
        gains("it", "the linear router", "on the target that needs both"), beats("two_layer", "layer", "cross"),
    ),
)  # fmt: skip


def judged(results: Mapping[str, Any]) -> list[tuple[Claim, Verdict]]:
    """Every claim with its verdict, in the register's order."""
    view = View(results)
    return [(claim, claim.rule(view)) for claim in CLAIMS]
