"""How alike two specialists are along their training, and what their mean loses: from the checkpoints that they have kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asterism.constellation.settings import SimilaritySettings
from asterism.constellation.similarity import similarity
from asterism.core.errors import DataError
from asterism.core.progress import track
from asterism.core.statistics import mean_interval
from asterism.models.library import Library
from asterism.route.compat import corresponding
from asterism.route.interpolation import check_ends, live, sweep

HOME, STEM = "checkpoints", "checkpoint-"
"""Where `asterism train --keep-every` keeps them, and how they are called before their step."""


def along(
    library: Library,
    left: str,
    right: str,
    texts: Sequence[str],
    *,
    general: Sequence[str] | None = None,
    comparing: SimilaritySettings | None = None,
    max_length: int = 256,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A row for each step at which both specialists have kept a checkpoint, in order; the steps need not be the last.

    step; similar: mean CKA of corresponding layers on the texts (`target`) and on `general` ones; losses of both, and of the
    `mean` of their weights, nats a token with 95 % intervals over texts. Source: Fig. 3 of compatible specialization (arXiv:2411.02207).
    Raises DataError where they have no step in common, and what `similarity` and `sweep` raise.
    """
    check_ends(library, left, right)
    steps = kept_steps(library, (left, right))
    compared = {"target": texts} | ({"general": general} if general else {})
    rows = []
    for step, folders in track(steps.items(), "along training"):
        then = _library_of(library, folders)
        both = live(then, left), live(then, right)
        similar = {name: corresponding(similarity(*both, then.tokenizer, own, comparing)) for name, own in compared.items()}
        line = sweep(then, left, right, texts, shares=(0.0, 0.5, 1.0), max_length=max_length)["lerp"].losses.whole
        zero, mean, one = (dict(zip(("loss", "low", "high"), mean_interval(own.numpy(), seed), strict=True)) for own in line)
        rows.append({"step": step, "similar": similar, "losses": {left: one, right: zero}, "mean": mean})
    return rows


def kept_steps(library: Library, names: Sequence[str]) -> dict[int, dict[str, Path]]:
    """Step -> specialist -> its checkpoint, for the steps that all of them have kept, in order. DataError where there is none."""
    each = {name: _steps(library.folder(name)) if name in library.names else {} for name in names}
    common = sorted(set.intersection(*(set(own) for own in each.values())))
    if not common:
        met = "; ".join(f"{name}: {', '.join(map(str, sorted(own))) or 'none'}" for name, own in each.items())
        mend = "train both with `asterism train --keep-every`, at the same steps"
        raise DataError("The two have kept no checkpoints of the same step.", met=met, mend=mend)
    return {step: {name: own[step] for name, own in each.items()} for step in common}


def _steps(folder: Path) -> dict[int, Path]:
    found = (folder / HOME).glob(f"{STEM}*")
    return {int(number): path for path in found if (number := path.name.removeprefix(STEM)).isdecimal()}


def _library_of(library: Library, folders: Mapping[str, Path]) -> Library:
    """The generalist with checkpoints as its specialists; nothing is written."""
    sources = [{"name": name, "source": str(folder.resolve())} for name, folder in folders.items()]
    manifest = {"generalist": str(library.folder().resolve()), "specialists": sources}
    return Library(library.root, manifest, library.device, library.dtype, 2)
