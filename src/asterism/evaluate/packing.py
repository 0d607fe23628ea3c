"""A reading as flat named tensors, as they are kept of an interrupted evaluation, and back."""

from __future__ import annotations

from torch import Tensor

from asterism.evaluate.reading import Reading
from asterism.evaluate.scoring import PROTOCOLS, Scores
from asterism.evaluate.settings import Protocol


def pack(reading: Reading) -> dict[str, Tensor]:
    """A reading as flat named tensors."""
    flat: dict[str, Tensor] = {}
    for who, scores in {"generalist": reading.generalist, **{f"specialist/{n}": s for n, s in reading.specialists.items()}}.items():
        for kind in ("loss", "read_loss", "fingerprint", "signature"):
            flat |= {f"{who}/{kind}/{protocol}": values for protocol, values in getattr(scores, kind).items()}
    for name, losses in reading.ensembles.items():
        flat |= {f"ensemble/{name}/loss/{protocol}": values for protocol, values in losses.items()}
    return flat


def unpack(flat: dict[str, Tensor], names: tuple[str, ...]) -> Reading:
    """The reading that `pack` flattened."""

    def table(prefix: str) -> dict[Protocol, Tensor]:
        return {protocol: flat[f"{prefix}/{protocol}"] for protocol in PROTOCOLS if f"{prefix}/{protocol}" in flat}

    def scores(who: str) -> Scores:
        return Scores(table(f"{who}/loss"), table(f"{who}/read_loss"), table(f"{who}/fingerprint"), table(f"{who}/signature"))

    voices = dict.fromkeys(key.split("/")[1] for key in flat if key.startswith("ensemble/"))
    ensembles = {name: table(f"ensemble/{name}/loss") for name in voices}
    return Reading(scores("generalist"), {name: scores(f"specialist/{name}") for name in names}, ensembles)
