"""Results as JSON that a person can read and git can compare: a row a line, six significant digits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asterism.core.storage import replacing


def write_compact(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, one row of a list a line, floats rounded to six significant digits."""

    def told(value: Any) -> str:
        return json.dumps(rounded(value), ensure_ascii=False, allow_nan=False)

    def section(value: Any) -> str:
        return "[\n" + ",\n".join(map(told, value)) + "\n]" if isinstance(value, list) and value else told(value)

    with replacing(path) as temporary:
        body = ",\n".join(f"{told(key)}: {section(value)}" for key, value in results.items())
        temporary.write_text("{\n" + body + "\n}\n", "utf-8")


def rounded(value: Any) -> Any:
    """The same value with every float rounded to six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value
