"""A table of measured values, for a page or a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Named columns and rows of values (figures, strings, None where nothing was measured)."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""
    labels: int = 1
    """Leading columns that name the row."""

    @property
    def empty(self) -> bool:
        """Whether no cell but the labels holds anything."""
        return all(cell is None for row in self.rows for cell in row[self.labels :])
