"""What composing costs on text that needs no specialist: held-out general text, the default and its fast mode against the generalist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asterism.constellation.index import Constellation
from asterism.core.corpus import Corpus
from asterism.core.statistics import bootstrap_mean
from asterism.core.storage import read_json, write_json
from asterism.evaluate.candidates import DEFAULT, FAST
from asterism.evaluate.probes import draw_general
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.library import Library
from experiments.constellation.bench import Bench

NAMES = (DEFAULT, FAST)
ALLOWED = 0.01
"""Nats a token by which an answer to general text may be worse than the generalist's (the target)."""


def general_losses(
    library: Library, constellation: Constellation, corpus: Corpus, settings: EvaluationSettings, folder: Path
) -> dict[str, dict[str, list[float]]]:
    """{protocol: {candidate: [n] losses}} on held-out general text, `generalist` among them; kept in `folder`."""
    bench = Bench(library, draw_general(corpus, settings), settings, folder)
    kept, origin = folder / "losses.json", [bench.origin, constellation.calibration.digest(), dict(constellation.origin)]
    if kept.exists() and (found := read_json(kept))["origin"] == origin:
        return found["losses"]
    candidates = bench.candidates(constellation)
    losses = {
        protocol: {"generalist": bench.reading.generalist.loss[protocol].tolist()}
        | {name: bench.losses(candidates[name], protocol, "single").tolist() for name in NAMES}
        for protocol in settings.protocols
    }
    write_json(kept, {"origin": origin, "losses": losses})
    return losses


def general_rows(scale: str, found: Mapping[int, Mapping[str, Mapping[str, Sequence[float]]]]) -> list[dict[str, Any]]:
    """One row a seed (and "all", each text counted once), protocol and candidate: mean loss, the generalist's, and the excess."""
    rows = []
    for seed in [*found, *(["all"] if len(found) > 1 else [])]:
        chosen = list(found.values()) if seed == "all" else [found[seed]]  # pyright: ignore[reportArgumentType]
        for protocol in chosen[0]:
            own = np.array([part[protocol]["generalist"] for part in chosen])
            for name in NAMES:
                losses = np.array([part[protocol][name] for part in chosen])
                excess, low, high = bootstrap_mean((losses - own).mean(axis=0))
                told = {"loss": float(losses.mean()), "generalist_loss": float(own.mean()), "excess": excess, "low": low, "high": high}
                where = {"scale": scale, "seed": seed, "candidate": name, "protocol": protocol}
                rows.append({**where, **told, "n": own.shape[1], "allowed": ALLOWED, "met": high <= ALLOWED})
    return rows
