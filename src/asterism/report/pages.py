"""Pages of HTML that need nothing else: a template of this package, filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asterism.core.storage import replacing
from asterism.report.findings import label, listed, percent


def rendered(template: str, **values: Any) -> str:
    """The page that a template makes of the values; equal values give equal text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("asterism.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= dict(label=label, percent=percent, svg=Markup, listed=listed, pretty=_pretty, figure=figure)
    return environment.get_template(template).render(**values)


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
