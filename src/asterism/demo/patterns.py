"""Sentences and passages: seventeen patterns, chosen by chance, over what a Passage offers."""

from __future__ import annotations

from asterism.demo.grammar import capital, finite, gerund, plural
from asterism.demo.prose import Passage


def write_sentence(passage: Passage) -> str:
    """One more sentence, in a pattern chosen by chance, ending with its mark."""
    text = passage.rng.choices(_PATTERNS, _SHARES)[0](passage)
    passage.begun = True
    return text


def write_passage(passage: Passage, low: int = 42, high: int = 90) -> str:
    """Sentences until a length between `low` and `high` words, drawn by chance, is reached; now and then in two paragraphs."""
    goal = passage.rng.randint(low, high - 12)
    sentences: list[str] = []
    length = 0
    while length < goal:
        sentence = write_sentence(passage)
        if length + len(sentence.split()) <= high:
            sentences.append(sentence)
            length += len(sentence.split())
        elif length >= low:
            break
    cut = len(sentences) // 2 if len(sentences) >= 6 and passage.rng.random() < 0.5 else 0
    return "\n\n".join(" ".join(part) for part in (sentences[:cut], sentences[cut:]) if part)


def _plain(p: Passage) -> str:
    words = p.clause(lists=p.rng.random() < 0.2)
    return capital(words) + (f" {p.time()}." if p.rng.random() < 0.3 else ".")


def _fronted(p: Passage) -> str:
    return f"{capital(p.time())}, {p.clause()}."


def _subordinate(p: Passage) -> str:
    word = p.rng.choice(["because", "although", "when", "while", "since", "whereas"])
    if p.rng.random() < 0.5:
        return f"{capital(word)} {p.clause(_aside(p))}, {p.clause()}."
    return f"{capital(p.clause())} {word} {p.clause(_aside(p))}."


def _conditional(p: Passage) -> str:
    word = p.rng.choice(["if", "unless", "where", "once", "whenever"])
    first, second = p.clause("present"), p.clause(p.rng.choice(p.lexicon.modals))
    return f"{capital(word)} {first}, {second}."


def _joined(p: Passage) -> str:
    frame = p.next_frame()
    who = p.entity(frame.subject)
    first = f"{p.name(who)} {p.verb_phrase(frame, who, finite(frame.verb, p.tense, who.many))}"
    other = p.frame(who.kind)
    p.subject = who
    if not other:
        return f"{capital(first)}."
    joint = p.rng.choice(["and", "and", "and later", "but"])
    return f"{capital(first)} {joint} {p.verb_phrase(other, who, finite(other.verb, p.tense, who.many))}."


def _two(p: Passage) -> str:
    joint = p.rng.choice([", and", ", but", "; however,", "; therefore,", ", so", "; meanwhile,"])
    return f"{capital(p.clause())}{joint} {p.clause()}."


def _relative(p: Passage) -> str:
    frame = p.next_frame()
    who = p.entity(frame.subject)
    other = p.frame(who.kind)
    if not other or who.noun.name:
        return f"{capital(p.name(who))} {p.verb_phrase(frame, who, finite(frame.verb, p.tense, who.many))}."
    word = "who" if who.kind in p.lexicon.people else "that"
    words = capital(f"{p.name(who)} {word} {p.verb_phrase(frame, who, finite(frame.verb, _aside(p), who.many))}")
    p.subject = who
    return f"{words} {p.verb_phrase(other, who, finite(other.verb, p.tense, who.many))}."


def _object_relative(p: Passage) -> str:
    frame = p.next_frame()
    other = p.frame(frame.object) if frame.object else None
    if not other or not frame.object:
        return _plain(p)
    target = p.entity(frame.object)
    if target.noun.name:
        return _plain(p)
    who = p.entity(frame.subject, [target])
    target.known = True
    words = (
        f"the {plural(target.noun.word) if target.many else target.noun.word} that {p.name(who)} {finite(frame.verb, _aside(p), who.many)}"
    )
    p.subject = target
    return capital(f"{words} {p.verb_phrase(other, target, finite(other.verb, p.tense, target.many))}.")


def _reported(p: Passage) -> str:
    return f"{capital(p.rng.choice(p.lexicon.reports))} {p.clause('present' if p.tense == 'shall' else '')}."


def _judged(p: Passage) -> str:
    verb = "was" if p.tense == "past" else "is"
    return f"It {verb} {p.rng.choice(p.lexicon.judgements)} that {p.clause(_aside(p))}."


def _passive(p: Passage) -> str:
    words = p.passive()
    return f"{capital(words)}." if words else _plain(p)


def _participial(p: Passage) -> str:
    frame = p.next_frame()
    who = p.entity(frame.subject)
    other = p.frame(who.kind)
    if not other:
        return f"{capital(p.name(who))} {p.verb_phrase(frame, who, finite(frame.verb, p.tense, who.many))}."
    word = p.rng.choice(["after", "before", "by", "without"])
    opening = f"{capital(word)} {p.verb_phrase(frame, who, gerund(frame.verb))}"
    p.subject = who
    return f"{opening}, {p.name(who)} {p.verb_phrase(other, who, finite(other.verb, p.tense, who.many))}."


def _linked(p: Passage) -> str:
    if not p.begun:
        return _fronted(p)
    word = p.rng.choice(["however", "as a result", "in addition", "for this reason", "at first", "by contrast", "for example", "later"])
    return f"{capital(word)}, {p.clause()}."


def _negative(p: Passage) -> str:
    return f"{capital(p.clause(negative=True))}."


def _question(p: Passage) -> str:
    frame = p.next_frame()
    who = p.entity(frame.subject)
    p.subject = None
    helper = (
        finite("do", p.tense.replace("shall", "present"), who.many)
        if p.rng.random() < 0.6 or p.tense == "past"
        else p.rng.choice(p.lexicon.modals)
    )
    asked = p.rng.choice(["", "why ", "when ", "how "])
    return f"{capital(asked + helper)} {p.name(who)} {p.verb_phrase(frame, who, frame.verb)}?"


def _purpose(p: Passage) -> str:
    frame = p.next_frame()
    if frame.subject not in p.lexicon.people:
        return _plain(p)
    who = p.entity(frame.subject)
    other = p.frame(who.kind)
    if not other:
        return f"{capital(p.name(who))} {p.verb_phrase(frame, who, finite(frame.verb, p.tense, who.many))}."
    helper = "had to" if p.tense == "past" else p.rng.choice(p.lexicon.modals)
    opening = p.verb_phrase(frame, who, frame.verb)
    p.subject = who
    return f"To {opening}, {p.name(who)} {helper} {p.verb_phrase(other, who, other.verb)}."


def _own(p: Passage) -> str:
    words = p.template()
    return f"{capital(words)}." if words else _two(p)


def _aside(p: Passage) -> str:
    return {"past": p.rng.choice(["past", "past", "pluperfect"]), "shall": "present"}.get(p.tense) or p.rng.choice(["present", "perfect"])


_PATTERNS, _SHARES = zip(
    (_plain, 5),
    (_fronted, 2),
    (_subordinate, 4),
    (_conditional, 2),
    (_joined, 3),
    (_two, 3),
    (_relative, 2),
    (_object_relative, 2),
    (_reported, 2),
    (_judged, 1),
    (_passive, 3),
    (_participial, 2),
    (_linked, 3),
    (_negative, 1),
    (_question, 1),
    (_purpose, 1),
    (_own, 6),
    strict=True,
)
