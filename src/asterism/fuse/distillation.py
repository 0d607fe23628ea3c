"""FuseLLM as a rival: what the sources and the target say of the replay data, fused and distilled into the target's adapter.

Wan et al. 2024 (arXiv:2401.10491): loss = clm * plain loss + (1 - clm) * KL(fused rows || the student's). Unlike our fusion it runs every
source's whole model over the data, once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset

from asterism.core.errors import DataError
from asterism.core.parts import Parts
from asterism.core.progress import track
from asterism.core.settings import Settings
from asterism.core.storage import digest_of
from asterism.fuse.teaching import AlignBy, Fusing, Lesson, lessons, together
from asterism.fuse.voices import Voice
from asterism.models.engine import Work, settled, work_out
from asterism.models.examples import IGNORED, Example, Examples
from asterism.models.runs import is_finished, origin_of
from asterism.models.settings import TrainingSettings
from asterism.models.training import batched, check_examples, facts, told
from asterism.models.types import PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 64
"""Examples whose rows are kept in one file while a distillation goes on."""


class DistillationSettings(Settings):
    """How the teachers' rows are made and weighed; the defaults are FuseLLM's."""

    clm: float = Field(default=0.9, ge=0, le=1)
    """Share of the plain loss; the rest is the divergence from the fused rows."""
    fusing: Fusing = "min"
    """`min`: of each response the rows of the teacher that predicts it best (MinCE); `avg`: all teachers' mean (AvgCE)."""
    top_k: int = Field(default=10, ge=1)
    """Likeliest tokens that a row keeps."""
    align_by: AlignBy = "edit"
    """How two tokenisations of a response are aligned: by the least edit distance of their tokens, or by the text that they cover."""
    target_teaches: bool = True
    """Whether the target, as it is before, is among the teachers."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """Who teaches: a model that is opened when it is its turn."""

    told: Any
    """What it is, JSON-able: its rows are used again while this is the same."""
    open: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]


def distil(
    target: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    adapter: str | Path,
    teachers: Mapping[str, Teacher],
    examples: Sequence[Example],
    out: str | Path,
    settings: DistillationSettings | None = None,
    training: TrainingSettings | None = None,
    *,
    held_out: Sequence[Example] = (),
    chat: bool = True,
    device: str | None = None,
) -> Path:
    """Train a target's adapter on what the teachers say of the examples, and leave the new adapter at `out`, whole or absent.

    target: the backbone, without its adapter, and its tokenizer; adapter: the folder, which is not touched. Teachers are run one after
    another, each once; a killed run goes on where it stopped, teachers' rows included. Held-out examples are measured by the plain loss.
    Refusals and what is finished as `asterism.models.training.tune`; DataError for no teachers.
    """
    settings, training, out = settings or DistillationSettings(), training or TrainingSettings(method="lora"), Path(out)
    check_examples(examples, held_out)
    if not teachers and not settings.target_teaches:
        raise DataError("There is nobody to teach.", met="no sources", mend="give sources, or let the target teach")
    model, tokenizer = target
    training = settled(training, len(examples), bool(held_out))
    of_teachers = digest_of({name: teacher.told for name, teacher in teachers.items()}, settings.model_dump(mode="json"))
    more = facts(tokenizer, held_out, chat, adapter) | {"teachers": of_teachers}
    origin = origin_of(model, tokenizer, told(examples), training, more)
    if is_finished(out, origin):
        return out
    from asterism.models.adapters import with_adapter

    data, measured, collate = batched(model, tokenizer, examples, held_out, training.max_length, chat)
    adapted: Any = with_adapter(model, adapter)
    everyone = dict(teachers)
    if settings.target_teaches:
        everyone = {"the target": Teacher("the target", lambda: (adapted.eval(), tokenizer)), **everyone}
    state = out.parent / f".teachers-{out.name}"
    parts = Parts(state, digest_of(origin["origin"], more))
    student = Voice("student", adapted, tokenizer)
    rows = [_taught(name, own, student, examples, data, settings, parts, chat) for name, own in everyone.items()]
    taught = Taught(data, [together(each, settings.fusing) for each in zip(*rows, strict=True)])
    torch.manual_seed(training.seed)

    def write(folder: Path, weights: Mapping[str, Tensor], _record: Mapping[str, Any]) -> None:
        adapted.save_pretrained(folder, state_dict={name.removeprefix("model."): tensor for name, tensor in weights.items()})
        tokenizer.save_pretrained(folder)

    work = Work(Distilling(adapted, settings.clm), taught, write, parts_alone=True, collate=taught.collated(collate), held_out=measured)
    work_out(work, out, training, origin, device)
    shutil.rmtree(state, ignore_errors=True)
    return out


class Distilling(nn.Module):
    """A model whose loss is part its own and part the divergence from rows that it is taught."""

    def __init__(self, model: Any, clm: float) -> None:
        super().__init__()
        self.model, self.clm = model, clm

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        taught_ids: Tensor | None = None,
        taught: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """input_ids, attention_mask, labels [B, T]; taught_ids, taught [B, T, k]: the row at t is what token t was to be, by the teachers.

        Returns `loss` in nats a response token; outside training, and without rows, the plain loss.
        """
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        if not self.training or taught is None or taught_ids is None or labels is None:
            return {"loss": found.loss}
        return {"loss": self.clm * found.loss + (1 - self.clm) * divergence(found.logits, labels, taught_ids, taught)}


def divergence(logits: Tensor, labels: Tensor, taught_ids: Tensor, taught: Tensor) -> Tensor:
    """Mean over response tokens of KL(taught row || the model's distribution), in nats.

    logits [B, T, V], labels [B, T] with -100 where nothing is answered, taught_ids and taught [B, T, k].
    """
    answered = labels[:, 1:] != IGNORED
    likely = torch.log_softmax(logits[:, :-1][answered].float(), dim=-1)  # [n, V]
    ids, shares = taught_ids[:, 1:][answered], taught[:, 1:][answered]
    each = torch.special.xlogy(shares, shares) - shares * likely.gather(1, ids)
    return each.sum() / answered.sum().clamp_min(1)


class Taught(Dataset):
    """Tokenised examples with the rows that their responses are taught."""

    def __init__(self, data: Examples, rows: Sequence[Lesson]) -> None:
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        own, lesson = self.data[index], self.rows[index]
        before = len(own["input_ids"]) - len(lesson.ids)
        ids, shares = (nn.functional.pad(each, (0, 0, before, 0)) for each in (lesson.ids, lesson.probabilities))
        return {**own, "taught_ids": ids, "taught": shares}

    def collated(
        self, plain: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]
    ) -> Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]:
        """How rows become a batch: as examples do, and what is taught padded with nothing."""

        def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
            batch = plain([{name: row[name] for name in ("input_ids", "labels")} for row in rows])
            if "taught" in rows[0]:
                for name in ("taught_ids", "taught"):
                    batch[name] = nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)
            return batch

        return collate


def _taught(
    name: str,
    teacher: Teacher,
    student: Voice,
    examples: Sequence[Example],
    data: Examples,
    settings: DistillationSettings,
    parts: Parts,
    chat: bool,
) -> list[Lesson]:
    """A teacher's rows of every example: read where they are kept, else made and kept."""
    voice: Voice | None = None

    def made(start: int) -> dict[str, Tensor]:
        nonlocal voice
        if voice is None:
            model, tokenizer = teacher.open()
            voice = Voice(name, model.eval(), tokenizer)
        some = slice(start, start + CHUNK)
        found = lessons(voice, student, examples[some], data.rows[some], top_k=settings.top_k, by=settings.align_by, chat=chat)
        columns = {"ids": torch.cat([own.ids for own in found]), "probabilities": torch.cat([own.probabilities for own in found])}
        return columns | {"losses": torch.tensor([own.loss for own in found], dtype=torch.float64)}

    found: list[Lesson] = []
    for start in track(range(0, len(examples), CHUNK), f"{name} teaches"):
        kept = parts.tensors(f"{digest_of(name)[:16]}-{start}", lambda start=start: made(start))
        sizes = [len(ids) - max(prompt, 1) for ids, prompt in data.rows[start : start + CHUNK]]
        columns = zip(kept["ids"].split(sizes), kept["probabilities"].split(sizes), kept["losses"].tolist(), strict=True)
        found += [Lesson(ids, shares, loss) for ids, shares, loss in columns]
    return found
