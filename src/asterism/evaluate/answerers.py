"""Who answers examples in an evaluation: a model, a model for each task, or an ensemble."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from asterism.core.errors import DataError
from asterism.core.progress import track
from asterism.evaluate.marking import MARKS, Mark, mark_for
from asterism.evaluate.settings import AnswerSettings
from asterism.fuse.ensembles import KINDS, Ensemble, Kind
from asterism.fuse.voices import Voice
from asterism.models.examples import Example, encoded
from asterism.models.responses import answers, prompt_of, response_losses
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

Opened = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Task:
    """Examples that are marked in one way."""

    name: str
    examples: tuple[Example, ...]
    mark: Mark

    @classmethod
    def of(cls, name: str, examples: Sequence[Example], mark: Mark | None = None) -> Task:
        """The task, marked as its wanted answers say (`mark_for`) unless told. DataError for no examples or one without a prompt."""
        if not examples:
            raise DataError("A task has no examples.", met=name, mend="give rows with a prompt and a response")
        if bare := next((row for row, example in enumerate(examples) if not example.prompt), None):
            raise DataError("There is nothing to answer.", met=f"{name}, row {bare + 1} has no prompt", mend="give rows with a prompt")
        return cls(name, tuple(examples), mark or mark_for([example.response for example in examples]))

    @property
    def about(self) -> str:
        """How it is marked."""
        return MARKS[self.mark]


class Answerer(typing.Protocol):
    """A candidate of the evaluation of answers."""

    @property
    def name(self) -> str:
        """In the tables."""
        ...

    @property
    def about(self) -> str:
        """One line."""
        ...

    @property
    def told(self) -> Any:
        """What it is made from, JSON-able: what it has done is used again when this is the same."""
        ...

    def losses(self, task: Task, settings: AnswerSettings) -> list[Tensor]:
        """Of each example, the loss in nats of every token of its response."""
        ...

    def write(self, task: Task, settings: AnswerSettings) -> list[str]:
        """Its own answer to each example."""
        ...

    def close(self) -> None:
        """Let go of what it has loaded."""
        ...


@dataclass(eq=False)
class OfModel:
    """One model for all tasks, or with `each` a model for each task."""

    name: str
    about: str
    told: Any
    open: Callable[[str], Opened]
    """Task -> model and tokenizer."""
    each: bool = False
    _held: Opened | None = field(default=None, init=False, repr=False)
    _task: str = field(default="", init=False, repr=False)

    def losses(self, task: Task, settings: AnswerSettings) -> list[Tensor]:
        model, tokenizer = self._opened(task)
        read: dict[str, Any] = settings.model_dump(include={"max_length", "max_tokens", "chat"})
        return response_losses(model, tokenizer, task.examples, **read)

    def write(self, task: Task, settings: AnswerSettings) -> list[str]:
        model, tokenizer = self._opened(task)
        read: dict[str, Any] = settings.model_dump(include={"max_length", "max_tokens", "chat", "max_new_tokens"})
        return answers(model, tokenizer, task.examples, stop=settings.stop or None, **read)

    def close(self) -> None:
        self._held = None

    def _opened(self, task: Task) -> Opened:
        if self._held is None or (self.each and self._task != task.name):
            self._held = None  # before another is made
            self._held, self._task = self.open(task.name), task.name
            self._held[0].eval()
        return self._held


@dataclass(eq=False)
class OfEnsemble:
    """Several models at once, the target first."""

    kind: Kind
    voices: Mapping[str, Callable[[], Opened]]
    """Name -> model and tokenizer."""
    told: Any
    _held: Ensemble | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def about(self) -> str:
        return f"{KINDS[self.kind]}; {' + '.join(self.voices)}, all {len(self.voices)} run at every step"

    def losses(self, task: Task, settings: AnswerSettings) -> list[Tensor]:
        return [self._loss(example, settings) for example in track(task.examples, f"{self.name} losses")]

    def write(self, task: Task, settings: AnswerSettings) -> list[str]:
        return [self._answer(example, settings) for example in track(task.examples, f"{self.name} answers")]

    def close(self) -> None:
        self._held = None

    def _loss(self, example: Example, settings: AnswerSettings) -> Tensor:
        ensemble = self._opened()
        target = ensemble.voices[0]
        ids, prompt = encoded(target.tokenizer, example, target.limit(settings.max_length), chat=settings.chat)
        answer = ids[prompt:]
        if target.vocabulary.end in answer:
            answer = answer[: answer.index(target.vocabulary.end) + 1]
        rooms = [voice.limit(settings.max_length) - len(voice.ids(example.response.encode())) - 1 for voice in ensemble.voices[1:]]
        others = [
            prompt_of(voice.tokenizer, example, room, chat=settings.chat) for voice, room in zip(ensemble.voices[1:], rooms, strict=True)
        ]
        return ensemble.losses([ids[:prompt], *others], answer)

    def _answer(self, example: Example, settings: AnswerSettings) -> str:
        ensemble = self._opened()
        prompts = [
            prompt_of(voice.tokenizer, example, voice.limit(settings.max_length) - settings.max_new_tokens, chat=settings.chat)
            for voice in ensemble.voices
        ]
        return ensemble.write(prompts, max_new_tokens=settings.max_new_tokens, stop=settings.stop or None)

    def _opened(self) -> Ensemble:
        if self._held is None:
            voices = [Voice(name, *open()) for name, open in self.voices.items()]
            for voice in voices:
                voice.model.eval()
            self._held = Ensemble(voices, self.kind)
        return self._held
