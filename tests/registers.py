"""What tests of claims and of the documents made from results share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outcomes(register: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    """Claim -> held, not held or undecided."""
    return {claim.id: verdict.outcome for claim, verdict in register}
