"""What a run would take and what is done of it; nothing is trained, read or fetched."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from asterism.models.anatomy import skeleton
from asterism.models.scratch import new_config
from asterism.models.settings import TrainingSettings
from experiments.constellation.rung import Scratch
from experiments.fuse.recipe import Recipe
from experiments.fuse.setting import ANCHORS, FEWER, NOISY, Member, Setting, ablations, relatives, sensitivity, settings_of


def plan(recipe: Recipe, root: Path, seeds: Sequence[int], parts: Sequence[str]) -> str:
    """Sizes, trainings and their steps, and the parts of every seed that are finished."""
    lines = []
    for name, family in recipe.families.items():
        done = "done" if (root / "backbones" / name).exists() else "to do"
        stages = ", then ".join(map(told, (recipe.backbone, recipe.copied(name), recipe.instruct)))
        own = f"{stages}, {done}" if isinstance(family.start, Scratch) else "taken as it is"
        lines.append(f"backbone {name} ({size(family.start)}, rank {family.rank}): {own}")
    own = members(recipe)
    lines.append(f"a seed: {len(own)} experts, each {told(recipe.expert)}: {', '.join(member.name for member in own)}")
    for part, runs in trainings(recipe).items():
        each = "; ".join(f"{count} x {steps(recipe, setting)} steps ({setting.name})" for setting, count in runs)
        lines.append(f"a seed: {part}: {each}, batches of {recipe.training.batch_size * recipe.training.accumulation}")
    total = sum(count * steps(recipe, setting) for runs in trainings(recipe).values() for setting, count in runs)
    lines.append(
        f"a seed in all: {total:,} steps of fusions, controls and FuseLLM; {len(recipe.merges)} merges are tuned in three settings"
    )
    for seed in seeds:
        open_parts = [part for part in parts if not (root / f"seed-{seed}" / "measured" / f"{part}.json").exists()]
        lines.append(f"seed {seed}: to do: {', '.join(open_parts) or 'nothing'}")
    return "\n".join(lines)


def members(recipe: Recipe) -> list[Member]:
    """Every expert that a seed trains."""
    found: dict[Member, None] = {}
    for setting in settings_of(recipe).values():
        merges = relatives(setting).values() if setting.name in ("single", "multi", NOISY[0]) else ()
        for member in (setting.target, *setting.all_sources, *merges):
            if member.draw is None:
                found[member] = None
    return list(found)


def trainings(recipe: Recipe) -> dict[str, list[tuple[Setting, int]]]:
    """Part -> how many adapters it trains on replay examples in each setting, those of earlier parts left out."""
    made = settings_of(recipe)
    rates = sum(map(len, recipe.rates.values()))  # the fusion and the control at every rate
    return {
        "single": [(made["single"], rates + 2)],  # the control of B alone, FuseLLM
        "multi": [(made["multi"], 4)],
        "noisy": [(made[NOISY[0]], 2), (made[NOISY[1]], 1), (made[NOISY[2]], 1)],
        "sensitivity": [(made["single"], len(sensitivity(recipe)))],
        "ablations": [(made["single"], len(ablations()))],
        "unseen": [(made["unseen"], 2)],
        "anchors": [(made[name], 2) for name in ANCHORS],
        "scarce": [(made[name], 3) for name in FEWER],
    }


def steps(recipe: Recipe, setting: Setting) -> int:
    """Steps of a training on a setting's replay examples, where every task has enough of them."""
    own = recipe.training
    if own.epochs is None:
        return own.steps
    return ceil(own.epochs * ceil(ceil(recipe.replay * len(setting.tasks) / own.batch_size) / own.accumulation))


def size(start: Scratch | str) -> str:
    """A backbone's shape and parameters."""
    if isinstance(start, str):
        return start
    shape = start.model_dump(exclude={"shape", "tokenizer"})
    config = new_config(start.shape, **shape, bos_token_id=0, eos_token_id=0)
    count = sum(own.numel() for own in skeleton(config).parameters())
    return f"{start.shape} {start.hidden} x {start.blocks}, {count:,} parameters"


def told(settings: TrainingSettings) -> str:
    """Steps and tokens at most."""
    tokens = settings.steps * settings.batch_size * settings.accumulation * settings.max_length
    return f"{settings.steps} steps of {settings.batch_size * settings.accumulation} x {settings.max_length} tokens (at most {tokens:,})"
