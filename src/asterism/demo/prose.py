"""Passages of plain English from a lexicon: a small cast of things, named once and referred back to, in varied sentences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from asterism.demo.grammar import article, denied, finite, participle, plural
from asterism.demo.lexicon import Frame, Lexicon, Noun

_OFTEN_OR_SELDOM = ("often", "usually", "sometimes", "rarely", "soon", "gradually", "still", "seldom", "eventually", "also")
_PRONOUNS: dict[str, str] = dict.fromkeys(
    ("man", "uncle", "brother", "son", "fisherman", "postman", "landlord", "Tom", "Oscar", "Henry"), "he"
)
_PRONOUNS |= dict.fromkeys(("woman", "grandmother", "aunt", "sister", "daughter", "midwife", "Anna", "Clara", "Maya"), "she")
_PRONOUNS |= dict(choir="it", team="it")


@dataclass(eq=False)
class Entity:
    """One thing a passage speaks of, singular or plural throughout."""

    kind: str
    noun: Noun
    many: bool
    adjective: str
    pronoun: str
    known: bool = False


class Passage:
    """Writes sentences about one cast. Frames come from each of `pools` in turn, so that two domains' clauses alternate."""

    def __init__(
        self, rng: random.Random, lexicon: Lexicon, pools: Sequence[Sequence[Frame]] | None = None, tense: str | None = None
    ) -> None:
        self.rng, self.lexicon = rng, lexicon
        self.pools = list(pools or [lexicon.frames])
        self.turn = rng.randrange(len(self.pools))
        self.tense = tense or rng.choice(lexicon.tenses)
        self.cast: dict[str, list[Entity]] = {}
        self.used: set[Frame] = set()
        self.told: set[str] = set()
        self.begun = False
        self.subject: Entity | None = None

    def frame(self, subject: str | None = None) -> Frame | None:
        """An unused frame of the next pool, kinds already in the cast preferred; with `subject`, one that such a thing can do."""
        for _ in self.pools:
            pool = self.pools[self.turn % len(self.pools)]
            self.turn += 1
            fresh = [frame for frame in pool if frame not in self.used and subject in (None, frame.subject)]
            if fresh:
                met = [1 + 3 * sum(kind in self.cast for kind in frame.kinds) for frame in fresh]
                frame = self.rng.choices(fresh, met)[0]
                self.used.add(frame)
                return frame
        if subject is None:
            self.used.clear()
            return self.frame()
        return None

    def entity(self, kind: str, apart: Sequence[Entity | None] = ()) -> Entity:
        """Somebody of the cast or somebody new, but nobody in `apart`."""
        known = [entity for entity in self.cast.get(kind, []) if entity not in apart]
        if known and self.rng.random() < 0.7:
            return self.rng.choice(known)
        taken = {entity.noun for entity in self.cast.get(kind, [])}
        noun = self.rng.choice([noun for noun in self.lexicon.kinds[kind] if noun not in taken] or list(self.lexicon.kinds[kind]))
        many = not (noun.mass or noun.name) and self.rng.random() < (0.08 if kind in self.lexicon.definite else 0.3)
        adjectives = [] if noun.name else self.lexicon.adjectives.get(kind, "").split()
        adjectives = [word for word in adjectives if word not in noun.word and noun.word not in word]
        adjective = self.rng.choice(adjectives).replace("_", " ") if adjectives and self.rng.random() < 0.35 else ""
        pronoun = "they" if many else self._pronoun(kind, noun)
        entity = Entity(kind, noun, many, adjective, pronoun)
        self.cast.setdefault(kind, []).append(entity)
        return entity

    def name(self, entity: Entity, bare: bool = False) -> str:
        """The entity's noun phrase: `a frail patient` at first, `the patient` later; `bare`: no article at first mention."""
        words = plural(entity.noun.word) if entity.many else entity.noun.word
        if entity.noun.name:
            return words
        if entity.known:
            near = self.rng.random() < 0.08 and entity.kind not in self.lexicon.definite
            return f"{('these' if entity.many else 'this') if near else 'the'} {words}"
        entity.known = True
        words = f"{entity.adjective} {words}".strip()
        if entity.kind in self.lexicon.definite:
            return f"the {words}"
        if entity.noun.mass or bare:
            return words
        if entity.many:
            return f"{self.rng.choice(['', '', 'several', 'many', 'two', 'some'])} {words}".strip()
        return f"{article(words)} {words}"

    def verb_phrase(self, frame: Frame, subject: Entity, verb: str, lists: bool = False) -> str:
        """The inflected verb, its object and what follows."""
        parts, said = [verb], [subject]
        if frame.object:
            target = self.entity(frame.object, said)
            said.append(target)
            parts.append(self.name(target) if not lists else self.listing(frame.object, target, said))
        for preposition, kind in frame.rest:
            other = self.entity(kind, said)
            said.append(other)
            parts += [preposition, self.name(other)]
        return " ".join(parts)

    def listing(self, kind: str, first: Entity, said: list[Entity]) -> str:
        """`asthma, a fever and two ulcers`."""
        names = [self.name(first)]
        for _ in range(self.rng.choice([1, 2])):
            other = self.entity(kind, said)
            said.append(other)
            names.append(self.name(other))
        return ", ".join(names[:-1]) + " and " + names[-1]

    def clause(self, tense: str = "", subject: Entity | None = None, negative: bool = False, lists: bool = False) -> str:
        """Subject, verb and the rest, active."""
        frame = self.next_frame(subject)
        tense = tense or self.tense
        opening = None if subject else self._again(frame)
        subject = subject or (self.subject if opening and self.subject else self.entity(frame.subject))
        spoken = opening or self.name(subject)
        self.subject = subject
        many = subject.many
        verb = denied(frame.verb, tense, many) if negative else self._adverb(finite(frame.verb, tense, many), subject)
        return f"{spoken} {self.verb_phrase(frame, subject, verb, lists)}"

    def next_frame(self, subject: Entity | None = None) -> Frame:
        """A frame for `subject`, or any frame."""
        frame = self.frame(subject.kind if subject else None)
        assert frame is not None
        return frame

    def passive(self, tense: str = "") -> str | None:
        """`the tumour was removed by a surgeon`, or None where the frame has no object."""
        frame = self.next_frame()
        if not frame.object:
            return None
        target = self.entity(frame.object)
        words = f"{self.name(target)} {self._adverb(finite('be', tense or self.tense, target.many), target)} {participle(frame.verb)}"
        said = [target]
        for preposition, kind in frame.rest:
            other = self.entity(kind, said)
            said.append(other)
            words += f" {preposition} {self.name(other)}"
        if not frame.rest or self.rng.random() < 0.6:
            words += f" by {self.name(self.entity(frame.subject, said))}"
        self.subject = target
        return words

    def template(self) -> str | None:
        """One of the lexicon's own sentences, filled in."""
        said: list[Entity] = []
        fresh = [text for text in self.lexicon.templates if text not in self.told]
        if not fresh:
            return None
        text = self.rng.choice(fresh)
        self.told.add(text)
        while "<" in text:
            before, rest = text.split("<", 1)
            slot, after = rest.split(">", 1)
            text = before + self._slot(slot, said) + after
        self.subject = None
        return text

    def time(self) -> str:
        """An adjunct of time, place or manner."""
        return self.rng.choice(self.lexicon.times)

    def _slot(self, slot: str, said: list[Entity]) -> str:
        if "|" in slot:
            return self.rng.choice(slot.split("|"))
        if slot == "was":
            return finite("be", "past", said[-1].many)
        if slot[0].isdigit():
            low, high = map(int, slot.split("-"))
            return str(self.rng.randint(low, high))
        entity = self.entity(slot, said)
        said.append(entity)
        return self.name(entity)

    def _again(self, frame: Frame) -> str | None:
        if self.subject and self.subject.known and self.subject.kind == frame.subject and self.rng.random() < 0.4:
            return self.subject.pronoun
        return None

    def _adverb(self, verb: str, subject: Entity) -> str:
        if self.rng.random() > 0.14:
            return verb
        manners = self.lexicon.adverbs if subject.kind in self.lexicon.people else _OFTEN_OR_SELDOM
        adverb, (first, _, rest) = self.rng.choice(manners), verb.partition(" ")
        if rest:
            return f"{first} {adverb} {rest}"
        return f"{verb} {adverb}" if verb in ("is", "are", "was", "were") else f"{adverb} {verb}"

    def _pronoun(self, kind: str, noun: Noun) -> str:
        if kind not in self.lexicon.people:
            return "it"
        return _PRONOUNS.get(noun.word) or self.rng.choice(["she", "he"])
