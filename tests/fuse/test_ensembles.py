"""GAC and UniTE against sums over dictionaries of text in NumPy, and answers against a writer without caches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asterism.core.errors import DataError, SettingsError, UnknownName
from asterism.fuse.ensembles import Ensemble
from asterism.fuse.voices import Reader
from tests.fuse.voices import voice

PROMPT, ANSWER = "The patient was given", " antibiotics — café; Insulin lowers"
PAIRS = [("tiny", "larger"), ("larger", "pieces"), ("pieces", "tiny")]


def asked(names):
    return [voice(name).tokenizer(PROMPT, add_special_tokens=False)["input_ids"] for name in names]


def plain(name: str, text: str) -> np.ndarray:
    """Next-token probabilities of one model in float64, in one pass over prompt and text."""
    own = voice(name)
    ids = [*asked([name])[0], *own.ids(text.encode())]
    with torch.no_grad():
        logits = own.model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def by_text(name: str, text: str) -> dict:
    """Piece of text -> probability, of the tokens that have one; the end is None."""
    own, found = voice(name), {}
    for token, share in enumerate(plain(name, text)):
        piece = own.vocabulary.texts[token] if token < len(own.vocabulary.texts) else None
        if piece and name == "pieces" and not text:
            piece = piece.removeprefix(b" ")
        if token == own.vocabulary.end or piece:
            found[piece or None] = found.get(piece or None, 0.0) + share
    return {piece: share / sum(found.values()) for piece, share in found.items()}


def gac(names, text: str) -> dict:
    tables = [by_text(name, text) for name in names]
    return {piece: sum(table.get(piece, 0.0) for table in tables) / len(tables) for piece in set().union(*tables)}


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("text", ["", " antibiotics", " anti"])
def test_gac_averages_over_the_union_of_the_vocabularies(names, text):
    ensemble = Ensemble([voice(name) for name in names], "gac")
    readers = [Reader(voice(name), prompt) for name, prompt in zip(names, asked(names), strict=True)]
    found = ensemble.distribution([reader.next(text.encode()) for reader in readers], first=not text)
    wanted = gac(names, text)
    assert set(found.pieces) == {*wanted, None}
    assert max(abs(found.of(piece) - share) for piece, share in wanted.items()) < 1e-6
    assert float(found.probabilities.sum()) == pytest.approx(1)


def test_unite_takes_the_union_of_the_likeliest_and_of_other_tokens_the_first():
    names, text = ("tiny", "larger"), " anti"
    ensemble = Ensemble([voice(name) for name in names], "unite", top_k=3)
    readers = [Reader(voice(name), prompt) for name, prompt in zip(names, asked(names), strict=True)]
    found = ensemble.distribution([reader.next(text.encode()) for reader in readers])
    shares = [plain(name, text) for name in names]
    pieces = []
    for name, own in zip(names, shares, strict=True):
        for token in np.argsort(-own)[:3]:
            vocabulary = voice(name).vocabulary
            if token == vocabulary.end:
                pieces.append(None)
            elif token < len(vocabulary.texts) and vocabulary.texts[token]:
                pieces.append(vocabulary.texts[token])
    assert set(found.pieces) == set(pieces)
    rows = []
    for name, own in zip(names, shares, strict=True):
        vocabulary = voice(name).vocabulary
        tokens = [
            vocabulary.end if piece is None
            else vocabulary.ids[piece] if piece in vocabulary.ids
            else voice(name).tokenizer(piece.decode(errors="ignore"))["input_ids"][0]
            for piece in found.pieces
        ]  # fmt: skip
        rows.append(own[tokens] / own[tokens].sum())
    np.testing.assert_allclose(found.probabilities.numpy(), np.mean(rows, axis=0), atol=1e-6)


def test_two_voices_that_are_one_give_what_it_gives():
    for kind in ("gac", "unite"):
        ensemble = Ensemble([voice("tiny"), voice("tiny")], kind, top_k=320)
        reader = Reader(voice("tiny"), asked(["tiny"])[0])
        own = reader.next(b" anti")
        found = ensemble.distribution([own, own])
        assert max(abs(found.of(text) - float(own[id])) for text, id in voice("tiny").vocabulary.ids.items()) < 1e-6


@pytest.mark.parametrize("names", PAIRS)
@pytest.mark.parametrize("kind", ["gac", "unite"])
def test_losses_are_of_the_targets_tokens_one_after_another(names, kind):
    ensemble = Ensemble([voice(name) for name in names], kind)
    target = voice(names[0])
    answer = [*target.ids(ANSWER.encode()), target.vocabulary.end]
    losses = ensemble.losses(asked(names), answer)
    assert losses.shape == (len(answer),)
    text = b""
    for place, token in enumerate(answer):
        readers = [Reader(voice(name), prompt) for name, prompt in zip(names, asked(names), strict=True)]
        piece = None if token == target.vocabulary.end else target.texts(first=not text)[token]
        found = ensemble.distribution([reader.next(text) for reader in readers], first=not text, scored=[piece])
        assert float(losses[place]) == pytest.approx(-np.log(found.of(piece)), abs=1e-4)
        text += piece or b""
    assert text.decode() == (ANSWER.lstrip() if target.leads else ANSWER)
    if kind == "gac":
        assert float(losses[0]) == pytest.approx(-np.log(gac(names, "")[target.texts(first=True)[answer[0]]]), abs=1e-4)


@pytest.mark.parametrize("names", [("tiny", "larger"), ("sliding", "tiny"), ("pieces", "larger")])
def test_an_answer_is_the_likeliest_piece_at_every_step(names):
    ensemble = Ensemble([voice(name) for name in names])
    written = ensemble.write(asked(names), max_new_tokens=6)
    text = b""
    for _ in range(6):
        fresh = [Reader(voice(name), prompt) for name, prompt in zip(names, asked(names), strict=True)]
        found = ensemble.distribution([reader.next(text) for reader in fresh], first=not text)
        piece = found.pieces[int(found.probabilities.argmax())]
        if piece is None:
            break
        text += piece
    assert written == text.decode(errors="replace")


def test_keys_and_values_are_kept_as_far_as_the_tokens_stay():
    own, prompt = voice("larger"), asked(["larger"])[0]
    kept = Reader(own, prompt)
    for text in (b"", b" anti", b" antibiotics", b" antibiotics \xe2", "\u00a0é".encode()):
        fresh = Reader(own, prompt)
        torch.testing.assert_close(kept.next(text), fresh.next(text), atol=1e-5, rtol=1e-4)
    assert kept.read < 5 * len(prompt)


def test_draws_repeat_with_their_seed_and_stop_ends_an_answer():
    ensemble = Ensemble([voice("tiny"), voice("larger")])
    prompts = asked(["tiny", "larger"])
    drawn = {seed: ensemble.write(prompts, max_new_tokens=8, temperature=1.0, seed=seed) for seed in range(3)}
    assert drawn[0] == ensemble.write(prompts, max_new_tokens=8, temperature=1.0, seed=0)
    assert len(set(drawn.values())) > 1
    whole = ensemble.write(prompts, max_new_tokens=8)
    stop = next(letter for letter in whole[2:] if letter.isascii())
    assert ensemble.write(prompts, max_new_tokens=8, stop=stop) == whole[: whole.index(stop)]


def test_weights_choose_who_is_heard():
    prompts = asked(["tiny", "larger"])
    heard = [Reader(voice(name), prompt).next(b"") for name, prompt in zip(("tiny", "larger"), prompts, strict=True)]
    alone = Ensemble([voice("tiny"), voice("larger")], weights=[2, 0]).distribution(heard, first=True)
    assert all(
        alone.of(text) == pytest.approx(float(heard[0][id]), abs=1e-4) for text, id in list(voice("tiny").vocabulary.ids.items())[::17]
    )


def test_what_is_no_ensemble_is_refused():
    with pytest.raises(SettingsError, match="1 of them"):
        Ensemble([voice("tiny")])
    with pytest.raises(UnknownName, match="did you mean 'gac'"):
        Ensemble([voice("tiny")] * 2, "gacc")
    with pytest.raises(SettingsError, match="2 shares"):
        Ensemble([voice("tiny")] * 2, weights=[1, -1])
    end = voice("tiny").vocabulary.end
    with pytest.raises(DataError, match="special token"):
        Ensemble([voice("tiny")] * 2).losses(asked(["tiny", "tiny"]), [end, 5])
    with pytest.raises(DataError, match="nothing before the answer"):
        Reader(voice("tiny"), [])
