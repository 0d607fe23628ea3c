"""What an interrupted evaluation has finished: kept beside its results, reused when everything it came from is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from asterism.core.storage import read_json, read_tensors, write_json, write_tensors
from asterism.evaluate.reading import Reading
from asterism.evaluate.scoring import PROTOCOLS, Scores
from asterism.evaluate.settings import Protocol


class Parts:
    """A folder of finished tensors for one origin; another origin's parts are thrown away."""

    def __init__(self, folder: Path, origin: str) -> None:
        self.folder = folder
        mark = folder / "origin.json"
        if folder.exists() and (not mark.exists() or read_json(mark) != origin):
            shutil.rmtree(folder)
        write_json(mark, origin)

    def tensors(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The part called `name`, made now unless an earlier run has finished it."""
        path = self.folder / f"{name.replace(':', '_').replace('@', '_')}.safetensors"
        if not path.exists():
            write_tensors(path, make())
        return read_tensors(path)

    def remove(self) -> None:
        """Forget everything: the results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
