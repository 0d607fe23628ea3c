"""What a run would take and what is done of it; nothing is trained, read or fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from asterism.models.anatomy import skeleton
from asterism.models.scratch import new_config
from asterism.models.settings import TrainingSettings
from experiments.constellation.models import GENERALIST
from experiments.constellation.rung import Scratch
from experiments.route.data import EXPERTS, FILES, TARGETS
from experiments.route.ladder import BESIDE, RUNGS
from experiments.route.recipe import Recipe


def plan(recipe: Recipe, root: Path, seeds: Sequence[int], parts: Sequence[str]) -> str:
    """Sizes, steps and tokens of every training, data sets by id, and the parts of every seed that are finished."""
    config = config_of(recipe)
    size = f"{sum(shape.numel() for shape in skeleton(config).parameters()):,} parameters" if config else "of unknown size"
    start = f"{recipe.start.hidden} x {recipe.start.blocks} from nothing" if isinstance(recipe.start, Scratch) else recipe.start
    lines = [f"generalist ({start}, {size}): {_told(recipe.generalist) if recipe.generalist else 'taken as it is'}"]
    lines += [f"a seed: {count} x {what}, each {_told(settings)}" for what, count, settings in trainings(recipe)]
    total = sum(count * tokens(settings) for _, count, settings in trainings(recipe))
    lines.append(f"a seed in all: {total:,} tokens of training; {len(recipe.steps)} checkpoints on the curve")
    for name in FILES if recipe.texts else ():
        sources = "; ".join(f"{source.dataset} ({', '.join(source.columns)})" for source in recipe.texts[name])
        lines.append(f"reads {recipe.called[name]} as {name}: {sources}")
    lines.append(f"generalist: {'done' if (root / GENERALIST).exists() else 'to do'}")
    for seed in seeds:
        open_parts = [part for part in parts if not (root / f"seed-{seed}" / "measured" / f"{part}.json").exists()]
        lines.append(f"seed {seed}: to do: {', '.join(open_parts) or 'nothing'}")
    return "\n".join(lines)


def trainings(recipe: Recipe) -> list[tuple[str, int, TrainingSettings]]:
    """(what, how many, settings) of everything that a seed trains."""
    routers = len(TARGETS) * len(RUNGS) + len(BESIDE) + len(recipe.routed_steps) + 1
    tuned = len(TARGETS) * (len(recipe.rates) + 1)
    return [
        ("expert", len(EXPERTS), recipe.expert), ("long training", 2, recipe.long), ("data mix", 2, recipe.mix),
        ("router", routers, recipe.router), ("fine-tuning on a target", tuned, recipe.target),
    ]  # fmt: skip


def tokens(settings: TrainingSettings) -> int:
    """Tokens that a training reads, repeats counted."""
    return settings.steps * settings.batch_size * settings.max_length


def config_of(recipe: Recipe) -> PreTrainedConfig | None:
    """The config of all models, without the network; None where it cannot be had so."""
    if isinstance(recipe.start, Scratch):
        shape = recipe.start.model_dump(exclude={"shape", "tokenizer"})
        return new_config(recipe.start.shape, **shape, bos_token_id=0, eos_token_id=0)
    try:
        return AutoConfig.from_pretrained(recipe.start, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return AutoConfig.for_model(**recipe.config) if recipe.config else None  # pyright: ignore[reportArgumentType]


def _told(settings: TrainingSettings) -> str:
    return f"{settings.steps} steps of {settings.batch_size} x {settings.max_length} tokens ({tokens(settings):,})"
