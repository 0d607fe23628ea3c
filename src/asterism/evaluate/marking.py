"""How an answer is marked against the one that was wanted: a label, items of an extraction, a number, or the text itself."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, NamedTuple

Mark = Literal["label", "items", "number", "exact"]
MARKS: dict[Mark, str] = {
    "label": "accuracy: the label, letter case and punctuation around it aside",
    "items": "micro F1 of the items `type: words; type: words`, a relation's words being both its ends",
    "number": "accuracy: the last number of the text",
    "exact": "exact match, white space aside",
}
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_LABELS = 20
"""Different answers up to which a task is taken to ask for a label."""
_NOTHING = ("none", "null", "n/a", "")
"""How an extraction without items is written."""


class Marked(NamedTuple):
    """What an answer has gained of what it could. A set's mark is sum(gained) / sum(possible): accuracy, or micro F1."""

    gained: float
    possible: float

    @property
    def share(self) -> float:
        """The mark of this one answer: 1 where nothing was to be found and nothing was given."""
        return self.gained / self.possible if self.possible else 1.0


def marked(mark: Mark, answer: str, wanted: str) -> Marked:
    """The mark of an answer. Items: gained = 2 hits, possible = items given + items wanted, each item once."""
    if mark == "items":
        given, right = items(answer), items(wanted)
        return Marked(2.0 * len(given & right), float(len(given) + len(right)))
    if mark == "label":
        same = normalised(answer) == normalised(wanted)
    elif mark == "number":
        number = last_number(answer)
        same = number is not None and number == last_number(wanted)
    else:
        same = answer.split() == wanted.split()
    return Marked(float(same), 1.0)


def items(text: str) -> frozenset[tuple[str, str]]:
    """(type, words) of every item of `type: words; type: words`, normalised. A part without a colon is an item without a type."""
    found = set()
    for part in text.split(";"):
        kind, colon, words = part.partition(":")
        if not colon:
            kind, words = "", kind
        if normalised(words) not in _NOTHING:
            found.add((normalised(kind), ", ".join(normalised(each) for each in words.split(","))))
    return frozenset(found)


def last_number(text: str) -> float | None:
    """The last number that is written in a text; commas within it are left out."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def normalised(text: str) -> str:
    """One letter case, one kind of white space, no punctuation or symbols around it."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.strip(" .,;:!?\"'`()[]{}*_")


def mark_for(wanted: Sequence[str]) -> Mark:
    """How a task is marked, by its wanted answers: `type: words` in all of them (or nothing, but not in all) is items; `#### number` in all
    is a number; at most 20 different ones of up to four words, each met twice on average, are labels; any other is marked exactly.
    """
    empty = [normalised(text) in _NOTHING for text in wanted]
    if not all(empty) and all(
        none or all(":" in part for part in text.strip(" ;").split(";")) for text, none in zip(wanted, empty, strict=True)
    ):
        return "items"
    if all("####" in text for text in wanted):
        return "number"
    different = {normalised(text) for text in wanted}
    if len(different) <= min(_LABELS, len(wanted) / 2) and max(len(text.split()) for text in different) <= 4:
        return "label"
    return "exact"
