"""Figures as people read them: counts with their noun, intervals, and a dash where there is nothing to say."""

from __future__ import annotations

NONE = "–"


def counted(count: int, noun: str) -> str:
    """`1 text`, `2 texts`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def span(low: float | None, high: float | None, form: str = ".3f") -> str:
    """`1.234 to 1.345`; a dash where there is no interval."""
    return NONE if low is None or high is None else f"{low:{form}} to {high:{form}}"
