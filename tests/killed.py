"""An experiment's command, killed on its road and run again, with the calls that each run made counted."""

from __future__ import annotations

import gc
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asterism.core.progress import quiet


@contextmanager
def killed_and_resumed(
    main: Callable[[list[str]], None], root: Path, count: Callable[..., None], killed_at: int, *more: str
) -> Iterator[SimpleNamespace]:
    """One seed at pocket scale on `root`/data, interrupted and finished in a second run: folders, arguments, results, calls of each run.

    count: (patch, calls, killed_at or None) -> None, see `counting`.
    """
    asked = ["--data", str(root / "data"), "--scale", "pocket", "--out", str(root / "runs"), "--seeds", "42", "--threads", "1", *more]
    calls = [Counter(), Counter()]
    gc.collect()
    gc.freeze()  # every training collects garbage: what is older than this test is left out of it
    with quiet():
        with pytest.MonkeyPatch.context() as patch:
            count(patch, calls[0], killed_at)
            with pytest.raises(KeyboardInterrupt):
                main(asked)
        assert not (root / "runs" / "pocket" / "results.json").exists()
        with pytest.MonkeyPatch.context() as patch:
            count(patch, calls[1])
            main(asked)
    yield SimpleNamespace(root=root, runs=root / "runs" / "pocket", asked=asked, calls=calls, results=read(root))
    gc.unfreeze()


def read(root: Path) -> dict:
    """The results that the run left."""
    return json.loads((root / "runs" / "pocket" / "results.json").read_text("utf-8"))


def counting(module: Any, names: Sequence[str], last: str) -> Callable[..., None]:
    """Counts the calls of a module's functions; the call of `last` that is numbered `killed_at` ends the program."""

    def count(patch: pytest.MonkeyPatch, calls: Counter, killed_at: int | None = None) -> None:
        for name in names:
            patch.setattr(module, name, counted(name, getattr(module, name), calls, killed_at))

    def counted(name: str, real: Callable[..., Any], calls: Counter, killed_at: int | None) -> Callable[..., Any]:
        def call(*given, **named):
            calls[name] += 1
            if name == last and calls[name] == killed_at:
                raise KeyboardInterrupt
            return real(*given, **named)

        return call

    return count
