"""The models of one seed, made when they are first asked for and found when they are asked for again; and what was measured of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from asterism.core.parts import Parts
from asterism.evaluate.passes import score_static
from asterism.models.batching import Batch, batches, pad_id, tokenise
from asterism.models.library import MANIFEST, Library
from asterism.models.routed import RoutedForCausalLM
from asterism.models.starts import from_nothing, pretrained
from asterism.models.training import train
from asterism.models.types import PreTrainedModel
from asterism.route.build import route
from asterism.route.settings import RouterSettings
from asterism.route.training import train_router
from experiments.constellation.models import GENERALIST, device, keep
from experiments.constellation.rung import Scratch
from experiments.parted import Seed
from experiments.route.data import TARGETS, Data, Target, generalist_texts, mixed_texts, target
from experiments.route.recipe import Recipe

Kind = Literal["expert", "long", "mix"]
MAX_TOKENS = 2048
"""Padded tokens of a batch that is scored."""
PROTOCOLS = ("whole", "continuation")
"""Loss over a text, and over its second half."""
Make = Callable[[], PreTrainedModel]


@dataclass(frozen=True)
class Candidate:
    """A model that answers every text: what `asterism.evaluate` scores."""

    name: str
    make: Make

    def build(self, library: Library) -> PreTrainedModel:
        """The model."""
        return self.make()


@dataclass(eq=False)
class Workshop(Seed):
    """One seed's experts and what combines them; the generalist serves all seeds."""

    recipe: Recipe
    data: Data
    _experts: dict[tuple[str, Kind], Path] = field(default_factory=dict, init=False)
    _libraries: dict[Path, Library] = field(default_factory=dict, init=False)

    @cached_property
    def targets(self) -> dict[str, Target]:
        """The three targets."""
        return {name: target(self.data, self.recipe, name) for name in TARGETS}

    @cached_property
    def generalist(self) -> Path:
        """The generalist, trained here unless it lies there; one for all seeds."""
        out, start = self.root / GENERALIST, self.recipe.start
        texts = generalist_texts(self.data, self.recipe.share)
        if isinstance(start, Scratch):
            model, tokenizer = from_nothing(texts, seed=0, **start.model_dump())
        else:
            model, tokenizer = pretrained(start)
            model = model.float()
        if self.recipe.generalist is None:
            if not out.exists():
                keep(model, tokenizer, out)
            return out
        return train(model, tokenizer, texts, out, self.recipe.generalist)

    def expert(self, name: str, kind: Kind = "expert") -> Path:
        """An expert: the generalist with its MLPs trained on one domain (`mix`: and on as much general text)."""
        if (name, kind) not in self._experts:
            texts = mixed_texts(self.data, name, self.seed) if kind == "mix" else self.data.train[name]
            self._experts[name, kind] = self._trained(self.generalist, texts, self.folder / kind / name, kind)
        return self._experts[name, kind]

    def finetuned(self, target: Target, start: Path, rate: float, name: str) -> Path:
        """A model whose MLPs were trained on a target's adaptation set."""
        return self._trained(start, target.adapt, self.folder / "finetuned" / target.name / name, "target", learning_rate=rate)

    def library(self, pair: Sequence[str], kind: Kind = "expert", step: int | None = None) -> Library:
        """The generalist and two experts; `step`: their checkpoints at that step of the long training."""
        folders = {name: self.expert(name, kind) for name in pair}
        if step is not None:
            folders = {name: folder / "checkpoints" / f"checkpoint-{step}" for name, folder in folders.items()}
        root = self.folder / "libraries" / "-".join([kind, *pair, *([] if step is None else [str(step)])])
        if root not in self._libraries:
            if not (root / MANIFEST).exists():
                Library.create(root, self.generalist, folders)
            self._libraries[root] = Library.open(root, device=device())
        return self._libraries[root]

    def router(self, library: Library, target: Target, name: str, settings: RouterSettings) -> RoutedForCausalLM:
        """A routed model of a library, its gates trained on a target's adaptation set; `name`: its folder among the target's."""
        model = route(library, settings.changed(seed=self.seed))
        training = self.recipe.router.changed(seed=self.seed)
        train_router(model, library.tokenizer, target.adapt, self.folder / "routers" / target.name / name, training)
        return model.to(library.device)  # pyright: ignore[reportArgumentType]

    def model(self, folder: Path) -> PreTrainedModel:
        """A model that lies in a folder."""
        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        return model.to(device())

    def row(self, target: Target, candidate: str, make: Make, **facts: Any) -> dict[str, Any]:
        """A candidate on a target: its losses on every held-out text, and its mean loss on the texts that choose."""
        once = cache(make)
        chosen = self.chosen(target, candidate, once)
        tested = self.losses(candidate, once, target.tested, self.folder / "scores" / target.name / "tested")
        return told(target.name, candidate, tested, chosen=chosen, **facts)

    def chosen(self, target: Target, candidate: str, make: Make) -> float:
        """A candidate's mean loss on the texts that choose."""
        return float(self.losses(candidate, make, target.chosen, self.folder / "scores" / target.name / "chosen")["whole"].mean())

    def losses(self, candidate: str, make: Make, texts: Sequence[str], folder: Path) -> dict[str, Tensor]:
        """Protocol -> [n] losses of a model on texts, kept in `folder`; the model is made only where they are not known yet."""

        def score() -> dict[str, Tensor]:
            return {**score_static(self._judge, Candidate(candidate, make), self.batched(texts), len(texts)).loss}

        return Parts(folder, self.origin).tensors(candidate, score)

    def batched(self, texts: Sequence[str]) -> list[Batch]:
        """Texts in batches, cut at the recipe's length."""
        tokenizer = self._judge.tokenizer
        return batches(tokenise(tokenizer, texts, self.recipe.length), max_tokens=MAX_TOKENS, pad=pad_id(tokenizer))

    @cached_property
    def _judge(self) -> Library:
        """Any library of the seed: whose tokenizer and device everything is scored with."""
        return self.library(TARGETS["cross"])

    def _trained(self, start: Path, texts: Sequence[str], out: Path, kind: Kind | Literal["target"], **changes: Any) -> Path:
        settings = getattr(self.recipe, kind).changed(seed=self.seed, **changes)
        return train(AutoModelForCausalLM.from_pretrained(start), AutoTokenizer.from_pretrained(self.generalist), texts, out, settings)


def told(target: str, candidate: str, losses: Mapping[str, Tensor], **facts: Any) -> dict[str, Any]:
    """A row: what was measured of a candidate on a target, text by text."""
    return {"target": target, "candidate": candidate, **facts, **{protocol: losses[protocol].tolist() for protocol in PROTOCOLS}}
