"""What teachers say, told in the student's tokens: against a slow telling by dictionaries, and on cases made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.token_alignment import VocabularyMap
from asterism.fuse.teaching import Lesson, lessons, together
from asterism.models.examples import Example, encoded
from asterism.models.responses import response_losses
from tests.fuse.voices import voice
from tests.tiny import LENGTH

EXAMPLES = [
    Example("Which drug?", " antibiotics for acute pneumonia"),
    Example("Say it in code:", " x = 0.5 — née"),
    Example("What does the court hold?", " The appeal is dismissed for lack of standing."),
]


def spelt(own, token: int) -> bytes:
    """The bytes of a token, none for the end and for ids beyond the vocabulary."""
    return own.vocabulary.spelt([token])[0]


def bare(own, token: int) -> bytes:
    """Without the space that SentencePiece may write before a text."""
    return spelt(own, token).lstrip(b" ")


def taught(teacher: str, student: str, **more) -> tuple[list[Lesson], list]:
    read = [encoded(voice(student).tokenizer, example, LENGTH) for example in EXAMPLES]
    return lessons(voice(teacher), voice(student), EXAMPLES, read, **more), read


def test_a_student_that_teaches_itself_says_its_own_likeliest_tokens():
    found, read = taught("tiny", "tiny", top_k=4)
    own = voice("tiny")
    for (ids, prompt), lesson, losses in zip(read, found, response_losses(own.model, own.tokenizer, EXAMPLES), strict=True):
        with torch.no_grad():
            shares = torch.softmax(own.model(input_ids=torch.tensor([ids])).logits[0].double(), dim=-1)[prompt - 1 : -1]
        best = shares.topk(4)
        kept = {*own.vocabulary.ids.values(), own.vocabulary.end}
        assert kept >= set(best.indices.flatten().tolist())
        assert lesson.ids.tolist() == best.indices.tolist()
        np.testing.assert_allclose(lesson.probabilities, best.values / best.values.sum(dim=1, keepdim=True), atol=1e-5)
        assert lesson.loss == pytest.approx(float(losses.mean()), abs=1e-5)


@pytest.mark.parametrize("by", ["edit", "spans"])
@pytest.mark.parametrize(("teacher", "student"), [("larger", "tiny"), ("pieces", "tiny"), ("tiny", "pieces")])
def test_rows_stand_where_both_split_alike_and_are_the_response_elsewhere(teacher, student, by):
    found, read = taught(teacher, student, by=by, top_k=5)
    own, other = voice(student), voice(teacher)
    mapped, rows = VocabularyMap(other.vocabulary, own.vocabulary), 0
    for example, (ids, prompt), lesson in zip(EXAMPLES, read, found, strict=True):
        wanted = ids[prompt:]
        theirs, before = encoded(other.tokenizer, example, LENGTH)
        assert lesson.ids.shape == lesson.probabilities.shape == (len(wanted), 5)
        assert lesson.probabilities.sum(dim=1).tolist() == pytest.approx([1] * len(wanted), abs=1e-5)
        with torch.no_grad():
            shares = torch.softmax(other.model(input_ids=torch.tensor([theirs])).logits[0].double(), dim=-1)
        for place, token in enumerate(wanted):
            row = {int(id): float(share) for id, share in zip(lesson.ids[place], lesson.probabilities[place], strict=True) if share}
            if row == {token: 1.0}:
                continue
            rows += 1
            same = [
                at for at in range(before, len(theirs))
                if bare(other, theirs[at]) == bare(own, token) or (by == "edit" and mapped(theirs[at]) == token)
            ]  # fmt: skip
            likely = {id for at in same for id in shares[at - 1].topk(5).indices.tolist()}
            assert same
            assert {own.vocabulary.ids.get(spelt(other, id)) for id in likely} & row.keys() or len(row) < 5
    assert rows >= 6


def test_the_teachers_probabilities_are_carried_over():
    found, read = taught("larger", "tiny", top_k=480)
    own, other = voice("tiny"), voice("larger")
    ids, _ = read[0]
    theirs, _ = encoded(other.tokenizer, EXAMPLES[0], LENGTH)
    with torch.no_grad():
        shares = torch.softmax(other.model(input_ids=torch.tensor([theirs])).logits[0, -2].double(), dim=-1)  # what comes at the end
    row = torch.zeros(len(own.vocabulary.texts)).index_add(0, found[0].ids[-1], found[0].probabilities[-1])
    assert ids[-1] == own.vocabulary.end
    kept = shares[[id for id, text in enumerate(other.vocabulary.texts) if text or id == other.vocabulary.end]].sum()
    assert float(row[own.vocabulary.end]) == pytest.approx(float(shares[other.vocabulary.end] / kept), rel=1e-3)
    common = max(own.vocabulary.ids.keys() & other.vocabulary.ids.keys(), key=len)
    assert float(row[own.vocabulary.ids[common]]) >= float(shares[other.vocabulary.ids[common]] / kept) - 1e-6


def test_the_best_teacher_is_heard_or_all_by_their_losses():
    one = Lesson(torch.tensor([[1, 2]]), torch.tensor([[0.5, 0.5]]), 2.0)
    two = Lesson(torch.tensor([[3, 4]]), torch.tensor([[0.9, 0.1]]), 1.0)
    assert together([one, two]) is two
    mixed = together([one, two], "avg")
    weights = np.exp(np.exp([-2.0, -1.0])) / np.exp(np.exp([-2.0, -1.0])).sum()
    assert mixed.ids.tolist() == [[1, 2, 3, 4]]
    np.testing.assert_allclose(mixed.probabilities[0], [weights[0] / 2, weights[0] / 2, 0.9 * weights[1], 0.1 * weights[1]], atol=1e-6)
