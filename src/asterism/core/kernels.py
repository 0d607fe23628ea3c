"""The C kernels beside this file, where they were built."""

from __future__ import annotations

import importlib
from typing import Any


def kernel(name: str) -> Any:
    """A kernel's module; None where there was no compiler at installation, or under another interpreter."""
    try:
        return importlib.import_module(f"asterism.core.{name}")
    except ImportError:
        return None
