"""Everyone whom a fusion is compared with in one setting, each a candidate under its own name; who was scored is not made again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from asterism.core.storage import digest_of
from asterism.evaluate.answerers import OfEnsemble
from asterism.evaluate.family import TARGET, family_library, merged_candidates
from asterism.fuse.distillation import DistillationSettings, Teacher, distil
from asterism.fuse.ensembles import KINDS
from asterism.models.starts import pretrained
from experiments.constellation.models import device
from experiments.fuse.setting import Setting, relatives
from experiments.fuse.workshop import Row, Workshop

CONTROL, CONTROL_UP, FUSED, FUSELLM, SOURCE = "control", "control_up", "fused", "fusellm", "source"


def plain(shop: Workshop, setting: Setting) -> list[Row]:
    """The target alone, and the control."""
    return told(setting, TARGET, target(shop, setting)) + told(setting, CONTROL, controlled(shop, setting))


def rivals(shop: Workshop, setting: Setting) -> list[Row]:
    """The control that trains B alone, the sources' own models, FuseLLM, in-family merges, and ensembles on fewer examples."""
    rows = told(setting, CONTROL_UP, controlled(shop, setting, up_only=True))
    for number, source in enumerate(setting.sources):
        name = SOURCE if len(setting.sources) == 1 else f"{SOURCE} {number + 1}"
        rows += told(setting, name, shop.rows(shop.model(f"alone/{source.name}", "a source's own model", source), setting.tasks))
    rows += told(setting, FUSELLM, distilled(shop, setting))
    for method in shop.recipe.merges:
        rows += told(setting, method, merged(shop, setting, method))
    for kind in KINDS:
        rows += told(setting, kind, ensembled(shop, setting, kind))
    return rows


def told(setting: Setting, candidate: str, rows: Iterable[Row]) -> list[Row]:
    """Rows under the names that they bear in a part."""
    return [{**row, "setting": setting.name, "candidate": candidate} for row in rows]


def target(shop: Workshop, setting: Setting) -> list[Row]:
    """The target's adapter as it was."""
    return shop.rows(shop.model(f"alone/{setting.target.name}", "the target's adapter as it was", setting.target), setting.tasks)


def controlled(shop: Workshop, setting: Setting, *, up_only: bool = False) -> list[Row]:
    """The target's adapter trained on the same examples without sources."""
    key = f"{CONTROL_UP if up_only else CONTROL}/{setting.replayed}"
    made = shop.model(key, "trained on the replay examples without sources", setting.target, lambda: shop.control(setting, up_only=up_only))
    return shop.rows(made, setting.tasks)


def fused(shop: Workshop, setting: Setting, candidate: str = FUSED, **changes: Any) -> list[Row]:
    """The target's adapter fused with the setting's sources, with some settings changed."""
    key = f"{FUSED}/{setting.name}/{candidate}"
    made = shop.model(key, "fused", setting.target, lambda: shop.fused(setting, candidate, changes))
    return shop.rows(made, setting.tasks)


def distilled(shop: Workshop, setting: Setting) -> list[Row]:
    """FuseLLM: what all sources and the target say of the replay examples, distilled into the target's adapter."""

    def make(out: Path) -> None:
        teachers = {source.name: Teacher([shop.origin, source.name], shop.opened(source)) for source in setting.all_sources}
        backbone, adapter = shop.place(setting.target)
        model, tokenizer = pretrained(str(backbone), dtype=torch.float32)
        training, apart = shop.training(shop.rate("control"), setting), shop.chosen(setting)
        at: Any = (model.to(device()), tokenizer)  # pyright: ignore[reportArgumentType]
        distil(at, adapter, teachers, shop.replayed(setting), out, DistillationSettings(), training, held_out=apart)

    return shop.rows(
        shop.model(f"{FUSELLM}/{setting.name}", "FuseLLM", setting.target, lambda: shop.distilled(setting, make)), setting.tasks
    )


def merged(shop: Workshop, setting: Setting, method: str) -> list[Row]:
    """An in-family merge of the target with experts on its own backbone that know what the sources know, tuned by validation examples."""
    key, known = f"{method}/{setting.name}", relatives(setting)
    if shop.known(key, setting.tasks):
        return shop.rows(shop.model(key, "", setting.target), setting.tasks)
    adapters = {TARGET: shop.expert(setting.target)} | {member.name: shop.expert(member) for member in known.values()}
    library = family_library(shop.folder / "families" / setting.name, shop.backbone(setting.target.family), adapters, device=device())
    tried = shop.folder / "families" / f"{setting.name}-{method}"
    validation = shop.chosen(setting)
    (made,) = merged_candidates(library, validation, shop.answering, methods=[method], state=tried, told=digest_of(library.digests()))
    owners = {task: member.name for member in known.values() for task in member.tasks if task not in setting.target.tasks}
    build = made.open
    candidate = replace(made, name=key, told=[shop.origin, key], open=lambda task: build(owners.get(task, TARGET)))
    return shop.rows(candidate, setting.tasks)


def ensembled(shop: Workshop, setting: Setting, kind: Any) -> list[Row]:
    """An ensemble of the target and all sources, on the first held-out examples of each task."""
    members = [setting.target, *setting.all_sources]
    voices = {member.name: shop.opened(member) for member in members}
    candidate = _Named(kind, voices, [shop.origin, kind, setting.name], f"{kind}/{setting.name}")
    return shop.rows(candidate, setting.tasks, shop.recipe.ensembled)


class _Named(OfEnsemble):
    """An ensemble under a name that tells its setting, too."""

    def __init__(self, kind: Any, voices: Any, made_of: Any, name: str) -> None:
        super().__init__(kind, voices, made_of)
        self._name = name

    @property
    def name(self) -> str:
        return self._name
