"""Code that a model brings along: the modules that `auto_map` names go with a merge, or are told to be missing. Nothing of it is run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asterism.merge.sources import hub_id

_RELATIVE = re.compile(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+)\s*$)", re.MULTILINE)


@dataclass(frozen=True)
class Code:
    """What becomes of an `auto_map` in a copy of the files that it stands in."""

    auto_map: Mapping[str, Any]
    """The entries whose code can be found."""
    files: tuple[Path, ...]
    """The modules to be copied: those that are named, and what they import from beside them."""
    missing: Mapping[str, Any]
    """The entries whose code lies nowhere."""


def code_of(auto_map: Mapping[str, Any] | None, folder: Path) -> Code:
    """The code of a model's `auto_map` (auto class -> `module.Class`, a list of them, or `org/name--module.Class`, which stays).

    Of a model of the Hub no code is ever fetched: its entries then name that repository.
    """
    hub = hub_id(folder)
    kept, files, missing = {}, dict[Path, None](), {}
    for auto, value in (auto_map or {}).items():
        several = isinstance(value, list | tuple)
        found = [None if each is None else _settled(str(each), folder, hub) for each in (value if several else [value])]
        if any(each == "" for each in found):
            missing[auto] = value
            continue
        kept[auto] = found if several else found[0]
        for each in filter(None, found):
            if "--" not in each:
                files |= dict.fromkeys(_with_imports(folder, each.partition(".")[0]))
    return Code(kept, tuple(files), missing)


def _settled(named: str, folder: Path, hub: str | None) -> str:
    """How the copy names the class; nothing where its code lies nowhere."""
    module = named.partition(".")[0]
    if "--" in named or (module.isidentifier() and (folder / f"{module}.py").is_file()):
        return named
    return f"{hub}--{named}" if hub else ""


def _with_imports(folder: Path, *modules: str) -> Iterator[Path]:
    """The modules' files and those beside them that they import, each once."""
    met, waiting = set[str](), list(modules)
    while waiting:
        path = folder / f"{(module := waiting.pop())}.py"
        if module not in met and path.is_file():
            met.add(module)
            waiting += _imported(path.read_text("utf-8", errors="replace"))
            yield path


def _imported(text: str) -> Iterable[str]:
    return [one or other for one, other in _RELATIVE.findall(text)]
