"""A target with a sibling on its backbone, a source of another family with its whole model, and replay rows: what rivals are made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asterism.models.examples import Example
from tests import tiny
from tests.vocabularies import larger

WANTED = {"medical": " name: patient", "legal": " name: court"}
DATA = [Example(text, WANTED[part]) for part in WANTED for text in tiny.PROBES[part]]
TEST = [Example(text, " name: nobody") for text in tiny.PROBES["general"]]


def made(root: Path) -> Path:
    """Write `llama` with adapters `llama-names` and `llama-films`, `gpt2` of another vocabulary with `gpt2-names`; replay and test rows."""
    tiny.save(tiny.tiny_model("llama"), root / "llama")
    for seed, name in enumerate(("names", "films")):
        tiny.save_lora(tiny.tiny_model("llama"), root / f"llama-{name}", seed, rank=2, base=str(root / "llama"))
    other = tiny.tiny_model("gpt2", 5, vocab_size=len(larger()))
    other.save_pretrained(root / "gpt2")
    larger().save_pretrained(root / "gpt2")
    tiny.save_lora(other, root / "gpt2-names", 6, rank=3, base=str(root / "gpt2"))
    for name, examples in (("rows", DATA), ("test", TEST[:3])):
        rows = [json.dumps({"prompt": example.prompt, "response": example.response}) + "\n" for example in examples]
        (root / f"{name}.jsonl").write_text("".join(rows))
    return root


def content(**more: Any) -> dict[str, Any]:
    """The recipe of a short fusion."""
    return {
        "target": {"model": "llama", "adapter": "llama-names"},
        "sources": [{"name": "gpt2", "model": "gpt2", "adapter": "gpt2-names"}],
        "data": ["rows.jsonl"],
        "settings": {"width": 16, "heads": 2, "block": 16, "projections": 8},
        "training": {"method": "lora", "steps": 4, "batch_size": 2, "accumulation": 1, "max_length": 64, "learning_rate": 1e-2},
        "held_out": 0.25,
        **more,
    }
