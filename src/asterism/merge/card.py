"""What is written beside a merge for machines (`merge.json`) and for people (`README.md`, a model card)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from asterism.core.storage import write_json
from asterism.merge.methods.method import Method
from asterism.merge.recipe import Recipe
from asterism.merge.sources import Opened

RECORD = "merge.json"
FORMAT_VERSION = 1


def record(recipe: Recipe, method: Method, models: Sequence[Opened], seed: int, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that made the merge, and what was measured of it."""
    return {
        "format_version": FORMAT_VERSION,
        "asterism": version("asterism"),
        "recipe": recipe.content,
        "method": {"name": method.name, "title": method.title, "source": method.source},
        "seed": seed,
        "base": str(recipe.base_model) if recipe.base_model else None,
        "sources": list(found),
        "hub": [str(model.reference.model) for model in models if not _is_here(model)],
    }


def write_card(folder: Path, name: str, told: Mapping[str, Any]) -> None:
    """`merge.json` and the model card of a merge called `name`."""
    write_json(folder / RECORD, told)
    (folder / "README.md").write_text(card(name, told), "utf-8")


def card(name: str, told: Mapping[str, Any]) -> str:
    """The model card, in Markdown with the Hub's front matter."""
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "asterism"]}
    if told["hub"]:
        front = {"base_model": told["hub"], **front}
    method = told["method"]
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", "",
        f"A merge by {method['title']} ({method['source']}), made with asterism {told['asterism']}, seed {told['seed']}.", "",
        "| model | tensors | content | distance of the merge |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for source in told["sources"]:
        who = source["model"] + (" (base)" if source["model"] == told["base"] else "")
        far = "" if source["distance"] is None else f"{source['distance']:.2%}"
        lines.append(f"| {who} | {source['tensors']} | `{source['digest'][:16]}` | {far} |")
    lines += ["", *_without_code(told)]
    lines += [
        "Distance: |merge - model| / |model|, over all tensors of equal shape, estimated on 16,384 entries of each.",
        "Content: a digest of the tensors that went in, whatever files they lie in.", "",
    ]  # fmt: skip
    return "\n".join([*lines, *_how(told)])


def _how(told: Mapping[str, Any]) -> list[str]:
    """What was asked for, and how to ask for it again."""
    lines = []
    if "library" in told:
        asked = {"method": told["method"]["name"], "parameters": told["parameters"]}
        texts = {name: own["number"] for name, own in (told["texts"] or {}).items()}
        asked |= {"texts": texts or "those that the library has kept the findings of"}
        asked |= {"soup": told["soup"]["names"]} if "soup" in told else {}
        again = f"asterism merge LIBRARY OUT --method {told['method']['name']} ..."
        lines = ["## Method", "", "```yaml", _yaml(asked), "```", "", f"Run it again with `{again}` (`--seed {told['seed']}`).", ""]
    if told["recipe"] is not None:
        lines += ["## Recipe", "", "```yaml", _yaml(told["recipe"]), "```", "", "Run it again with `asterism merge recipe.yaml OUT` "
                  f"(`--seed {told['seed']}`): the same models give the same bytes.", ""]  # fmt: skip
    return lines


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()


def _without_code(told: Mapping[str, Any]) -> list[str]:
    """A paragraph on what the configs of the models name and no folder holds."""
    if not (missing := told.get("missing_code")):
        return []
    return [f"Its configs no longer name code for {', '.join(missing)} (`auto_map`): the modules did not lie beside the model.", ""]


def _is_here(model: Opened) -> bool:
    return Path(model.reference.model.path).expanduser().is_dir()
