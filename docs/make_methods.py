"""python docs/make_methods.py [--check]: write docs/merge-methods.md from the methods' own signatures, or say that it is not in step."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from asterism.merge.methods import METHODS
from asterism.merge.methods.method import REQUIRED, Method

PAGE = Path(__file__).parent / "merge-methods.md"
HEAD = """# Merge methods

Written by `docs/make_methods.py` from each method's signature; `make docs` renews it, `make check` holds it in step. Names and
parameters are mergekit 0.1.5's; `lerp` and `uniform` are ours. How to use them: [guide](guide/merge.md).

Parameters marked *each* may have a value for every model (in a recipe under `models`), the others have one for the merge; all of them may
vary by layer and by tensor. `base`: whether the recipe needs `base_model`.

"""


def page() -> str:
    """The whole page."""
    return HEAD + "\n\n".join(_section(method) for method in METHODS.values()) + "\n"


def _section(method: Method) -> str:
    doc = " ".join((inspect.getdoc(method.function) or "").split())
    lines = [f"## `{method.name}`", "", f"{method.title}; {_models(method)}; base {_BASE[method.base]}. Source: {method.source}.", "", doc]
    if method.parameters:
        lines += ["", "| parameter | | default | values | |", "| --- | --- | --- | --- | --- |"]
        for each in method.parameters.values():
            default = "needed" if each.default is REQUIRED else f"`{str(each.default).lower()}`"
            lines.append(f"| `{each.name}` | {'each' if each.scope == 'model' else ''} | {default} | {each.range} | {each.help} |")
    return "\n".join(lines)


_BASE = {"required": "needed", "optional": "possible", "none": "not looked at"}


def _models(method: Method) -> str:
    least, most = max(1, method.least), method.most
    count = f"{least}" if least == most else f"{least} to {most}" if most else f"{least} or more"
    return f"{count} {'model' if most == 1 else 'models'}{' besides the base' if method.stack == 'deltas' else ''}"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), "utf-8")
    elif not PAGE.exists() or PAGE.read_text("utf-8") != page():
        sys.exit("docs/merge-methods.md is not in step with the methods: run `make docs`")
