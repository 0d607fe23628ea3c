"""Slot filling on the built-in generator's prose: which words of some kinds does a text name? Written as extraction sets are."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from asterism.core.draws import stream_key
from asterism.core.errors import SettingsError, UnknownName
from asterism.demo.corpus import LEXICONS
from asterism.demo.grammar import plural
from asterism.demo.patterns import write_sentence
from asterism.demo.prose import Passage

ASKED: dict[str, tuple[str, ...]] = dict(
    medical=("drug", "condition", "symptom", "procedure"),
    legal=("party", "court", "wrong", "evidence"),
    code=("developer", "defect", "service", "test"),
    science=("instrument", "particle", "substance", "organism"),
    general=("food", "animal", "plant", "building"),
)
"""Domain -> the kinds of its lexicon that are asked for unless others are named: their words share no spelling."""
NOTHING = "none"
"""The response where a text names nothing of what is asked."""
APART = 8
"""One text in so many is held out."""
_BARE = 0.2
"""Share of the texts without anything to find that are kept."""


def slot_examples(
    domain: str, count: int, seed: int = 0, *, heldout: bool = False, kinds: Sequence[str] | None = None
) -> list[dict[str, str]]:
    """`count` different examples, {"prompt", "response"}: a sentence or two of a domain's prose, and what they name of two kinds.

    The response is `drug: insulin; condition: asthma` in the order of the text, each word once, or `none`. Equal arguments give equal
    examples, more of them begin with the same. Whether a text is held out is decided by the text alone, so examples of the two kinds
    never share one, whatever their seeds. kinds: of the lexicon, two are drawn for each example; ASKED by default.
    UnknownName for a domain or kind that the generator has not, SettingsError for a negative count.
    """
    if domain not in ASKED:
        raise UnknownName("domain of the generator", domain, ASKED)
    if count < 0:
        raise SettingsError("A count is a number of examples.", met=count, mend="0 or more")
    pool = tuple(ASKED[domain] if kinds is None else kinds)
    for kind in pool:
        if kind not in LEXICONS[domain].kinds:
            raise UnknownName(f"kind of {domain} words", kind, LEXICONS[domain].kinds)
    rng = random.Random(f"slots:{domain}:{seed}")
    found: dict[str, str] = {}
    for _ in range(300 * count):
        if len(found) == count:
            break
        text = _text(rng, domain)
        asked = rng.sample(pool, 2)
        named = items(text, domain, asked)
        bare = rng.random()
        if is_held_out(text) == heldout and (named or bare < _BARE) and not _unclear(text, domain, asked):
            response = "; ".join(f"{kind}: {word}" for kind, word in named) or NOTHING
            found.setdefault(f"List each {asked[0]} and each {asked[1]} of the text.\nText: {text}\nAnswer:", response)
    assert len(found) == count, f"the generator repeats itself: {len(found)} of {count} examples"
    return [{"prompt": prompt, "response": response} for prompt, response in found.items()]


def other_kinds(domain: str) -> list[str]:
    """The kinds of a domain's lexicon that are not in ASKED. UnknownName for a domain that the generator has not."""
    if domain not in ASKED:
        raise UnknownName("domain of the generator", domain, ASKED)
    return [kind for kind in LEXICONS[domain].kinds if kind not in ASKED[domain]]


def items(text: str, domain: str, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """(kind, word) of every noun of these kinds that a text names, in the order of the text, each noun once, as it is first spelt there."""
    known = _nouns(domain)
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for match in _pattern(domain).finditer(text):
        spelt = match[0].lower()
        for kind, noun in known[spelt]:
            if kind in kinds:
                found.setdefault((kind, noun), (kind, spelt))
    return list(found.values())


def is_held_out(text: str) -> bool:
    """Whether a text is one of those that are held out."""
    return stream_key(0, text) % APART == 0


def _unclear(text: str, domain: str, kinds: list[str]) -> bool:
    """Whether a text has a word of these kinds that is an adjective of theirs elsewhere: `antiviral drugs`."""
    adjectives = {word for words in LEXICONS[domain].adjectives.values() for word in words.split()}
    return any(word in adjectives for _, word in items(text, domain, kinds))


def _text(rng: random.Random, domain: str) -> str:
    passage = Passage(rng, LEXICONS[domain])
    return " ".join(write_sentence(passage) for _ in range(rng.choice((1, 1, 2))))


@cache
def _nouns(domain: str) -> dict[str, list[tuple[str, str]]]:
    """Spelling, lower case, singular or plural -> the (kind, noun)s that are spelt so."""
    found: dict[str, list[tuple[str, str]]] = {}
    for kind, nouns in LEXICONS[domain].kinds.items():
        for noun in nouns:
            for spelt in dict.fromkeys((noun.word, plural(noun.word))):
                found.setdefault(spelt.lower(), []).append((kind, noun.word))
    return found


@cache
def _pattern(domain: str) -> re.Pattern[str]:
    """Any noun of a domain, the longest that stands there: `blood test`, not `test`."""
    longest_first = sorted(_nouns(domain), key=lambda spelt: (-len(spelt), spelt))
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])", re.IGNORECASE)
