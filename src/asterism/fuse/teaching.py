"""What teachers of other vocabularies give to come at each token of a response, told in the student's tokens.

FuseLLM (Wan et al. 2024, arXiv:2401.10491). A teacher's row stands where one of its tokens, aligned by edit distance, becomes the very
token of the student; its tokens become the student's of the same text, else the nearest by edit distance. Elsewhere the row is the token of
the response itself, as in the paper's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asterism.core.token_alignment import VocabularyMap, edit_alignment, span_alignment
from asterism.fuse.voices import Voice
from asterism.models.batching import batches, pad_id
from asterism.models.examples import Example, encoded
from asterism.models.likelihood import logits_of

AlignBy = Literal["edit", "spans"]
Fusing = Literal["min", "avg"]
MAX_TOKENS = 2048
"""Padded tokens that a teacher reads at once."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one teacher, or several together, say of one response of T of the student's tokens."""

    ids: Tensor
    """[T, k] int64: tokens of the student."""
    probabilities: Tensor
    """[T, k] float32, each row summing to 1."""
    loss: float
    """The teacher's nats for the response, by the student's number of tokens, so that vocabularies compare."""


@torch.no_grad()
def lessons(
    teacher: Voice,
    student: Voice,
    examples: Sequence[Example],
    read: Sequence[tuple[list[int], int]],
    *,
    top_k: int = 10,
    by: AlignBy = "edit",
    chat: bool = True,
) -> list[Lesson]:
    """What a teacher says of each response; `read` is each example in the student's tokens, and how many of them are the prompt's.

    Each row keeps the teacher's `top_k` likeliest tokens, their probabilities made to sum to 1. by: how the two tokenisations of a response
    are aligned; spans pair only tokens of the very same text. Raises as `encoded` for a response that the teacher has no room for.
    """
    limit = teacher.limit(2**31 - 1)
    rows = [encoded(teacher.tokenizer, example, limit, chat=chat) for example in examples]
    mapped = VocabularyMap(teacher.vocabulary, student.vocabulary)
    found: dict[int, Lesson] = {}
    for batch in batches([ids for ids, _ in rows], max_tokens=MAX_TOKENS, pad=pad_id(teacher.tokenizer)):
        logits = logits_of(teacher.model, batch.ids.to(teacher.model.device))
        for place, row in enumerate(batch.rows):
            ids, prompt = rows[row]
            start = max(prompt, 1)
            likely = torch.log_softmax(logits[place, start - 1 : len(ids) - 1].float(), dim=-1)  # [own tokens, V]
            response = torch.tensor(ids[start:])
            nats = -float(likely.gather(1, response[:, None].to(likely.device)).double().sum())
            best = likely.exp().topk(min(top_k, likely.shape[1]), dim=-1)
            own = [(tokens, shares) for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
            wanted = read[row][0][max(read[row][1], 1) :]
            pairs = _pairs(student, wanted, teacher, response.tolist(), mapped, by)
            found[row] = _told(wanted, {i: _translated(*own[j], mapped) for i, j in pairs.items()}, top_k, nats)
    return [found[row] for row in range(len(rows))]


def together(own: Sequence[Lesson], fusing: Fusing = "min") -> Lesson:
    """One lesson of several on one response: that of the lowest loss (MinCE), or the mean weighted by softmax(exp(-loss)) (AvgCE).

    Source: Wan et al. 2024, section 3.3; the weights of the mean as in its code.
    """
    if fusing == "min":
        return min(own, key=lambda lesson: lesson.loss)
    losses = torch.tensor([lesson.loss for lesson in own], dtype=torch.float64)
    weights = torch.softmax(torch.exp(-losses), dim=0).float()
    mixed = torch.cat([weight * lesson.probabilities for weight, lesson in zip(weights, own, strict=True)], dim=1)
    return Lesson(torch.cat([lesson.ids for lesson in own], dim=1), mixed, float(weights.double() @ losses))


def _pairs(student: Voice, wanted: Sequence[int], teacher: Voice, own: Sequence[int], mapped: VocabularyMap, by: AlignBy) -> dict[int, int]:
    """Place among the student's tokens -> the one place among the teacher's that means the same token."""
    left, right = _spelt(student, wanted), _spelt(teacher, own)
    partners: dict[int, list[int]] = {}
    for i, j in edit_alignment(left, right) if by == "edit" else _spans(left, right):
        partners.setdefault(i, []).append(j)
    alone = {i: js[0] for i, js in partners.items() if len(js) == 1}
    if by == "spans":
        return {i: j for i, j in alone.items() if left[i] == right[j]}
    return {i: j for i, j in alone.items() if mapped(own[j]) == wanted[i]}


def _spans(left: Sequence[bytes], right: Sequence[bytes]) -> list[tuple[int, int]]:
    """The alignment by text; the two ends, which have none, belong together."""
    ends = [(len(left) - 1, len(right) - 1)] if left and right and not (left[-1] or right[-1]) else []
    return span_alignment(left, right) + ends


def _spelt(voice: Voice, ids: Sequence[int]) -> list[bytes]:
    texts = voice.vocabulary.spelt(ids)
    if voice.leads and texts and texts[0].startswith(b" "):
        texts[0] = texts[0][1:]
    return texts


def _translated(tokens: Sequence[int], shares: Sequence[float], mapped: VocabularyMap) -> dict[int, float]:
    """Token of the student -> probability; tokens that become the same one are added up, those without any are left out."""
    found: dict[int, float] = {}
    for token, share in zip(tokens, shares, strict=True):
        if (own := mapped(token)) is not None:
            found[own] = found.get(own, 0.0) + share
    total = sum(found.values())
    return {token: share / total for token, share in found.items()} if total else {}


def _told(wanted: Sequence[int], rows: dict[int, dict[int, float]], top_k: int, nats: float) -> Lesson:
    ids, probabilities = torch.zeros(len(wanted), top_k, dtype=torch.long), torch.zeros(len(wanted), top_k)
    for place, token in enumerate(wanted):
        row = rows.get(place) or {token: 1.0}
        ids[place, : len(row)], probabilities[place, : len(row)] = torch.tensor(list(row)), torch.tensor(list(row.values()))
    return Lesson(ids, probabilities, nats / max(1, len(wanted)))
