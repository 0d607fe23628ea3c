"""Ways to weigh the specialists, side by side on validation probes; the default was chosen here, on no test probe.

    python -m experiments.constellation.ideas --data ../shared/data --data CODE [--only RUNG]

Every idea gets the same reading of the same probes: each rung's first seed. Losses are in nats a token, `cost` in forward passes of one
model over the query (a backward pass counts two), what is generated costs one model for all but the ensemble.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asterism.compose.composer import Composer
from asterism.compose.refining import refined
from asterism.compose.settings import CompositionSettings
from asterism.constellation.calibration import Calibration
from asterism.constellation.evidence import Evidence
from asterism.constellation.index import Constellation
from asterism.constellation.mixture import Mixture
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.corpus import Probe, read_corpus
from asterism.core.progress import counting
from asterism.core.statistics import win_rate
from asterism.core.storage import read_json, write_json
from asterism.evaluate.calibrate import task_of
from asterism.evaluate.candidates import static_candidates
from asterism.evaluate.passes import score_static
from asterism.evaluate.probes import read_span, validation_probes
from asterism.evaluate.reading import Reading, read_all
from asterism.evaluate.scoring import losses_of
from asterism.evaluate.settings import EvaluationSettings, Protocol
from asterism.models.batching import batches, pad_id, tokenise
from asterism.models.library import Library
from asterism.models.likelihood import logits_of, token_losses
from experiments.constellation.models import device
from experiments.constellation.rung import DOMAINS, Rung, rungs

PLACE = Path(__file__).parent / "ideas.json"
PER_GROUP = 8
"""Validation probes a domain and pair, and as many general texts as of all domains."""
EVERYTHING = CompositionSettings(node_map="mean")
EMBEDDINGS, BLOCKS = "embeddings, norm and head", "blocks"


class Workshop:
    """One library, read once, and the validation probes that every idea is scored on."""

    def __init__(self, library: Library, constellation: Constellation, probes: list[Probe], settings: EvaluationSettings) -> None:
        self.library, self.constellation, self.probes, self.settings = library, constellation, probes, settings
        self.tokens = tokenise(library.tokenizer, [probe.text for probe in probes], settings.max_length)
        self.batches = batches(self.tokens, max_tokens=settings.max_tokens, pad=pad_id(library.tokenizer))
        self.composer = Composer(library, EVERYTHING)
        self.reading: Reading = read_all(library, self.composer, self.batches, len(probes), layer="final", ensembles=True)
        self.token_losses = self._token_losses()
        self._composers = {EVERYTHING.digest(): self.composer}

    def evidence(self, protocol: Protocol) -> Evidence:
        """What may be read, by everyone."""
        of = {name: scores.read_loss[protocol] for name, scores in self.reading.specialists.items()}
        return Evidence(self.reading.generalist.read_loss[protocol], of)

    def mixtures(self, protocol: Protocol, calibration: Calibration, **changes: Any) -> list[Mixture]:
        """The library's own mixtures under some numbers and settings."""
        signatures = {name: scores.signature[protocol] for name, scores in self.reading.specialists.items()}
        index, settings = self.constellation.with_calibration(calibration), MixtureSettings(**changes)
        return index.mixture_from(self.reading.generalist.fingerprint[protocol], signatures, settings, evidence=self.evidence(protocol))

    def read_ids(self, row: int, protocol: Protocol) -> list[int]:
        """The tokens of a probe that may be read."""
        return self.tokens[row][: read_span(protocol, len(self.tokens[row])).stop]

    def losses(self, mixtures: dict[Protocol, list[Mixture]], composition: CompositionSettings) -> dict[Protocol, Tensor]:
        """[n] mean loss of each probe under its own mixture."""
        composer = self._composers.setdefault(composition.digest(), Composer(self.library, composition))
        return {
            protocol: torch.stack([self._loss(composer, m, i, protocol) for i, m in enumerate(own)]) for protocol, own in mixtures.items()
        }

    @torch.inference_mode()
    def _loss(self, composer: Composer, mixture: Mixture, row: int, protocol: Protocol) -> Tensor:
        ids = torch.tensor([self.tokens[row]], device=self.library.device)
        return losses_of(token_losses(logits_of(composer.materialise(mixture), ids), ids).cpu(), [ids.shape[1]], protocol)[0][0]

    @torch.inference_mode()
    def _token_losses(self) -> list[Tensor]:
        """For each probe [N + 1, T - 1]: every token's loss under each specialist and, last, the generalist."""
        width, found = self.library.anatomy.hidden_size, [[] for _ in self.tokens]
        for name in (*self.library.names, None):
            model = self.composer.restore() if name is None else self.composer.materialise(Mixture.fixed({name: 1.0}, width))
            for row, own in enumerate(self.tokens):
                ids = torch.tensor([own], device=self.library.device)
                found[row].append(token_losses(logits_of(model, ids), ids)[0].cpu())
        return [torch.stack(rows) for rows in found]


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


def rows_of(shop: Workshop, scale: str) -> Iterator[dict[str, Any]]:
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


def workshop_of(rung: Rung, corpus: Any, folder: Path, per_group: int = PER_GROUP) -> Workshop:
    """The first seed's library of a trained rung, indexed as the ladder does it, on validation probes."""
    library = Library.open(folder, device=device())
    settings = EvaluationSettings(seed=42, max_length=rung.length)
    index = draw_index_probes(corpus, DOMAINS, rung.probes, 42)
    constellation = Constellation.build(library, index, IndexSettings(max_length=rung.length))
    return Workshop(library, constellation, validation_probes(corpus, DOMAINS, settings, per_group), settings)


def main() -> None:
    """Score every idea on every trained rung; finished rungs are kept in ideas.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--scale", default="lab")
    parser.add_argument("--only", action="append")
    parser.add_argument("--runs", type=Path, default=Path("runs/constellation"))
    parser.add_argument("--out", type=Path, default=PLACE)
    parser.add_argument("--per-group", type=int, default=PER_GROUP)
    given = parser.parse_args()
    corpus, kept = read_corpus(*given.data), read_json(given.out) if given.out.exists() else {"rows": []}
    for rung in rungs(given.scale):
        folder = given.runs / given.scale / rung.name / "seed-42"
        if (given.only and rung.name not in given.only) or not (folder / "library.json").exists():
            continue
        if not any(row["scale"] == rung.name for row in kept["rows"]):
            shop = workshop_of(rung, corpus, folder, given.per_group)
            kept = {"probes": len(shop.probes), "rows": [*kept["rows"], *rows_of(shop, rung.name)]}
            write_json(given.out, kept)
        for row in sorted((row for row in kept["rows"] if row["scale"] == rung.name), key=lambda row: row["mean"]):
            print(
                f"{row['mean']:.4f}  {row['idea']:36s} cost {row['cost']}  "
                + "  ".join(f"{v:.3f}" for k, v in row.items() if k.endswith(("cross", "single", "general")))
            )


if __name__ == "__main__":
    main()
