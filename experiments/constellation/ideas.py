"""Ways to weigh the specialists, side by side on validation probes; the default was chosen here, on no test probe.

    python -m experiments.constellation.ideas --data ../shared/data --data CODE [--only RUNG]

Every idea gets the same reading of the same probes: each rung's first seed. Losses are in nats a token, `cost` in forward passes of one
model over the query (a backward pass counts two), what is generated costs one model for all but the ensemble.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.compose.refining import refined
from asterism.compose.settings import CompositionSettings
from asterism.constellation.calibration import Calibration
from asterism.constellation.mixture import Mixture
from asterism.core.progress import counting
from asterism.core.statistics import win_rate
from asterism.evaluate.calibrate import task_of
from asterism.evaluate.candidates import static_candidates
from asterism.evaluate.passes import score_static
from asterism.evaluate.probes import read_span
from asterism.evaluate.settings import Protocol
from experiments.commands import ended
from experiments.constellation.workshop import EVERYTHING, Row, Workshop, run

PLACE = Path(__file__).parent / "ideas.json"
PER_GROUP = 8
"""Validation probes a domain and pair, and as many general texts as of all domains."""
EMBEDDINGS, BLOCKS = "embeddings, norm and head", "blocks"

Idea = Callable[[Workshop, Protocol], list[Mixture]]


def ideas() -> Iterator[tuple[str, float, Idea, CompositionSettings | None]]:
    """(name, cost of reading a query in forward passes with N = 4 specialists, mixtures, composition or None for all blocks)."""
    plain, even = Calibration(), CompositionSettings(layers="all", node_map="tiled")

    def by(calibration: Calibration = plain, **changes: Any) -> Idea:
        return lambda shop, protocol: shop.mixtures(protocol, calibration, **changes)

    yield "nodes: coefficient x activation", 4, by(mode="nodes"), even
    yield "fast: the prior alone", 1, by(mode="fast"), EVERYTHING
    for scale in (1.0, 1.15, 1.3, 1.5):
        yield f"evidence, scale {scale:g}", 4, by(plain.changed(scale=scale)), EVERYTHING
    for temperature in (0.1, 0.15, 0.3, 0.5):
        yield f"evidence, temperature {temperature:g}", 4, by(plain.changed(temperature=temperature)), EVERYTHING
    for generalist in (0.0, 1.0):
        yield f"evidence, generalist's log prior {generalist:g}", 4, by(plain.changed(generalist=generalist)), EVERYTHING
    yield "evidence, generalist left out", 4, by(plain.changed(generalist=-1e9)), EVERYTHING
    for prior in (0.5, 1.0):
        yield f"evidence, prior {prior:g}", 4, by(plain.changed(prior=prior)), EVERYTHING
    for k in (1, 2, 4):
        yield f"evidence, top {k}", k + 1, by(top_k=k), EVERYTHING
    yield "evidence x activation, per node", 4, per_node, even
    yield "mixture likelihood by EM", 5, by_em, EVERYTHING
    yield "evidence, blocks only", 4, by(), None
    yield "evidence, last 4 blocks", 4, by(), CompositionSettings(layers=4, node_map="mean")
    for where, name in ((EMBEDDINGS, "embeddings"), (BLOCKS, "blocks")):
        for factor in (0.8, 1.2):
            yield f"evidence, {name} x {factor:g}", 4, scaled(where, factor), CompositionSettings(node_map="per_module")
    for steps in (1, 3):
        yield f"evidence, {steps} gradient step{'s' * (steps > 1)}", 4 + 3 * steps, descended(by(), steps), EVERYTHING
    yield "fast, 1 gradient step", 4, descended(by(mode="fast"), 1), EVERYTHING


def per_node(shop: Workshop, protocol: Protocol) -> list[Mixture]:
    """Evidence's shares spread over the nodes by activation magnitude (Eq. 7 with the share for the coefficient)."""
    found = []
    for row, mixture in enumerate(shop.mixtures(protocol, Calibration())):
        signatures = torch.stack([shop.reading.specialists[name].signature[protocol][row] for name in mixture.specialists])
        raw = mixture.weights * signatures / signatures.mean(dim=0, keepdim=True).clamp_min(1e-9)
        weights = raw / (raw.sum(dim=0, keepdim=True) + mixture.generalist)
        found.append(replace(mixture, weights=weights, generalist=1 - float(weights.sum(dim=0).mean())))
    return found


def by_em(shop: Workshop, protocol: Protocol, steps: int = 20) -> list[Mixture]:
    """Weights that maximise the likelihood of the tokens under the mixture of all candidates' predictions."""
    found, names = [], shop.library.names
    for row, ids in enumerate(shop.tokens):
        losses = shop.token_losses[row][:, : read_span(protocol, len(ids)).stop - 1]  # [N + 1, t]
        shares = torch.full((len(losses),), 1 / len(losses))
        for _ in range(steps):
            shares = (shares.log()[:, None] - losses).softmax(dim=0).mean(dim=1)
        own = dict(zip(names, shares[:-1].tolist(), strict=True))
        found.append(Mixture.fixed(own, shop.library.anatomy.hidden_size, generalist=float(shares[-1]), scale=Calibration().scale))
    return found


def scaled(where: str, factor: float) -> Idea:
    """Evidence with another scale on the blocks, or on everything else."""

    def mixtures(shop: Workshop, protocol: Protocol) -> list[Mixture]:
        anatomy, found = shop.library.anatomy, []
        sizes = {anatomy.module_of(name): anatomy.output_size(name) for name in anatomy.shapes if anatomy.block_of(name) is not None}
        for mixture in shop.mixtures(protocol, Calibration()):
            inner, outer = (factor, 1.0) if where == BLOCKS else (1.0, factor)
            share = mixture.weights[:, :1]
            modules = {path: (inner * share).expand(-1, out) for path, out in sizes.items()}
            found.append(replace(mixture, weights=outer * mixture.weights, modules=modules))
        return found

    return mixtures


def descended(start: Idea, steps: int) -> Idea:
    """A mixture refined by gradient steps on the query."""

    def mixtures(shop: Workshop, protocol: Protocol) -> list[Mixture]:
        first = start(shop, protocol)
        return [refined(shop.composer, m, shop.read_ids(row, protocol), steps=steps) for row, m in enumerate(first)]

    return mixtures


def rows_of(shop: Workshop, scale: str) -> Iterator[Row]:
    """One row an idea and rival: mean loss by protocol and task (one domain, two, general text), and win rates against the rivals."""
    rivals = _rivals(shop)
    everyone = list(ideas())
    with counting(f"{scale}: ideas", len(everyone)) as advance:
        for name, cost, idea, composition in everyone:
            composition = composition or EVERYTHING.changed(layers=shop.library.anatomy.n_blocks)
            losses = shop.losses({protocol: idea(shop, protocol) for protocol in shop.settings.protocols}, composition)
            yield {"scale": scale, "idea": name, "cost": cost, **_told(shop, losses, rivals)}
            advance(1)
    for name, losses in rivals.items():
        yield {"scale": scale, "idea": name, "cost": None, **_told(shop, losses, {})}


def _rivals(shop: Workshop) -> dict[str, dict[Protocol, Tensor]]:
    protocols, reading = shop.settings.protocols, shop.reading
    merges = [score_static(shop.library, c, shop.batches, len(shop.probes)).loss for c in static_candidates(shop.library, shop.settings)]
    return {
        "generalist": {p: reading.generalist.loss[p] for p in protocols},
        "task arithmetic": {p: min((m[p] for m in merges), key=lambda loss: float(loss.mean())) for p in protocols},
        "best single": {p: torch.stack([s.loss[p] for s in reading.specialists.values()]).amin(dim=0) for p in protocols},
        "logit ensemble": {p: reading.ensembles["ensemble"][p] for p in protocols},
    }


def _told(shop: Workshop, losses: dict[Protocol, Tensor], rivals: dict[str, dict[Protocol, Tensor]]) -> dict[str, Any]:
    tasks = [task_of(probe) for probe in shop.probes]
    told, means = {}, []
    for protocol, values in losses.items():
        for task in dict.fromkeys(tasks):
            key, mask = f"{protocol}/{task}", torch.tensor([own == task for own in tasks])
            means.append(float(values[mask].mean()))
            told[key] = round(means[-1], 5)
            for name, rival in rivals.items():
                told[f"{key} > {name}"] = round(win_rate(values[mask].numpy(), rival[protocol][mask].numpy())[0], 4)
    return {"mean": round(sum(means) / len(means), 5), **told}


def shown(rows: list[Row]) -> Iterable[str]:
    """A line an idea, best first: mean loss, its cost, and the loss by protocol and task."""
    for row in sorted(rows, key=lambda row: row["mean"]):
        losses = [f"{value:.3f}" for key, value in row.items() if key.endswith(("cross", "single", "general"))]
        yield f"{row['mean']:.4f}  {row['idea']:36s} cost {row['cost']}  " + "  ".join(losses)


def main() -> None:
    """Score every idea on every trained rung."""
    run(__doc__, PLACE, PER_GROUP, rows_of, shown, lambda shop: {"probes": len(shop.probes)})


if __name__ == "__main__":
    ended(main)
