"""An experiment's page of HTML: its own template in the look of `asterism.report`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from asterism.report.findings import listed


def rendered(template: Path, **values: Any) -> str:
    """The page that a template file makes of the values; `style` is the report's own, templates beside it can be imported.

    Filters: `svg` (a figure), `cell` (a table's value), `listed` (words). Equal values give equal text.
    """
    from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = ChoiceLoader([FileSystemLoader(template.parent), PackageLoader("asterism.report")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= dict(svg=Markup, cell=cell, listed=listed)
    source = loader.get_source(environment, "page.html.j2")[0]
    style = re.search(r"<style>.*?</style>", source, re.DOTALL)
    page = environment.get_template(template.name).render(style=Markup(style[0] if style else ""), **values)
    return re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", page)


def cell(value: Any) -> Any:
    """One cell of a table; what stands in brackets after a figure is set apart."""
    from markupsafe import Markup, escape

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    figure, bracket, rest = str(value).partition(" (")
    if isinstance(value, str) or not bracket:
        return str(value)
    return Markup(f'{escape(figure)} <span class="interval">({escape(rest)}</span>')
