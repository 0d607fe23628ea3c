"""The evaluation's five passes against composing and scoring one probe after another.

    python benchmarks/evaluate.py [--quick]

The rival does the same passes as a first script would: for each probe and each protocol it takes the fingerprint with one
generalist pass, the signatures with one pass a chosen specialist, composes by a sum of products, and scores every candidate
with a forward pass of its own. It keeps all models in memory and builds the static merges once. Both must agree. The rival's
time is linear in the number of probes, so it runs a quarter of them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from common import options, report
from libraries import random_library, random_texts
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.plan import Plan
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.specialist_space import specialist_space
from asterism.core.corpus import Probe
from asterism.core.progress import quiet
from asterism.evaluate.candidates import Composed, composed_candidates, derived, mixtures_of, static_candidates
from asterism.evaluate.probes import read_span, scored_span
from asterism.evaluate.reading import Reading
from asterism.evaluate.results import read_results
from asterism.evaluate.run import evaluate
from asterism.evaluate.scoring import Scores
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.batching import tokenise
from asterism.models.changes import Dense
from asterism.models.library import Library
from asterism.models.likelihood import token_losses


def main() -> None:
    """Measure, compare, print."""
    parser = options(__doc__)
    given = parser.parse_args()
    n, hidden, blocks = (8, 64, 5) if given.quick else (96, 192, 6)
    with tempfile.TemporaryDirectory() as folder, quiet():
        library = random_library(Path(folder) / "library", hidden=hidden, blocks=blocks, vocabulary=4096)
        texts = random_texts(library, n, shortest=60, longest=200, seed=1)
        names = library.names
        probes = [
            Probe(str(i), text, (names[i % 4],) if i % 2 else (names[i % 4], names[(i + 1) % 4])) for i, text in enumerate(texts)
        ]  # fmt: skip
        index = {name: random_texts(library, 4, shortest=30, longest=60, seed=2 + i) for i, name in enumerate([*names, "general"])}
        constellation, settings = Constellation.build(library, index), EvaluationSettings()
        evaluate(library, constellation, probes[:4], settings, out=Path(folder) / "warm", index_probes=index)
        start = time.perf_counter()
        evaluate(library, constellation, probes, settings, out=Path(folder) / "ours", index_probes=index)
        ours = time.perf_counter() - start
        few, space = probes[: n // 4], specialist_space(library, index, constellation.settings)
        one_by_one(library, constellation, few[:1], n, settings, space)
        start = time.perf_counter()
        theirs_losses = one_by_one(library, constellation, few, n, settings, space)
        theirs = (time.perf_counter() - start) * n / len(few)
        rows = read_results(Path(folder) / "ours")[1]
    worst = max(
        abs(row["loss"] - theirs_losses[row["candidate"], row["protocol"], row["probe"]])
        for row in rows
        if row["candidate"] != "task_arithmetic" and int(row["probe"]) < len(few)
    )
    scored = len({(row["candidate"], row["protocol"]) for row in rows})
    report(
        "evaluate",
        f"Five passes, {n} probes ({len(few)} for the rival, scaled up), {scored} candidates x protocols",
        ["way", "seconds", "probes a second"],
        [["asterism", ours, n / ours], ["one after another", theirs, n / theirs]],
        {"one_by_one_speedup": theirs / ours, "largest_difference_nats": worst},
    )
    if worst > 1e-3:
        raise SystemExit("the two ways disagree")


@torch.inference_mode()
def one_by_one(
    library: Library, constellation: Constellation, probes: list[Probe], n: int, settings: EvaluationSettings, space: Tensor
) -> dict[tuple[str, str, str], float]:
    """(candidate, protocol, probe id) -> loss, every probe by itself; random mixtures are drawn as for `n` probes."""
    tokens = tokenise(library.tokenizer, [probe.text for probe in probes], settings.max_length)
    models = {name: library.model(name) for name in library.names}
    statics = {c.name: Composer(library, c.composition).materialise(c.mixture) for c in static_candidates(library, settings)}
    composed = composed_candidates(library, constellation, settings)
    found: dict[tuple[str, str, str], float] = {}
    randoms: dict[str, list[Mixture]] = {}
    for row, (probe, own) in enumerate(zip(probes, tokens, strict=True)):
        ids = torch.tensor([own])
        for protocol in settings.protocols:
            read, scored = read_span(protocol, len(own)), scored_span(protocol, len(own))
            prefix = ids[:, : read.stop]

            def loss(logits: Tensor, ids: Tensor = ids, scored=scored) -> float:
                return float(token_losses(logits, ids)[0, scored.start - 1 : scored.stop - 1].mean())

            found["generalist", protocol, probe.id] = loss(library.model()(ids).logits)
            for name, model in models.items():
                found[f"specialist:{name}", protocol, probe.id] = loss(model(ids).logits)
            for name, model in statics.items():
                found[name, protocol, probe.id] = loss(model(ids).logits)
            known = torch.stack([token_losses(model(prefix).logits, prefix).mean() for model in models.values()])
            logits = torch.stack([model(ids).logits for model in models.values()])
            found["ensemble_uniform", protocol, probe.id] = loss(logits.mean(0))
            found["ensemble", protocol, probe.id] = loss((torch.softmax(-known, 0)[:, None, None, None] * logits).sum(0))
            own_loss = token_losses(library.model()(prefix).logits, prefix).mean()
            fingerprint = library.model()(prefix, output_hidden_states=True).hidden_states[-1][0].mean(0)
            reading = _reading(models, fingerprint, own_loss, prefix, protocol)
            for name, (_, pick) in derived(reading, constellation, protocol).items():
                best = name == "best_single"
                singles = [found[f"specialist:{name}", protocol, probe.id] for name in library.names]
                found[name, protocol, probe.id] = min(singles) if best else singles[int(pick)]
            for candidate in composed:
                reading = _reading(models, fingerprint, own_loss, prefix, protocol)  # each candidate asks the specialists anew
                if candidate.name == "random":
                    width = library.anatomy.hidden_size
                    blank = _blank(library, n, width)
                    mixture = randoms.setdefault(protocol, mixtures_of(candidate, blank, protocol, settings.seed, space))[row]
                else:
                    mixture = mixtures_of(candidate, reading, protocol, settings.seed, space)[0]
                found[candidate.name, protocol, probe.id] = loss(naive(library, candidate, mixture)(ids).logits)
    return found


def _reading(models: dict, fingerprint: Tensor, own_loss: Tensor, prefix: Tensor, protocol) -> Reading:
    specialists = {}
    for name, model in models.items():
        run = model(prefix, output_hidden_states=True)
        read = token_losses(run.logits, prefix).mean()[None]
        specialists[name] = Scores(
            {protocol: torch.zeros(1)}, {protocol: read}, {}, {protocol: run.hidden_states[-1][0].abs().mean(0)[None]}
        )
    return Reading(Scores({}, {protocol: own_loss[None]}, {protocol: fingerprint[None]}), specialists, {})


def _blank(library: Library, n: int, width: int) -> Reading:
    zeros = {p: torch.zeros(n, width) for p in ("whole", "continuation")}
    losses = {p: torch.zeros(n) for p in zeros}
    return Reading(Scores({}, losses, zeros), {name: Scores({}, losses, {}, zeros) for name in library.names}, {})


def naive(library: Library, candidate: Composed, mixture: Mixture):
    """A composed model by a plain sum of products over a copy of the generalist."""
    model = library.fresh_model()
    plan = Plan(library.anatomy, [mixture], candidate.composition, next(model.parameters()))
    axes, parameters = library.anatomy.output_axes, dict(model.named_parameters())
    for name in plan.parameters:
        terms = plan.terms(name, library.change)
        if terms is None:
            continue
        shape = [1] * parameters[name].ndim
        shape[axes[name]] = -1
        base = terms.base if isinstance(terms.base, float) else terms.base[0].view(shape)
        whole = base * parameters[name]
        for part in terms.parts:
            assert isinstance(part.change, Dense)
            whole = whole + part.weights[0].view(shape) * part.change.tensor
        parameters[name].data.copy_(whole)
    return model


if __name__ == "__main__":
    main()
