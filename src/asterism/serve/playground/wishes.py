"""What the page asks for, and how a link keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from asterism.core.settings import Settings
from asterism.serve.asking import Question
from asterism.serve.choosing import BASE, OF
from asterism.serve.schema import Extras

NOBODY, UNIFORM = "nobody", "uniform mixture"
LONGEST_LINK = 2000
"""Characters of a text that a link carries."""


class Wishes(Settings):
    """How a text is to be answered."""

    text: str = ""
    """The text, or question."""
    top_k: int = Field(default=3, ge=1)
    """Specialists kept."""
    mode: Literal["evidence", "fast", "nodes"] = "evidence"
    """What weighs them."""
    layers: int = Field(default=0, ge=0)
    """The last so many blocks are composed; 0: everything."""
    rival: str = UNIFORM
    """A specialist, the mean of all, or nobody."""
    most: int = Field(default=128, ge=1)
    """Longest answer, in tokens."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """0 takes the likeliest token every time."""
    seed: int = Field(default=42, ge=0)
    """Of the draws; the same for all who answer."""

    @classmethod
    def of_link(cls, query: Mapping[str, str], specialists: Sequence[str], blocks: int) -> Wishes:
        """What a link asks for; whatever in it cannot be used here is left at its default, since people write links by hand."""
        found: dict[str, Any] = {"top_k": min(3, len(specialists))}
        for name in cls.model_fields:
            try:
                cls(**{**found, name: query[name]})
            except (KeyError, ValueError, LookupError):
                continue
            found[name] = query[name]
        own = cls(**found)
        known = own.rival if own.rival in rivals(specialists) else UNIFORM
        return own.changed(top_k=min(own.top_k, len(specialists)), layers=min(own.layers, blocks), rival=known)

    def extras(self) -> Extras:
        """The composition's part of a request."""
        return Extras(top_k=self.top_k, mode=self.mode, layers=self.layers or "all")

    def questions(self, tokens: tuple[int, ...], name: str, specialists: Sequence[str]) -> list[Question]:
        """The composed answer, the generalist's, and the rival's, if any: the same prompt, length and draws."""
        shared: dict[str, Any] = dict(tokens=tokens, usual=self.most, temperature=self.temperature, seed=self.seed)
        asked = [Question(model=name, extras=self.extras(), **shared), Question(model=name + BASE, **shared)]
        if self.rival == UNIFORM:
            even = Extras(mixture=dict.fromkeys(specialists, 1 / len(specialists)))
            asked.append(Question(model=name, extras=even, **shared))
        elif self.rival != NOBODY:
            asked.append(Question(model=name + OF + self.rival, **shared))
        return asked


def rivals(specialists: Sequence[str]) -> list[str]:
    """Whom the composed answer can stand beside."""
    return [UNIFORM, *specialists, NOBODY]
