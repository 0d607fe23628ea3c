"""An experiment's page of HTML: its own template in the look of `asterism.report`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from asterism.report.pages import environment


def rendered(template: Path, **values: Any) -> str:
    """The page that a template file makes of the values; it may extend and import those of `asterism.report` and those beside it.

    Filters beside the report's: `cell` (a table's value), `marked` (Markdown's code and bold). Equal values give equal text.
    """
    made = environment(template.parent, Path(__file__).parent)
    made.filters |= dict(cell=cell, marked=marked)
    page = made.get_template(template.name).render(**values)
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", page)


def cell(value: Any) -> Any:
    """One cell of a table; what stands in brackets after a figure is set apart."""
    from markupsafe import Markup, escape

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    if isinstance(value, str):
        return marked(value)
    figure, bracket, rest = str(value).partition(" (")
    if not bracket:
        return figure
    return Markup(f'{escape(figure)} <span class="interval">({escape(rest)}</span>')


def marked(text: str) -> Any:
    """Words of a table or its note, which Markdown pages show too: `code` and **bold** as HTML."""
    from markupsafe import Markup, escape

    told = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", told))
