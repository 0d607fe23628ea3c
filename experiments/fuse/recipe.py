"""Everything that one scale of the experiment is made from, read from a YAML file in `recipes/`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from asterism.core.errors import UnknownName
from asterism.core.settings import Settings
from asterism.evaluate.family import MERGES
from asterism.fuse.settings import FusionSettings
from asterism.models.settings import TrainingSettings
from experiments.constellation.rung import Scratch

RECIPES = Path(__file__).parent / "recipes"
Role = Literal["target", "source", "other"]
ROLES: tuple[Role, ...] = ("target", "source", "other")


class Family(Settings):
    """One backbone and the rank of the adapters on it."""

    start: Scratch | str
    """A shape to train from nothing, or the Hub id (or folder) of a pretrained backbone, which is taken as it is."""
    rank: int = Field(ge=1)
    """Rank of every expert on it; alpha is twice the rank."""
    copying: int | None = Field(default=None, ge=1)
    """Steps until it copies, where the recipe's do not suffice."""


class Texts(Settings):
    """What the backbones learn: texts of each kind, then examples of instructions, at most so many."""

    general: int = Field(ge=1)
    """Passages of general text."""
    prose: int = Field(ge=1)
    """Texts of each of the generator's five domains."""
    instruct: int = Field(ge=0)
    """Prompts with responses of each instruction set's training split, and training sentences of each GLUE set without their labels."""
    copies: int = Field(ge=1)
    """Examples of copying words in random order."""
    recalled: int = Field(default=0, ge=0)
    """Those of them that stand among the instructions again, lest it be forgotten."""
    slots: int = Field(ge=1)
    """Slot-filling examples of each domain, of kinds that no expert is asked for: the backbones know the form and not the tasks."""
    instructed: dict[str, int] = Field(default_factory=dict)
    """Further tasks that the backbones learn, none of any expert's -> examples."""


class Recipe(Settings):
    """Models, tasks and sizes. The seed of the run replaces the seeds of experts, fusions and the draw of the replay examples."""

    called: dict[str, str]
    """Tasks and families in words: their names in the tables."""
    families: dict[str, Family]
    """Name -> backbone."""
    roles: dict[Role, str]
    """Which family is the target, which the source, and which the other source, that nothing is chosen by."""
    tasks: dict[Role, tuple[str, ...]]
    """What the expert of each role knows; the first of the target's is the anchor's, too."""
    anchor: tuple[str, ...]
    """What the expert knows that takes the target's place among the anchor variants."""
    irrelevant: tuple[tuple[str, ...], ...]
    """What the task-irrelevant experts know, one on the target's own backbone for each, as in the paper."""
    random: int = Field(default=2, ge=1)
    """Random-weight sources."""
    anchor_rank: int = Field(ge=1)
    """Rank of the target among the anchor variants."""
    texts: Texts
    """What the backbones read."""
    backbone: TrainingSettings
    """How each backbone is trained on texts."""
    copying: TrainingSettings
    """How it is then tuned, all of it, on copying words."""
    instruct: TrainingSettings
    """How it is then tuned, all of it, on instructions."""
    expert: TrainingSettings
    """How each expert is trained on its tasks; the family's rank replaces the rank."""
    trained: int = Field(ge=2)
    """Examples of each task that an expert learns from, at most."""
    replay: int = Field(ge=2)
    """Examples of each task that fusions and their rivals learn from, at most; drawn from those the experts learnt from."""
    validation: int = Field(ge=2)
    """Examples of each task that choose: rates, the best state, settings of merges. Nothing trains on them."""
    tested: int = Field(ge=2)
    """Held-out examples of each task, at most; the same for every seed."""
    ensembled: int = Field(ge=1)
    """Those of them that ensembles answer: they run every model at every token."""
    characters: int = Field(ge=32)
    """Longest prompt and response that is used."""
    answer_tokens: int = Field(default=64, ge=1)
    """Tokens of an answer, at most."""
    fusion: FusionSettings
    """How everything is fused unless a part says otherwise."""
    training: TrainingSettings
    """Steps, batches and schedule of fusions, controls and FuseLLM alike; its learning rate is replaced by those of `rates`."""
    rates: dict[Literal["fused", "control"], tuple[float, ...]]
    """Learning rates tried, the least loss on the validation examples of the first part chooses; FuseLLM takes the control's."""
    alphas: tuple[float, ...]
    """Starts of alpha that are tried beside the recipe's."""
    gates: tuple[float, ...]
    """Values of mu_gate that are tried beside the recipe's."""
    unmarked: tuple[str, ...] = ()
    """Tasks that are told by the loss of the response alone."""

    merges: tuple[str, ...] = MERGES
    """In-family merges that are tuned and scored; the paper's by default."""

    @model_validator(mode="after")
    def _names_fit(self) -> Recipe:
        if set(self.roles) != set(ROLES) or set(self.tasks) != set(ROLES):
            raise ValueError("roles and tasks name target, source and other")
        if unknown := [family for family in self.roles.values() if family not in self.families]:
            raise ValueError(f"roles name families that are not there: {', '.join(unknown)}")
        if len(set(self.roles.values())) < len(ROLES):
            raise ValueError("target, source and other are three families")
        if both := set(self.texts.instructed) & set(self.all_tasks):
            raise ValueError(f"texts.instructed are tasks of experts, too: {', '.join(sorted(both))}")
        if set(self.rates) != {"fused", "control"} or not all(self.rates.values()):
            raise ValueError("rates are tried of fused and of control")
        return self

    def copied(self, family: str) -> TrainingSettings:
        """How a family's backbone is tuned on copying words."""
        steps = self.families[family].copying
        return self.copying if steps is None else self.copying.changed(steps=steps)

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Every task that some expert knows, each once."""
        named = [*(task for role in ROLES for task in self.tasks[role]), *self.anchor, *(task for own in self.irrelevant for task in own)]
        return tuple(dict.fromkeys(named))


def recipe(scale: str) -> Recipe:
    """The recipe of a scale; UnknownName for one that has none."""
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if scale not in known:
        raise UnknownName("scale", scale, known)
    return Recipe.read(RECIPES / f"{scale}.yaml")
