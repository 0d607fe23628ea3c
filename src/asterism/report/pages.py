"""Pages of HTML that need nothing else: a template of this package, filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asterism.core.storage import replacing
from asterism.report.findings import label, listed, percent

if TYPE_CHECKING:
    from jinja2 import Environment


def rendered(template: str, **values: Any) -> str:
    """The page that a template makes of the values; equal values give equal text."""
    return environment().get_template(template).render(**values)


def environment(*folders: Path) -> Environment:
    """Where pages are made: templates of some folders and of this package, and the filters of its own."""
    from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = ChoiceLoader([FileSystemLoader(folders), PackageLoader("asterism.report")])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= dict(label=label, percent=percent, svg=Markup, listed=listed, pretty=_pretty, figure=figure)
    return made


def written(page: str, out: str | Path) -> Path:
    """Write a page to a file, whole or not at all; StorageError where it cannot be written."""
    out = Path(out)
    with replacing(out) as temporary:
        temporary.write_text(page, "utf-8")
    return out


def figure(value: float, form: str = ".3f") -> str:
    """A number as tables show it, with a true minus."""
    return f"{value:{form}}".replace("-", "−")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
