"""python docs/make_methods.py [--check]: write docs/merge-methods.md from the methods themselves, or say that it is not in step."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from asterism.merge.methods import METHODS
from asterism.merge.methods.method import REQUIRED, Method

PAGE = Path(__file__).parent / "merge-methods.md"
HEAD = """# Merge methods

Written by `docs/make_methods.py` from each method's docstring and signature; `make docs` renews it, `make check` holds it in step.
Names and parameters are mergekit 0.1.5's; `lerp` and `uniform` are ours. How to use them: [guide](guide/merge.md).

Parameters marked *each* may have a value for every model (in a recipe under `models`), the others have one for the merge; all of them may
vary by layer and by tensor. `base`: whether the recipe needs `base_model`.

In formulas x_i is a model's tensor, or where a base is possible and given its delta; d_i is a delta, w_i a weight, K the number of models.
A method told by coefficients c_i gives `sum_i c_i x_i`, or `base + sum_i c_i d_i` where its models are counted besides the base.

"""


def page() -> str:
    """The whole page."""
    return HEAD + "\n\n".join(_section(method) for method in METHODS.values()) + "\n"


def _section(method: Method) -> str:
    """What it does, formula, differences, facts, parameters: the docstring's paragraphs, but for that on the stack's shape."""
    paragraphs = [" ".join(part.split()) for part in (inspect.getdoc(method.function) or "").split("\n\n")]
    source = next((part for part in paragraphs if part.startswith("Source: ")), f"Source: {method.source}.")
    lines = [f"## `{method.name}`", ""]
    for part in paragraphs:
        if not part.startswith(("Source: ", "stack: ")):
            lines += [re.sub("^(Differs from [^:]+:)", r"**\1**", part), ""]
    lines += [f"{method.title}; {_models(method)}; base {_BASE[method.base]}. {_linked(source)}"]
    if method.parameters:
        lines += ["", "| parameter | | default | values | |", "| --- | --- | --- | --- | --- |"]
        for each in method.parameters.values():
            default = "needed" if each.default is REQUIRED else f"`{str(each.default).lower()}`"
            lines.append(f"| `{each.name}` | {'each' if each.scope == 'model' else ''} | {default} | {each.range} | {each.help} |")
    return "\n".join(lines)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


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
