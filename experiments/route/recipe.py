"""Everything that one scale of the experiment is made from, read from a YAML file in `recipes/`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from asterism.core.errors import UnknownName
from asterism.core.settings import Settings
from asterism.models.settings import TrainingSettings
from experiments.constellation.rung import Scratch

RECIPES = Path(__file__).parent / "recipes"


class Source(Settings):
    """A data set of the Hugging Face Hub."""

    dataset: str
    """Hub id, `owner/name` or `owner/name:configuration`, or the address of its files (asterism.models.datasets)."""
    columns: tuple[str, ...] = ("text",)
    """Columns whose texts are joined, a line each."""
    limit: int | None = None
    """Rows read at most."""


class Recipe(Settings):
    """Models, texts and sizes. The seed of the run replaces the seeds of experts, routers and fine-tuning."""

    called: dict[str, str]
    """What stands behind `general`, each expert and each target: their names in the tables."""
    start: Scratch | str
    """A shape to train from nothing, or the Hub id (or folder) of a pretrained generalist."""
    generalist: TrainingSettings | None
    """How the generalist is trained; None takes a pretrained one as it is."""
    share: float = Field(default=0.15, ge=0, le=1)
    """Share of every expert's training text in the generalist's own; it sees none of the targets'."""
    expert: TrainingSettings
    """The experts that are combined."""
    long: TrainingSettings
    """A longer training of the first two, whose checkpoints are the curve along specialisation."""
    mix: TrainingSettings
    """The first two again, on as much general text as text of their own."""
    router: TrainingSettings
    """Every router on its target."""
    target: TrainingSettings
    """Fine-tuning of the MLPs on a target, for comparison."""
    rates: tuple[float, ...] = Field(min_length=1)
    """Learning rates of fine-tuning that are tried; texts held back from the training choose."""
    every: int = Field(default=2, ge=1)
    """Along the curve, a router at every so many checkpoints, the last among them."""
    chosen: int = Field(ge=4)
    """Texts of a target's adaptation set that choose (shares, rates, settings); nothing trains on them."""
    tested: int = Field(ge=4)
    """Held-out texts of a target that are scored, at most; the same for every seed."""
    general: int = Field(ge=4)
    """General texts on which layers are compared."""
    windows: int = Field(default=128, ge=4)
    """Texts on which the paper's CKA is taken (one batch of 128)."""
    probes: int = Field(default=40, ge=1)
    """Index probes a domain of the composition."""
    texts: dict[str, tuple[Source, ...]] = Field(default_factory=dict)
    """Data sets behind `general`, each expert and each target; empty: the folders given on the command line."""
    config: dict[str, int | bool | str] | None = None
    """The config of a pretrained start, for the dry run alone: what sizes it has while it is not at hand."""

    @model_validator(mode="after")
    def _methods_fit(self) -> Recipe:
        for name, method in {"expert": "mlp", "long": "mlp", "mix": "mlp", "target": "mlp", "router": "router"}.items():
            if (found := getattr(self, name).method) != method:
                raise ValueError(f"{name}.method is {found}, not {method}")
        if not self.long.keep_every:
            raise ValueError("long.keep_every says which checkpoints are the curve")
        return self

    @property
    def length(self) -> int:
        """Tokens read of every text."""
        return self.expert.max_length

    @property
    def steps(self) -> list[int]:
        """The checkpoints of the curve."""
        every = self.long.keep_every or self.long.steps
        return list(range(every, self.long.steps + 1, every))

    @property
    def routed_steps(self) -> list[int]:
        """Those that get a router."""
        return self.steps[:: -self.every][::-1]


def recipe(scale: str) -> Recipe:
    """The recipe of a scale; UnknownName for one that has none."""
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if scale not in known:
        raise UnknownName("scale", scale, known)
    return Recipe.read(RECIPES / f"{scale}.yaml")
