"""A fusion and its rivals in one evaluation: what the recipe's target and sources allow, all made from the same replay data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.core.storage import digest_of
from asterism.evaluate.answerers import Answerer, OfEnsemble, OfModel, Opened, Task
from asterism.evaluate.answers import evaluate_answers
from asterism.evaluate.family import MERGES, TARGET, check_family, check_validation, family_library, merged_candidates
from asterism.evaluate.settings import AnswerSettings
from asterism.fuse.control import control
from asterism.fuse.distillation import DistillationSettings, Teacher, distil
from asterism.fuse.ensembles import KINDS
from asterism.fuse.recipe import Recipe, Stage
from asterism.fuse.replay import learnt_and_held_out, open_target, replay
from asterism.fuse.stages import place_of
from asterism.models.adapters import read_adapter, with_adapter
from asterism.models.digests import folder_digest
from asterism.models.examples import Example
from asterism.models.sources import folder_at
from asterism.models.starts import pretrained

FUSED, CONTROL, FUSELLM = "fused", "control", "fusellm"
RIVALS = (CONTROL, FUSELLM, *KINDS, "merges")
"""Who can be asked for beside the target and the fused adapter."""
AGAINST = (TARGET, CONTROL, FUSELLM)
"""Whom every candidate is compared with, where they are there."""


def compare(
    recipe: Recipe,
    fused: str | Path,
    tasks: Sequence[Task],
    rivals: Sequence[str] = (CONTROL,),
    settings: AnswerSettings | None = None,
    *,
    family: Mapping[str, str | Path] | None = None,
    distillation: DistillationSettings | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate a recipe's target, what it was fused to, and the rivals asked for, on tasks; the results of `evaluate_answers`.

    rivals: `control` (the target's adapter trained on the same data without sources), `fusellm`, `gac`, `unite` (all three need the
    sources' whole models), `merges` (with `family`: name -> another adapter of the target's backbone; the names of single methods, too).
    What is made lies in `out`, FUSED.rivals by default, finished or resumed when called again; the results in its folder `evaluation`.
    Examples are read by the recipe's `chat`, as the fusion did, whatever the settings say.
    Raises what `check` raises, and what making them raises.
    """
    settings = (settings or AnswerSettings()).changed(chat=recipe.chat)
    out = Path(out) if out else Path(fused).with_name(f"{Path(fused).name}.rivals")
    asked = check(recipe, tasks, rivals, family)
    target = (recipe.model, recipe.adapter)
    sources = {source.name: source for stage in recipe.stages for source in stage.sources}
    candidates: list[Answerer] = [
        _adapted(TARGET, "the target's adapter as it was", target, out, device),
        _adapted(FUSED, f"fused with {', '.join(sources)}", (recipe.model, fused), out, device),
    ]
    if CONTROL in asked:
        place = _controlled(recipe, out / CONTROL, settings, device)
        candidates.append(
            _adapted(CONTROL, "the target's adapter, trained on the same data without sources", (recipe.model, place), out, device)
        )
    if FUSELLM in asked:
        place = _distilled(recipe, out / FUSELLM, distillation or DistillationSettings(), settings, device)
        about = "FuseLLM: what the sources say, aligned by edit distance, distilled into the target's adapter"
        candidates.append(_adapted(FUSELLM, about, (recipe.model, place), out, device))
    voices = {"the target": target, **{name: (source.config, source.adapter) for name, source in sources.items()}}
    opened = {name: _opening(*place, device) for name, place in voices.items()}
    candidates += [OfEnsemble(kind, opened, [_told(*place, out) for place in voices.values()]) for kind in KINDS if kind in asked]
    if methods := [name for name in asked if name in MERGES]:
        adapters = {TARGET: folder_at(recipe.adapter), **(family or {})}
        library = family_library(out / "family", folder_at(recipe.model), adapters, device=device)
        told = digest_of(library.digests())
        options: dict[str, Any] = dict(methods=methods, state=out / ".merges", told=told, keep=True)
        candidates += merged_candidates(library, _held_out(recipe), settings, **options)
    return evaluate_answers(candidates, tasks, settings, out=out / "evaluation", rivals=AGAINST)


def check(recipe: Recipe, tasks: Sequence[Task], rivals: Sequence[str], family: Mapping[str, str | Path] | None = None) -> list[str]:
    """The rivals by name, `merges` as all of them: to be called before a fusion, too, that takes long.

    Raises UnknownName for another rival, SettingsError for what a rival lacks or a family that nobody asked to merge, DataError for a test
    example that is among the replay data, or merges without held-out examples.
    """
    for name in rivals:
        if name not in (*RIVALS, *MERGES):
            raise UnknownName("rival", name, (*RIVALS, *MERGES))
    asked = list(dict.fromkeys(each for name in rivals for each in (MERGES if name == "merges" else (name,))))
    if {FUSELLM, *KINDS} & set(asked):
        _check_models(recipe)
    if set(MERGES) & set(asked):
        if TARGET in (family or {}):
            mend = "give that adapter another name"
            raise SettingsError("In a family the target is the recipe's.", met=f"another adapter called {TARGET}", mend=mend)
        check_family({TARGET: recipe.adapter, **(family or {})})
        check_validation(_held_out(recipe))
    elif family:
        raise SettingsError("A family is there to be merged.", met=", ".join(family), mend="ask for the rival merges, or for single ones")
    _check_unseen(recipe, tasks)
    return asked


def _check_models(recipe: Recipe) -> None:
    """SettingsError where a source is a config alone."""
    for source in (source for stage in recipe.stages for source in stage.sources):
        place = Path(source.config)
        if place.is_file() or (place.is_dir() and not any(place.glob("*.safetensors"))):
            mend = "give the source's model in the recipe, or leave out fusellm, gac and unite: a fusion itself needs its config alone"
            raise SettingsError("A rival runs the sources' models.", met=f"{source.name}: {source.config}", mend=mend)


def _check_unseen(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """DataError where a task holds an example that the fusion and its rivals learn from or are chosen by."""
    known: set[Example] = set()
    for stage in recipe.stages:
        known.update(replay(stage.data))
        if not isinstance(stage.held_out, int | float):
            known.update(replay(stage.held_out))
    for task in tasks:
        if seen := [example for example in task.examples if example in known]:
            met = f"{len(seen)} of {task.name}, e.g. {seen[0].prompt[:60]!r}"
            raise DataError("Test examples are among the replay data.", met=met, mend="take them out of either")


def _controlled(recipe: Recipe, out: Path, settings: AnswerSettings, device: str) -> Path:
    """The control of every stage, each from the one before."""

    def train(stage: Stage, adapter: str, place: Path) -> None:
        options = dict(held_out=stage.held_out, chat=settings.chat, device=device)
        control((recipe.model, adapter), stage.data, place, stage.training, **options)  # pyright: ignore[reportArgumentType]

    return _staged(recipe, out, train)


def _distilled(recipe: Recipe, out: Path, distillation: DistillationSettings, settings: AnswerSettings, device: str) -> Path:
    """FuseLLM of every stage, each from the one before."""

    def train(stage: Stage, adapter: str, place: Path) -> None:
        learnt, apart = learnt_and_held_out(stage.data, stage.held_out, stage.training.seed)
        opened = open_target((recipe.model, adapter), place, stage.training)
        teachers = {
            source.name: Teacher(_told(source.config, source.adapter, out.parent), _opening(source.config, source.adapter, device))
            for source in stage.sources
        }
        training = stage.training.changed(method="lora")
        backbone: Any = opened.model
        models = (backbone.to(device), opened.tokenizer)
        options = dict(held_out=apart, chat=settings.chat, device=device)
        distil(models, opened.adapter_at, teachers, learnt, place, distillation, training, **options)  # pyright: ignore[reportArgumentType]

    return _staged(recipe, out, train)


def _staged(recipe: Recipe, out: Path, train: Callable[[Stage, str, Path], None]) -> Path:
    """Walk the stages as a fusion does; the last one's adapter is `out`."""
    adapter = recipe.adapter
    for stage in recipe.stages:
        place = place_of(recipe, stage, out)
        train(stage, adapter, place)
        adapter = str(place)
    return out


def _held_out(recipe: Recipe) -> list[Example]:
    """All stages' held-out replay examples."""
    return [example for stage in recipe.stages for example in learnt_and_held_out(stage.data, stage.held_out, stage.training.seed)[1]]


def _adapted(name: str, about: str, place: tuple[str | Path, str | Path], root: Path, device: str) -> OfModel:
    opening = _opening(*place, device)
    return OfModel(name, about, _told(*place, root), lambda _task: opening())


def _opening(model: str | Path, adapter: str | Path, device: str) -> Callable[[], Opened]:
    """Loads a backbone in float32 with an adapter."""

    def opened() -> Opened:
        backbone, tokenizer = pretrained(str(folder_at(model)), dtype=torch.float32)
        adapted: Any = with_adapter(backbone, folder_at(adapter))
        return adapted.requires_grad_(False).to(device).eval(), tokenizer

    return opened


def _told(model: str | Path, adapter: str | Path, root: Path) -> list[str]:
    """Digests of both; `root` remembers those of the backbones' files."""
    root.mkdir(parents=True, exist_ok=True)
    return [folder_digest(folder_at(model), root), read_adapter(folder_at(adapter)).digest]
