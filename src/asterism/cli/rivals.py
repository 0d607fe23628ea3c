"""What `asterism fuse` does beside fusing: the evaluation with rivals, its tables and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asterism.cli.options import Given
from asterism.cli.places import named
from asterism.core.errors import SettingsError
from asterism.core.storage import check_writable
from asterism.evaluate.settings import AnswerSettings

if TYPE_CHECKING:
    from asterism.evaluate.answerers import Task
    from asterism.fuse.recipe import Recipe


def check_asked(out: Path | None, tests: Sequence[str], **options: Any) -> None:
    """SettingsError for options that need what was not given, tests or something fused; StorageError for a page that cannot be written."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if out is None and (tests or given):
        met = ", ".join([*(["--test"] if tests else []), *given])
        raise SettingsError("Only what is fused can be compared.", met=met, mend="give OUT in the place of --show-alignment")
    if lacking := [name for name in given if name != "--report" and not tests]:
        mend = "give --test NAME=FILE, rows with a prompt and a response; it may be repeated"
        raise SettingsError("Rivals are compared on examples of their own.", met=f"{lacking[0]} without --test", mend=mend)
    if options.get("report") is not None:
        check_writable(options["report"])


@dataclass(frozen=True)
class Contest:
    """On what and against whom a fusion is compared."""

    tasks: tuple[Task, ...]
    rivals: tuple[str, ...]
    family: Mapping[str, str]


def contest(recipe: Recipe, tests: Sequence[str], rivals: str | None, family: str | None) -> Contest | None:
    """Tests of the form NAME=FILE or FILE, rivals and family in comma-separated lists, all checked; None without tests."""
    if not tests:
        return None
    from asterism.evaluate.answerers import Task
    from asterism.evaluate.fusion import check
    from asterism.models.examples import read_examples

    places = named("test", [text if "=" in text else f"{_stem(text)}={text}" for text in tests], "--test movies=movies.jsonl")
    tasks = tuple(Task.of(name, read_examples(place)) for name, place in places.items())
    asked = tuple(name.strip() for name in rivals.split(",") if name.strip()) if rivals else ()
    adapters = named("family adapter", family.split(",") if family else (), "--family news=adapters/news")
    check(recipe, tasks, asked, adapters)
    return Contest(tasks, asked, adapters)


def compared(recipe: Recipe, out: Path, found: Contest, given: Given) -> dict[str, Any]:
    """The results of `evaluate.fusion.compare`."""
    from asterism.evaluate.fusion import compare

    settings = given.settings(AnswerSettings)
    return compare(recipe, out, found.tasks, found.rivals, settings, family=found.family, device=given.device)


def reported(stages: Mapping[str, Any], results: Mapping[str, Any] | None, place: Path) -> Path:
    """Write the page of a fusion."""
    from asterism.report.fusion import write_fusion

    return write_fusion({"stages": stages} | ({"results": results} if results else {}), place)


def score_tables(results: Mapping[str, Any]) -> None:
    """What was found in words, then a table for all tasks and each."""
    from asterism.cli.output import line, table
    from asterism.report import scores

    for said in scores.verdict(results):
        line(said)
    for title, columns, rows in scores.score_tables(results):
        table(title, columns, rows)


def _stem(text: str) -> str:
    """A file's name without what follows its first dot."""
    return Path(text).name.partition(".")[0] or text
