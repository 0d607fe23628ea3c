"""What a domain's word file holds: nouns by kind, adjectives by kind, and the clauses that its kinds can form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Noun:
    """`mass`: no plural, no a/an (written `asthma~`); `name`: a proper name, no article at all (written `Anna!`)."""

    word: str
    mass: bool = False
    name: bool = False

    @classmethod
    def parse(cls, text: str) -> Noun:
        """`blood_test` -> Noun("blood test")."""
        return cls(text.rstrip("~!").replace("_", " "), text.endswith("~"), text.endswith("!"))


@dataclass(frozen=True)
class Frame:
    """A clause: `clinician give drug to patient` = subject kind, verb, object kind or None, (preposition, kind) pairs."""

    subject: str
    verb: str
    object: str | None
    rest: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, line: str) -> Frame:
        """Subject and verb first; what follows comes in twos, preposition and kind; an odd number of words: the object leads."""
        subject, verb, *words = line.split()
        target = words.pop(0) if len(words) % 2 else None
        return cls(subject, verb, target, tuple(zip(words[::2], words[1::2], strict=True)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind the clause names."""
        return (self.subject, *((self.object,) if self.object else ()), *(kind for _, kind in self.rest))


@dataclass(frozen=True)
class Lexicon:
    """One domain's words."""

    nouns: Mapping[str, str]
    """Kind -> words, space-separated; see Noun for the marks."""
    people: Sequence[str]
    """The kinds that are persons (who, she, he)."""
    adjectives: Mapping[str, str]
    frames: Sequence[Frame]
    adverbs: Sequence[str]
    times: Sequence[str]
    """Adjuncts that may stand first or last in a sentence."""
    reports: Sequence[str]
    """`The chart notes that`."""
    judgements: Sequence[str]
    """`likely` as in `It is likely that`."""
    templates: Sequence[str]
    """Whole sentences in the past tense: `<kind>` a noun phrase, `<was>` was or were after it, `<3-20>` a number, `<a|b>` a choice."""
    tenses: Sequence[str] = ("past", "past", "present")
    modals: Sequence[str] = ("may", "can", "must", "should")
    definite: Sequence[str] = ()
    """The kinds that take `the` even when first named: the heart, the village."""
    kinds: Mapping[str, tuple[Noun, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", {kind: tuple(map(Noun.parse, words.split())) for kind, words in self.nouns.items()})
        for frame in self.frames:
            if missing := [kind for kind in frame.kinds if kind not in self.nouns]:
                raise ValueError(f"{frame} names unknown kinds {missing}")

    def words(self) -> set[str]:
        """The nouns' own words, singular."""
        return {noun.word for nouns in self.kinds.values() for noun in nouns}


def frames(text: str) -> tuple[Frame, ...]:
    """One frame a line."""
    return tuple(Frame.parse(line) for line in text.strip().splitlines())


def joined(parts: Mapping[str, Lexicon], bridges: str) -> Lexicon:
    """Several domains as one lexicon; kinds become `domain.kind`, and `bridges` are frames across them. Own frames are left out."""
    first = next(iter(parts.values()))
    return replace(
        first,
        nouns={f"{name}.{kind}": words for name, part in parts.items() for kind, words in part.nouns.items()},
        people=[f"{name}.{kind}" for name, part in parts.items() for kind in part.people],
        definite=[f"{name}.{kind}" for name, part in parts.items() for kind in part.definite],
        adjectives={f"{name}.{kind}": words for name, part in parts.items() for kind, words in part.adjectives.items()},
        frames=frames(bridges),
        adverbs=[word for part in parts.values() for word in part.adverbs],
        times=[word for part in parts.values() for word in part.times],
        reports=[word for part in parts.values() for word in part.reports],
        judgements=[word for part in parts.values() for word in part.judgements],
        templates=[],
    )


def renamed(frame: Frame, domain: str) -> Frame:
    """The frame with its kinds as `domain.kind`, for use in a joined lexicon."""
    target = f"{domain}.{frame.object}" if frame.object else None
    return Frame(f"{domain}.{frame.subject}", frame.verb, target, tuple((word, f"{domain}.{kind}") for word, kind in frame.rest))
