"""What is written beside a fused adapter for machines (`fusion.json`) and for people (`README.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from asterism.core.storage import write_json

RECORD = "fusion.json"
FORMAT_VERSION = 1


def write_card(folder: Path, name: str, told: Mapping[str, Any]) -> None:
    """`fusion.json` and the card of an adapter called `name`."""
    write_json(folder / RECORD, told)
    (folder / "README.md").write_text(card(name, told), "utf-8")


def card(name: str, told: Mapping[str, Any]) -> str:
    """The card, in Markdown with the Hub's front matter."""
    target, settings = told["target"], told["settings"]
    front = {"base_model": target["base"] or target["model"], "library_name": "peft", "tags": ["lora", "fusion", "asterism"]}
    changed, ratios = len(told["slots"]), [slot["norm_ratio"] for slot in told["slots"] if slot["norm_ratio"] is not None]
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {name}", "",
        f"A LoRA adapter of {front['base_model']} that took knowledge from adapters on other backbones (HeteroFusion, arXiv:2604.01674), "
        f"made with asterism {told['asterism']}.", "",
        f"Target: {target['adapter']} (`{target['digest'][:16]}`). It changes {changed} modules"
        + (f", by {min(ratios):.1%} to {max(ratios):.1%} of their norm." if ratios else "."), "",
        "| source | rank | content | gates open |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for source, facts in told["sources"].items():
        opened = told["openness"].get(source)
        share = f"{opened['open']:.0%}" if opened else "no gates"
        lines.append(f"| {source} ({facts['adapter']}) | {facts['rank']} | `{facts['digest'][:16]}` | {share} |")
    examples, training = told["examples"], told["training"]
    measured = f"; held-out loss {told['start_loss']:.4f} before, {told['held_out_loss']:.4f} after" if "held_out_loss" in told else ""
    lines += [
        "", f"Trained on {examples['learnt']} replay examples, {examples['held_out']} held out, {training['steps']} steps{measured}.", "",
        "## Settings", "", "```yaml", yaml.safe_dump({"settings": settings, "training": training}, sort_keys=False).strip(), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
