"""In-family merges as rivals of a fusion: adapters on the target's own backbone, merged in weight space and tuned by response loss."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.core.parts import Parts
from asterism.core.progress import quiet, track
from asterism.core.storage import digest_of
from asterism.evaluate.answerers import OfModel
from asterism.evaluate.merges import EMR, ByRecipe
from asterism.evaluate.settings import AnswerSettings
from asterism.evaluate.tuning import GRIDS, grid
from asterism.merge.emr import Emr
from asterism.merge.methods import METHODS
from asterism.models.examples import Example
from asterism.models.library import MANIFEST, Library
from asterism.models.responses import response_losses

TARGET = "target"
"""The target's adapter in the family's library."""
MERGES = ("task_arithmetic", "ties", "dare_ties", "breadcrumbs", "della", EMR)
"""HeteroFusion's own baselines."""
_SCALES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


def family_library(root: Path, backbone: str | Path, adapters: Mapping[str, str | Path], *, device: str = "cpu") -> Library:
    """A library at `root` of a backbone and adapters of it, made anew; in float32. SettingsError for fewer than two adapters."""
    check_family(adapters)
    if (root / MANIFEST).is_file():
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    places = {name: Path(place).absolute() if Path(place).is_dir() else place for name, place in adapters.items()}
    Library.create(root, Path(backbone).absolute() if Path(backbone).is_dir() else backbone, places)
    return Library.open(root, device=device, dtype=torch.float32)


def check_family(adapters: Mapping[str, str | Path]) -> None:
    """SettingsError for fewer than two adapters."""
    if len(adapters) < 2:
        mend = "give other adapters of the target's backbone, e.g. --family news=adapters/news"
        raise SettingsError("A merge takes two adapters or more of one backbone.", met=", ".join(adapters) or "none", mend=mend)


def check_validation(examples: Sequence[Example]) -> None:
    """DataError for no examples to choose a merge's setting by."""
    if not examples:
        raise DataError("Merges are tuned on held-out examples.", met="none", mend="hold some replay examples out (held_out in the recipe)")


def merged_candidates(
    library: Library,
    validation: Sequence[Example],
    settings: AnswerSettings,
    *,
    methods: Sequence[str] = MERGES,
    state: Path,
    told: Any = None,
    keep: bool = False,
) -> list[OfModel]:
    """Each method as a candidate, with the setting of its grid (`evaluate.tuning.GRIDS`) of the least mean response loss on `validation`.

    EMR has nothing to tune and makes a model for each adapter: a task gets that of the adapter of its own name, else the target's. `state`:
    where losses of what was tried are kept until all is chosen (keep: and longer). Raises UnknownName for a method without a grid,
    DataError for no examples.
    """
    check_validation(validation)
    for method in methods:
        if method not in (EMR, "task_arithmetic") and (method not in GRIDS or method not in METHODS):
            raise UnknownName("merge of adapters with a grid", method, [*MERGES, *(name for name in GRIDS if name in METHODS)])
    rows = [[example.prompt, example.response] for example in validation]
    parts = Parts(state, digest_of(library.digests(), rows, settings.digest()))
    found = [_emr(library, told) if method == EMR else _tuned(library, method, validation, settings, parts, told) for method in methods]
    if not keep:
        parts.remove()
    return found


def _tuned(library: Library, method: str, validation: Sequence[Example], settings: AnswerSettings, parts: Parts, told: Any) -> OfModel:
    """The best of a method's grid."""

    def loss(candidate: ByRecipe) -> float:
        def made() -> dict[str, torch.Tensor]:
            read: dict[str, Any] = settings.model_dump(include={"max_length", "max_tokens", "chat"})
            with quiet():
                losses = response_losses(candidate.build(library).eval(), library.tokenizer, validation, **read)
            return {"loss": torch.stack([own.double().mean() for own in losses])}

        return float(parts.tensors(digest_of(candidate.told)[:32], made)["loss"].mean())

    tried = _grid(method)
    scored = [(loss(candidate), place) for place, candidate in enumerate(track(tried, method))]
    least, place = min(scored)
    best = replace(tried[place], validation_loss=least)
    about = best.about.replace("validation probes", "held-out replay examples").replace("all specialists", f"{len(library.names)} adapters")
    return OfModel(method, about, {"merge": best.told, "made of": told}, lambda _task: (best.build(library), library.tokenizer))


def _grid(method: str) -> list[ByRecipe]:
    if method == "task_arithmetic":
        return [ByRecipe(method, {"lambda": scale}) for (scale,) in product(_SCALES)]
    return [each for each in grid(method) if isinstance(each, ByRecipe)]


def _emr(library: Library, told: Any) -> OfModel:
    whole = cache(lambda: Emr.build(library))

    def opened(task: str):
        return whole().model(task if task in library.names else TARGET), library.tokenizer

    about = "EMR-Merging: one delta for all adapters, a mask and a factor each; a task takes the one of its name, else the target's"
    return OfModel(EMR, about, {"merge": EMR, "made of": told}, opened, each=True)
