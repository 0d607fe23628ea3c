"""Choose the default composition on validation probes, which no test table ever sees.

    python -m experiments.compose.choose --data ../shared/data --data CODE

Greedy over one knob after another. Each variant is scored by mean loss over single-domain and cross-domain validation probes,
both protocols, on the first seed's library; it replaces what stands only if it is better by MARGIN. The scale is measured but not
taken: at 1 a mixture of one specialist is that specialist, which is what people expect of a default.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from asterism.compose.composer import Composer
from asterism.compose.settings import CompositionSettings
from asterism.constellation.index import Constellation
from asterism.constellation.settings import IndexSettings, MixtureSettings
from asterism.core.corpus import Corpus, Probe, read_corpus
from asterism.core.errors import AsterismError
from asterism.core.storage import write_json
from asterism.evaluate.candidates import Composed, mixtures_of
from asterism.evaluate.passes import score_composed
from asterism.evaluate.probes import draw
from asterism.evaluate.reading import read_all
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.batching import batches, pad_id, tokenise
from experiments.compose.__main__ import drawn_probes, opened
from experiments.compose.models import DOMAINS

KNOBS: dict[str, list[dict]] = {
    "basis": [{"orthogonalisation": o, "centring": c} for o in ("gram_schmidt", "lowdin", "none") for c in ("none", "general", "mean")],
    "ranking": [{"ranking": r} for r in ("signed", "absolute")],
    "layers": [{"layers": layers} for layers in (1, 4, 6, "all")],
    "top_k": [{"top_k": k} for k in (1, 2, 3, 4)],
    "node_map": [{"node_map": m} for m in ("hidden", "tiled", "mean")],
    "scale": [{"mix": "specialists"}, *({"mix": "deltas", "scale": s} for s in (0.8, 1.2, 1.4))],
}  # fmt: skip
MARGIN = 0.002
"""Nats a token; less is noise with this many probes."""
TAKEN = ("basis", "ranking", "layers", "top_k", "node_map")
START = {"orthogonalisation": "lowdin", "centring": "none", "ranking": "signed", "layers": "all", "top_k": 3}
START |= {"node_map": "tiled", "mix": "specialists", "scale": 1.0}


def main() -> None:
    """Score every variant of every knob, keep the best, write choose.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--library", type=Path, default=Path("runs/compose/lab/seed-42"))
    given = parser.parse_args()
    corpus, library = read_corpus(*given.data), opened(given.library)
    probes = validation_probes(corpus)
    settings = EvaluationSettings(max_length=256, ensembles=False)
    tokens = tokenise(library.tokenizer, [probe.text for probe in probes], settings.max_length)
    batched = batches(tokens, max_tokens=settings.max_tokens, pad=pad_id(library.tokenizer))
    constellation = Constellation.load(library.root / "constellation", library)
    everything = Composer(library, CompositionSettings(layers="all", node_map="mean"))
    reading = read_all(library, everything, batched, len(probes), layer="final", ensembles=False)
    rivals = {name: means(probes, {p: scores.loss[p] for p in settings.protocols}) for name, scores in reading.specialists.items()}
    rivals["generalist"] = means(probes, {p: reading.generalist.loss[p] for p in settings.protocols})
    best, tried = dict(START), []
    for knob, variants in KNOBS.items():
        scored = []
        for variant in variants:
            choice = best | variant
            for candidate in candidates(constellation, choice):
                losses, composer = {}, Composer(library, candidate.composition)
                for protocol in settings.protocols:
                    mixtures = mixtures_of(candidate, reading, protocol, 0)
                    losses[protocol] = score_composed(composer, candidate, mixtures, batched, protocol, settings)
                entry = {"knob": knob, **variant, **means(probes, losses)}
                scored.append((entry["mean"], variant))
                tried.append(entry)
                print(entry, flush=True)
        now = next(mean for mean, variant in scored if (best | variant) == best)
        least, better = min(scored, key=lambda pair: pair[0])
        if knob in TAKEN and least < now - MARGIN:
            best |= better
    write_json(Path(__file__).parent / "choose.json", {"probes": len(probes), "chosen": best, "tried": tried, "rivals": rivals})
    print(f"chosen: {best}")


def validation_probes(corpus: Corpus) -> list[Probe]:
    """Up to 12 held-out probes a domain and pair that the test draw left over."""
    tested = {(probe.group, probe.id) for probe in drawn_probes(corpus, "lab")}
    everyone = draw(corpus, DOMAINS, EvaluationSettings(seed=42, single_per_domain=10**6, cross_per_pair=10**6))
    groups: dict[str, list[Probe]] = {}
    for probe in everyone:
        if (probe.group, probe.id) not in tested:
            groups.setdefault(probe.group, []).append(probe)
    return [probe for members in groups.values() for probe in members[:12]]


def candidates(constellation: Constellation, choice: dict) -> Iterator[Composed]:
    """The composition of one choice; none where the settings exclude each other."""
    try:
        index = constellation.with_settings(IndexSettings(**{key: choice[key] for key in ("orthogonalisation", "centring", "ranking")}))
        composition = CompositionSettings(**{key: choice[key] for key in ("layers", "node_map", "mix", "scale")})
    except AsterismError as error:
        print(f"left out: {error}")
        return
    yield Composed("variant", composition, MixtureSettings(top_k=choice["top_k"]), index)


def means(probes: list[Probe], losses: dict) -> dict[str, float]:
    """Mean loss by protocol and task, and their mean."""
    cross = torch.tensor([probe.is_cross for probe in probes])
    found = {f"{p}/{t}": float(values[mask].mean()) for p, values in losses.items() for t, mask in (("single", ~cross), ("cross", cross))}
    return {**found, "mean": sum(found.values()) / len(found)}


if __name__ == "__main__":
    main()
