"""A recipe carried out: its stages in sequence, each one's output the next one's target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asterism.core.storage import read_json
from asterism.fuse.alignment import Alignment
from asterism.fuse.build import fuse, show_alignment
from asterism.fuse.card import RECORD
from asterism.fuse.recipe import Recipe, Stage


def fuse_recipe(recipe: Recipe, out: str | Path, *, device: str | None = None) -> dict[str, dict[str, Any]]:
    """Carry out a recipe; what fusion.json says of every stage, by the stage's name.

    The last stage's adapter is `out`; those before it are kept in OUT.stages/NAME. Raises what `fuse` raises; carried out again, finished
    stages are not repeated and an interrupted one resumes.
    """
    target, told = recipe.adapter, {}
    for stage in recipe.stages:
        place = place_of(recipe, stage, Path(out))
        sources, options = sources_of(stage), dict(held_out=stage.held_out, chat=recipe.chat, device=device)
        fuse((recipe.model, target), sources, stage.data, place, stage.settings, stage.training, **options)  # pyright: ignore
        target, told[stage.name] = str(place), read_json(place / RECORD)
    return told


def alignments(recipe: Recipe) -> dict[str, Alignment]:
    """What every stage of a recipe would pair, by its name; every fusion leaves the target's modules as they are."""
    target = recipe.model, recipe.adapter
    return {
        stage.name: show_alignment(target, sources_of(stage), stage.settings, stage.data, stage.training, held_out=stage.held_out)
        for stage in recipe.stages
    }


def place_of(recipe: Recipe, stage: Stage, out: Path) -> Path:
    """Where a stage's adapter lies."""
    return out if stage is recipe.stages[-1] else out.with_name(f"{out.name}.stages") / stage.name


def sources_of(stage: Stage) -> dict[str, tuple[str, str]]:
    """Name -> the backbone's config and the adapter."""
    return {source.name: (source.config, source.adapter) for source in stage.sources}
