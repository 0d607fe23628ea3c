"""The models of one seed, made when they are first asked for and found when they are asked for again; and what was measured of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from asterism.core.errors import StaleError
from asterism.core.storage import digest_of, read_json, write_json
from asterism.evaluate.answerers import Answerer, OfModel, Opened, Task
from asterism.evaluate.answers import evaluate_answers
from asterism.evaluate.results import read_results
from asterism.evaluate.settings import AnswerSettings
from asterism.fuse.build import fuse
from asterism.fuse.control import control
from asterism.fuse.settings import FusionSettings
from asterism.models.adapters import read_adapter, rewritten, with_adapter
from asterism.models.engine import settled
from asterism.models.examples import Example
from asterism.models.runs import RECORD
from asterism.models.settings import TrainingSettings
from asterism.models.starts import from_nothing, pretrained
from asterism.models.training import told, train, tune
from experiments.constellation.models import device, keep
from experiments.constellation.rung import Scratch
from experiments.fuse.data import Data, chosen, replayed
from experiments.fuse.recipe import Recipe
from experiments.fuse.setting import SINGLE, Member, Setting, settings_of
from experiments.parted import Seed, value

Row = dict[str, Any]
Way = Literal["fused", "control"]


@dataclass(eq=False)
class Workshop(Seed):
    """One seed's experts and what learns from them; the backbones serve all seeds."""

    recipe: Recipe
    data: Data

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """Every setting by name."""
        return settings_of(self.recipe)

    @cached_property
    def answering(self) -> AnswerSettings:
        """How candidates are scored."""
        return AnswerSettings(max_new_tokens=self.recipe.answer_tokens, seed=self.seed)

    def backbone(self, family: str) -> Path:
        """A family's backbone, trained here unless it lies there; one for all seeds. A pretrained one is kept as it is."""
        out, start = self.root / "backbones" / family, self.recipe.families[family].start

        def make() -> None:
            if isinstance(start, Scratch):
                read, copied = (out.with_name(f"{family}-{stage}") for stage in ("texts", "copies"))
                if not read.exists():
                    model, tokenizer = from_nothing(self.data.texts, seed=0, **start.model_dump())
                    train(model, tokenizer, self.data.texts, read, self.recipe.backbone)
                if not copied.exists():
                    tune(*pretrained(str(read)), self.data.copies, copied, self.recipe.copied(family))
                tune(*pretrained(str(copied)), self.data.instructed, out, self.recipe.instruct)
            elif not out.exists():
                keep(*pretrained(start), out)

        return self._made(out, self._of_backbone(family), make)

    def expert(self, member: Member) -> Path:
        """An expert's adapter: tuned on its tasks, or of random numbers."""
        out = self.folder / "experts" / member.name

        def make() -> None:
            if member.draw is not None:
                self._random(member, out)
                return
            rows = [row for task in member.tasks for row in self.data.tasks[task].train]
            model, tokenizer = pretrained(str(self.backbone(member.family)), dtype=torch.float32)
            tune(model, tokenizer, rows, out, self._expertise(member), held_out=chosen(self.data, member.tasks))

        return self._made(out, self._of_expert(member), make)

    def fused(self, setting: Setting, candidate: str, changes: Mapping[str, Any] | None = None, rate: float | None = None) -> Path:
        """The target's adapter of a setting, fused with its sources; `candidate`: the name of these settings."""
        rate = rate or self.rate("fused")
        out = self.folder / "fused" / setting.name / f"{candidate}-{rate:g}"
        fusion: FusionSettings = self.recipe.fusion.changed(seed=self.seed, **(changes or {}))

        def make() -> None:
            whole = fusion.layers == "cka"
            sources: dict[str, Any] = {}
            for member in setting.all_sources:
                backbone = self.backbone(member.family)
                sources[member.name] = (backbone if whole else backbone / "config.json", self.expert(member))
            training, apart = self.training(rate, setting), self.chosen(setting)
            fuse(self.place(setting.target), sources, self.replayed(setting), out, fusion, training, held_out=apart)

        told = [fusion.digest(), *(self._of_expert(member) for member in setting.all_sources)]
        return self._made(out, self._of_learner(setting, rate, *told), make)

    def control(self, setting: Setting, *, up_only: bool = False, rate: float | None = None) -> Path:
        """The target's adapter of a setting, trained on the same examples without sources; settings of equal `replayed` share it."""
        rate = rate or self.rate("control")
        out = self.folder / "controls" / setting.replayed / f"{'B-alone' if up_only else 'A-and-B'}-{rate:g}"

        def make() -> None:
            options: Any = dict(held_out=self.chosen(setting), up_only=up_only)
            control(self.place(setting.target), self.replayed(setting), out, self.training(rate, setting), **options)

        return self._made(out, self._of_learner(setting, rate, up_only), make)

    def distilled(self, setting: Setting, make: Callable[[Path], Any]) -> Path:
        """The target's adapter of a setting after FuseLLM, which `make` leaves at the place that it is given."""
        out = self.folder / "distilled" / setting.name
        told = [self._of_expert(member) for member in setting.all_sources]
        return self._made(out, self._of_learner(setting, self.rate("control"), *told), lambda: make(out))

    def rate(self, way: Way) -> float:
        """The learning rate that loses least on the validation examples of the first part, for fusions and for what trains adapters."""
        tried, single = self.recipe.rates[way], self.settings[SINGLE]
        if len(tried) == 1:
            return tried[0]

        def loss(rate: float) -> float:
            return chosen_loss(self.fused(single, "fused", rate=rate) if way == "fused" else self.control(single, rate=rate))

        return self.kept(f"rate-{way}", lambda: min(tried, key=loss))

    @property
    def rates(self) -> dict[str, float]:
        """What was chosen of the learning rates; of one rate, that one."""
        known = {way: tried[0] for way, tried in self.recipe.rates.items() if len(tried) == 1}
        return known | {way: rate for way in self.recipe.rates if (rate := self.found(f"rate-{way}")) is not None}

    def training(self, rate: float, setting: Setting) -> TrainingSettings:
        """Steps, batches and schedule of everything that learns from replay examples; of a share of them as many steps as of all."""
        made = self.recipe.training.changed(method="lora", learning_rate=rate, seed=self.seed)
        if setting.share == 1:
            return made
        return settled(made, len(self.replayed(replace(setting, share=1.0))), held_out=True)

    def place(self, member: Member) -> tuple[Path, Path]:
        """A member's backbone and adapter."""
        return self.backbone(member.family), self.expert(member)

    def replayed(self, setting: Setting) -> list[Example]:
        """What everyone of a setting learns from."""
        return replayed(self.data, self.recipe, setting.tasks, self.seed, setting.share)

    def chosen(self, setting: Setting) -> list[Example]:
        """What chooses in a setting."""
        return chosen(self.data, setting.tasks)

    def tasks(self, names: Sequence[str], count: int | None = None) -> list[Task]:
        """Tasks with their held-out examples, the first `count` of each."""
        return [Task.of(name, self.data.tasks[name].tested[:count]) for name in names]

    def opened(self, member: Member, adapter: Path | None = None) -> Callable[[], Opened]:
        """Loads a member's backbone with its adapter, or with another."""

        def load() -> Opened:
            model, tokenizer = pretrained(str(self.backbone(member.family)), dtype=torch.float32)
            adapted: Any = with_adapter(model, adapter or self.expert(member))
            return adapted.requires_grad_(False).to(device()).eval(), tokenizer

        return load

    def model(self, key: str, about: str, member: Member, adapter: Callable[[], Path] | None = None) -> OfModel:
        """A candidate that is a backbone with an adapter, which is made when it is needed."""
        return OfModel(key, about, [self.origin, key], lambda _task: self.opened(member, adapter() if adapter else None)())

    def rows(self, candidate: Answerer, names: Sequence[str], count: int | None = None) -> list[Row]:
        """A row for each held-out example of these tasks, by what a candidate makes of it; what is known already is not done again."""
        place = self.folder / "scores" / candidate.name
        wanted = {task.name: task for task in self.tasks(names, count)}
        missing = [task for name, task in wanted.items() if self._kept(place / name, task) is None]
        marked = [task for task in missing if task.name not in self.recipe.unmarked]
        plain = [task for task in missing if task.name in self.recipe.unmarked]
        for kind, tasks, settings in (("marked", marked, self.answering), ("plain", plain, self.answering.changed(write=False))):
            if tasks:
                evaluate_answers([candidate], tasks, settings, out=place / kind, rivals=())
                _, scored = read_results(place / kind)
                for task in tasks:
                    own = [row for row in scored if row["task"] == task.name]
                    write_json(place / task.name / "rows.json", {"origin": self._origin(task), "value": own})
        found: list[Row] = []
        for name, task in wanted.items():
            found += self._kept(place / name, task) or []
        return found

    def known(self, name: str, names: Sequence[str], count: int | None = None) -> bool:
        """Whether `rows` of a candidate of this name would do nothing."""
        place = self.folder / "scores" / name
        return all(self._kept(place / task.name, task) is not None for task in self.tasks(names, count))

    def _origin(self, task: Task) -> str:
        return digest_of(self.origin, [[row.prompt, row.response] for row in task.examples], self.answering.digest())

    def _kept(self, place: Path, task: Task) -> list[Row] | None:
        return value(place / "rows.json", self._origin(task))

    def _made(self, out: Path, told: str, make: Callable[[], Any]) -> Path:
        """What lies at `out`, made unless it was made of just this. StaleError where it was made of something else."""
        mark = out.with_name(f"{out.name}.made.json")
        if mark.exists() and out.exists():
            if read_json(mark) != told:
                mend = "choose another --out, or remove it and its .made.json to make it again"
                raise StaleError("A model was made by another recipe, or of other data.", met=out, mend=mend)
            return out
        make()
        write_json(mark, told)
        return out

    def _expertise(self, member: Member) -> TrainingSettings:
        return self.recipe.expert.changed(method="lora", lora_rank=member.rank, lora_alpha=2.0 * member.rank, seed=self.seed)

    def _of_backbone(self, family: str) -> str:
        start = self.recipe.families[family].start
        known = start.model_dump(mode="json") if isinstance(start, Scratch) else start
        stages = (self.recipe.backbone, self.recipe.copied(family), self.recipe.instruct)
        return digest_of(known, *(stage.digest() for stage in stages), self._texts)

    def _of_expert(self, member: Member) -> str:
        rows = [told([*self.data.tasks[task].train, *self.data.tasks[task].chosen]) for task in member.tasks]
        return digest_of(self._of_backbone(member.family), list(astuple(member)), self._expertise(member).digest(), rows)

    def _of_learner(self, setting: Setting, rate: float, *more: Any) -> str:
        rows = [told(self.replayed(setting)), told(self.chosen(setting))]
        return digest_of(self._of_expert(setting.target), self.training(rate, setting).digest(), rows, list(more))

    @cached_property
    def _texts(self) -> str:
        return self.data.backbones()

    def _random(self, member: Member, out: Path) -> None:
        """An adapter of normal random numbers whose factors have the norms of the trained one's."""
        trained = read_adapter(self.expert(Member(member.family, member.tasks, member.rank)))
        generator = torch.Generator().manual_seed(1000 * self.seed + (member.draw or 0))

        def like(name: str) -> torch.Tensor:
            factor = trained.checkpoint.tensor(name, dtype=torch.float32)
            drawn = torch.randn(factor.shape, generator=generator)
            return drawn * (factor.norm() / drawn.norm())

        ups = {parameter: like(pair.up) for parameter, pair in trained.pairs.items()}
        downs = {parameter: like(pair.down) for parameter, pair in trained.pairs.items()}
        shutil.rmtree(out, ignore_errors=True)
        rewritten(trained, out, ups, downs)


def chosen_loss(adapter: Path) -> float:
    """The loss on validation examples of the state that was written, as its training recorded it."""
    return float(read_json(adapter / RECORD)["held_out_loss"])
