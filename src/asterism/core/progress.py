"""One progress bar for all long work: rate and time left on stderr, silent under `quiet()` or without a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_quiet: ContextVar[bool] = ContextVar("asterism_quiet", default=False)


@contextmanager
def quiet(on: bool = True) -> Iterator[None]:
    """Silence progress inside the block."""
    token = _quiet.set(on)
    try:
        yield
    finally:
        _quiet.reset(token)


def is_quiet() -> bool:
    """Whether progress is silenced here."""
    return _quiet.get()


def track(items: Iterable[T], what: str, total: float | None = None) -> Iterator[T]:
    """Yield `items`, showing how many are done, the rate and the time left."""
    with counting(what, total if total is not None else _length(items)) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def counting(what: str, total: float | None):
    """A bar advanced by hand: `with counting("tokens", n) as advance: advance(k)`."""
    if _quiet.get():
        yield lambda amount=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _rate_column(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount=1: bar.advance(task, amount)


def _rate_column():
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        """Items a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.3g}/s" if speed else "")

    return Rate()


def _length(items: Iterable) -> float | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
