"""What the paper leaves open, one sweep each: noise, order of Gram-Schmidt, layers, top K, and index probes.

A sweep is a function of a `Case` that yields points: what was varied (`key`), what was measured beside the losses (`facts`), and the
losses of one protocol's and task's probes. No point compares: `gather` does, with the evaluation's own rivals on the same probes.
The cost of a sweep is given in composed passes, each of one probe under its own mixture; the reading that all sweeps share costs
1 + N passes a probe, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import torch

from asterism.constellation.basis import make_basis
from asterism.constellation.index import Constellation
from asterism.constellation.making import fingerprinted
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.store import probe_digests
from asterism.core.corpus import Corpus
from asterism.core.progress import track
from asterism.core.storage import digest_of, read_json, write_json
from asterism.evaluate.candidates import DEFAULT, FAST, NODES, PAPER, Composed, mixed_share
from asterism.evaluate.settings import Protocol
from experiments.constellation.bench import Bench, Task
from experiments.constellation.rung import DOMAINS, Rung

FIRST_SEED_ONLY = ("orders", "layers", "top_k", "probes")
"""Sweeps that run for the first seed alone; noise runs for every seed."""
FRACTIONS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
"""Noise as a share of the mean centroid norm, or of the mean weight (Table 7)."""
SITES = {"centroids": "centroids", "weights": "weights", "control": "direction"}
"""Section 7.4's site, the summary page's, and noise of the first one's norm along one shared direction."""
COUNTS = (1, 4, 10, 40)
"""Index probes a domain."""
DRAWS = 3
"""Different draws of index probes; the first is the ladder's own."""
PROTOCOLS: tuple[Protocol, ...] = ("whole", "continuation")
Point = dict[str, Any]
"""{"key": {...}, "facts": {...}, "protocol", "task", "losses": [n]}."""


@dataclass(frozen=True, eq=False)
class Case:
    """One seed of one rung, ready to be swept."""

    rung: Rung
    seed: int
    corpus: Corpus
    constellation: Constellation
    bench: Bench
    """Test probes."""
    validation: Bench
    """Probes that no table tests on: what is chosen is chosen here."""


def sweep(name: str, case: Case, folder: Path) -> list[Point]:
    """The points of one sweep, taken from `folder` where they lie there finished, of the same origin."""
    path, origin = folder / f"{name}.json", _origin(case)
    if path.exists() and (kept := read_json(path))["origin"] == origin:
        return kept["points"]
    points = list(track(SWEEPS[name](case), f"{case.rung.name}, seed {case.seed}: {name}"))
    write_json(path, {"origin": origin, "points": points})
    return points


def noise(case: Case) -> Iterator[Point]:
    """The paper's composition with noise at each site, cross-domain probes, whole.

    1 + 3 x 6 times the cross probes: without noise the sites are one.
    """
    paper = _named(case, PAPER)
    for site, setting in SITES.items():
        for fraction in FRACTIONS:
            index = _of(paper).with_settings(_of(paper).settings.changed(noise_site=setting, noise=fraction, seed=case.seed))
            key = {"site": site, "fraction": fraction}
            yield _point(case.bench, replace(paper, index=index), key, {}, "whole", "cross")


def orders(case: Case) -> Iterator[Point]:
    """The paper's composition under every order of the domains, cross-domain probes, whole: N! times the cross probes."""
    paper = _named(case, PAPER)
    for order in permutations(range(len(case.constellation.domains))):
        index = ordered(_of(paper), order)
        key = {"order": list(index.domains)}
        yield _point(case.bench, replace(paper, index=index), key, case.bench.retrieval(index), "whole", "cross")


def layers(case: Case) -> Iterator[Point]:
    """Which blocks are composed, for the default's mixture and the paper's, on cross-domain probes; the validation probes choose.

    2 mixtures x 2 protocols x about (blocks / 2 + 5) times the cross probes, test and validation.
    """
    for name in (DEFAULT, PAPER):
        candidate = _named(case, name)
        variants = {
            label: replace(candidate, composition=candidate.composition.changed(layers=chosen))
            for label, chosen in layer_choices(case.bench.library.anatomy.n_blocks).items()
        }
        validation = {label: _mean_loss(case.validation, variant) for label, variant in variants.items()}
        best = min(validation, key=validation.__getitem__)
        for label, variant in variants.items():
            share = mixed_share(case.bench.library, variant.composition)
            facts = {"share": share, "validation_loss": validation[label], "chosen": label == best}
            for protocol in PROTOCOLS:
                yield _point(case.bench, variant, {"mixture": name, "layers": label}, facts, protocol, "cross")


def top_k(case: Case) -> Iterator[Point]:
    """K from 1 to N, for the default and the paper's composition, cross-domain probes, both protocols: 2 x 2 x N times those."""
    for name in (DEFAULT, PAPER):
        candidate = _named(case, name)
        for k in range(1, len(case.constellation.domains) + 1):
            variant = replace(candidate, mixture=candidate.mixture.changed(top_k=k))
            for protocol in PROTOCOLS:
                yield _point(case.bench, variant, {"mixture": name, "top_k": k}, {}, protocol, "cross")


def probes(case: Case) -> Iterator[Point]:
    """How many index probes are needed, and how much their draw matters: cross-domain probes, whole.

    3 mixtures x 4 counts x 3 draws times the cross probes, and 3 passes of the generalist over the largest index. A smaller index
    holds the first probes of the larger one of the same draw.
    """
    for draw in range(DRAWS):
        texts = draw_index_probes(case.corpus, DOMAINS, case.rung.probes, case.seed + 1000 * draw)
        settings = case.constellation.settings
        rows = fingerprinted(case.bench.library, texts, settings, case.bench.folder / "fingerprints")
        for count in (count for count in COUNTS if count <= case.rung.probes):
            few = {domain: own[:count] for domain, own in rows.items()}
            digests = probe_digests({domain: own[:count] for domain, own in texts.items()})
            index = Constellation.from_fingerprints(case.bench.library, few, settings, digests=digests)
            made = case.bench.candidates(index.with_calibration(case.constellation.calibration))
            for name in (PAPER, NODES, FAST):
                key = {"count": count, "draw": draw, "mixture": name}
                yield _point(case.bench, made[name], key, case.bench.retrieval(_of(made[name])), "whole", "cross")


SWEEPS: dict[str, Callable[[Case], Iterator[Point]]] = {
    "noise": noise, "orders": orders, "layers": layers, "top_k": top_k, "probes": probes,
}  # fmt: skip


def due(seed: int, seeds: Sequence[int]) -> list[str]:
    """The sweeps that one of the ladder's seeds runs."""
    return [name for name in SWEEPS if name not in FIRST_SEED_ONLY or seed == seeds[0]]


def layer_choices(blocks: int) -> dict[str, Any]:
    """Label -> the setting `layers`: the last 1, 2, 4, 6, ... blocks, the first and the middle one alone, every parameter (`all`)."""
    last = {f"last {count}": count for count in sorted({1, *range(2, blocks, 2), blocks})}
    return {**last, "first": (0,), "middle": (blocks // 2,), "all": "all"}


def ordered(index: Constellation, order: Sequence[int]) -> Constellation:
    """The same index with its domains in another order, which Gram-Schmidt follows."""
    centroids = index.centroids[torch.tensor(order)]
    return replace(
        index,
        domains=tuple(index.domains[place] for place in order),
        counts=tuple(index.counts[place] for place in order),
        centroids=centroids,
        basis=make_basis(centroids, index.general_mean, index.settings),
    )


def _point(bench: Bench, candidate: Composed, key: Point, facts: Point, protocol: Protocol, task: Task) -> Point:
    return {"key": key, "facts": facts, "protocol": protocol, "task": task, "losses": bench.losses(candidate, protocol, task).tolist()}


def _mean_loss(bench: Bench, candidate: Composed) -> float:
    """Mean over protocols of the mean loss on cross-domain probes."""
    return sum(float(bench.losses(candidate, protocol, "cross").mean()) for protocol in PROTOCOLS) / len(PROTOCOLS)


def _named(case: Case, name: str) -> Composed:
    return case.bench.candidates(case.constellation)[name]


def _of(candidate: Composed) -> Constellation:
    assert candidate.index is not None, "the candidates swept here have an index"
    return candidate.index


def _origin(case: Case) -> str:
    grid = [FRACTIONS, SITES, COUNTS, DRAWS, case.rung.probes]
    index = [dict(case.constellation.origin), case.constellation.settings.digest(), case.constellation.calibration.digest()]
    return digest_of(case.bench.origin, case.validation.origin, index, case.bench.settings.digest(), grid)
