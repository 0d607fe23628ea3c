"""The model that an adapter is put on, and the folder that an adapter, its record and its card make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from asterism.core.errors import UnknownName
from asterism.core.storage import replacing, write_json
from asterism.merge.places import listed
from asterism.merge.references import Origin
from asterism.models.anatomy import Anatomy, anatomy_of, skeleton
from asterism.models.fitting import AdapterReport, Fitting
from asterism.models.likeness import Expected
from asterism.models.loading import read_config


@dataclass(frozen=True)
class Ground:
    """The base of an adapter: what its parameters are called and where they lie."""

    origin: Origin
    folder: Path
    anatomy: Anatomy
    expected: Expected

    @classmethod
    def of(cls, origin: Origin, folder: Path) -> Ground:
        """Read from the config alone. UnsupportedError for an architecture that is not known."""
        bones = skeleton(read_config(folder))
        return cls(origin, folder, anatomy_of(bones), Expected(bones))

    @property
    def on_hub(self) -> bool:
        return not Path(self.origin.path).expanduser().is_dir()

    @property
    def name(self) -> str:
        """How `adapter_config.json` names the base: a Hub id, or an absolute path."""
        return self.origin.path if self.on_hub else str(self.folder.resolve())

    def parameter(self, tensor: str) -> str:
        """The parameter that a tensor of the checkpoint is."""
        found = self.expected.parameter(tensor)
        if found is None:
            raise UnknownName("parameter", tensor, self.expected.shapes)
        return found


def told_of(report: AdapterReport) -> dict[str, Any]:
    """A report as records hold it: with the error of all parameters together, and with what is left out."""
    return {"error": report.error, "lost": report.lost, **asdict(report)}


def save(
    out: Path,
    fitting: Fitting,
    ground: Ground,
    record: str,
    told: Mapping[str, Any],
    story: str,
    content: Mapping[str, str],
    recipe: Any = None,
) -> None:
    """Write the adapter, `record` (a JSON file) and a model card (see `card`) as one folder, whole or not at all."""
    with replacing(out) as temporary:
        fitting.write(temporary, ground.name, ground.origin.revision)
        (temporary / "README.md").write_text(card(out.name, ground, fitting.report, story, content, recipe), "utf-8")
        write_json(temporary / record, listed(told, [record, *(path.name for path in temporary.iterdir())]))


def card(name: str, ground: Ground, report: AdapterReport, story: str, content: Mapping[str, str], recipe: Any = None) -> str:
    """The model card of an adapter, in Markdown with the Hub's front matter.

    story: a sentence on where it comes from. content: what was read -> the digest of its tensors.
    """
    front = {**({"base_model": ground.name} if ground.on_hub else {}), "library_name": "peft", "tags": ["lora", "asterism"]}
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", "",
        f"A LoRA adapter of {ground.origin}: {story} Made with asterism {version('asterism')}.", "",
        "| matrices | number | rank | relative error |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [f"| {' | '.join(row)} |" for row in rows(report)]
    lines += ["", "Relative error: |D - B A| / |D| in Frobenius norm, D what the adapter stands for; matrices of a kind as one.", ""]
    if report.left_out:
        lines += [f"{left_out(report)}.", ""]
    lines += ["| read | content |", "| --- | --- |", *(f"| {source} | `{digest[:16]}` |" for source, digest in content.items()), ""]
    lines += ["Content: a digest of the tensors that went in, whatever files they lie in.", ""]
    if recipe is not None:
        lines += ["## Recipe", "", "```yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(), "```", ""]
    return "\n".join(lines)


def rows(report: AdapterReport) -> list[tuple[str, str, str, str]]:
    """A line for every kind of matrix, one for all: name, how many, rank, relative error."""
    parts = {**report.kinds(), "all": report}
    return [(kind, str(len(part.ranks)), _span(part), f"{part.error:.2g}") for kind, part in parts.items()]


def left_out(report: AdapterReport) -> str:
    """What no adapter can hold, in words, and what it costs."""
    return f"Left out, for no LoRA holds it (norm of the change): {largest(report)}; with it the relative error is {report.lost:.2g}"


def largest(report: AdapterReport) -> str:
    """The largest changes that no adapter can hold, by name."""
    names = sorted(report.left_out, key=lambda name: -report.left_out[name])
    told = ", ".join(f"{name} ({report.left_out[name]:.2g})" for name in names[:3])
    return told + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _span(report: AdapterReport) -> str:
    low, high = min(report.ranks.values()), max(report.ranks.values())
    return str(low) if low == high else f"{low} to {high}"
