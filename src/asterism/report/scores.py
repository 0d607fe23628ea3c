"""What an evaluation of answers says, in words and rows: for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asterism.report.findings import listed

Table = tuple[str, tuple[str, ...], list[list[str]]]
"""Title, columns, rows."""
ALL = "all"
NAMES = {
    "target": "target",
    "fused": "fused",
    "control": "control",
    "fusellm": "FuseLLM",
    "gac": "GAC",
    "unite": "UniTE",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "dare_ties": "DARE + TIES",
    "breadcrumbs": "Breadcrumbs",
    "della": "DELLA",
    "emr": "EMR",
}
MEASURES = {"label": "accuracy", "items": "micro F1", "number": "accuracy", "exact": "exact match", "mean": "mean score"}


def called(name: str) -> str:
    """A candidate's name as tables and figures show it."""
    return NAMES.get(name, name.replace("_", " "))


def of_all_seeds(results: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """Rows of `scores` or `gains` over all seeds together, where there are several."""
    seeds = {row["seed"] for row in results[part]}
    chosen = ALL if ALL in seeds else next(iter(seeds), None)
    return [row for row in results[part] if row["seed"] == chosen]


def tasks_of(results: Mapping[str, Any]) -> list[str]:
    """All tasks together first, where there are several, then each."""
    names = [task["name"] for task in results["tasks"]]
    return [ALL, *names] if len(names) > 1 else names


def score_tables(results: Mapping[str, Any]) -> list[Table]:
    """For each task, best first: the score with its interval, what it is above the target's and the control's, and the loss.

    Where no answers were written the gains are in loss.
    """
    scores, gains = of_all_seeds(results, "scores"), of_all_seeds(results, "gains")
    rivals = [name for name in results["candidates"] if any(row["rival"] == name for row in gains)]
    found = []
    for task in tasks_of(results):
        own = ranked([row for row in scores if row["task"] == task])
        what = f"{task_title(task)} ({MEASURES[own[0]['mark']]}, %; n = {own[0]['n']})"
        rows = []
        for row in own:
            beside = {each["rival"]: each for each in gains if each["task"] == task and each["candidate"] == row["candidate"]}
            rows.append([called(row["candidate"]), _told(row), *(_gain(beside.get(rival)) for rival in rivals), f"{row['loss']:.3f}"])
        columns = ("candidate", "score", *(f"over {called(rival)}" for rival in rivals), "loss")
        found.append((what, columns, rows))
    return found


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best first: by score, or by loss where no answers were written."""
    return sorted(rows, key=lambda row: row["loss"] if row["score"] is None else -row["score"])


def task_title(task: str) -> str:
    """A task's name as a heading."""
    return "All tasks, of equal weight" if task == ALL else task


def verdict(results: Mapping[str, Any], name: str = "fused") -> list[str]:
    """What the fused adapter gains over the target alone and over the control, a sentence each; by loss where nothing was written."""
    scores, gains = of_all_seeds(results, "scores"), of_all_seeds(results, "gains")
    task = tasks_of(results)[0]
    own = next((row for row in scores if row["candidate"] == name and row["task"] == task), None)
    if own is None:
        return []
    beside = {row["rival"]: row for row in gains if row["candidate"] == name and row["task"] == task}
    where = f"On {own['n']} texts of {listed([each['name'] for each in results['tasks']])}"
    if own["score"] is None:
        said = [f"{where} the fused adapter loses {own['loss']:.3f} nats a token of the response."]
    else:
        said = [f"{where} the fused adapter scores {100 * own['score']:.1f}\u00a0% ({100 * own['low']:.1f} to {100 * own['high']:.1f})."]
    words = {"target": "the target adapter as it was", "control": "the control, which learnt from the same data without sources"}
    for rival, phrase in words.items():
        if rival in beside:
            said.append(_beside(beside[rival], phrase, last=rival == "control"))
    return said


def _beside(row: Mapping[str, Any], phrase: str, *, last: bool) -> str:
    by_score = row["gain"] is not None
    gain, low, high = (
        (100 * row[key] for key in ("gain", "low", "high")) if by_score else (row[key] for key in ("saved", "saved_low", "saved_high"))
    )
    unit, form = ("points", ".1f") if by_score else ("nats a token", ".3f")
    interval = f"95\u00a0% interval {low:{form}} to {high:{form}}".replace("-", "−")
    if low > 0:
        return f"That is {gain:{form}} {unit} better than {phrase} ({interval})" + ("." if not last else ": the sources do matter.")
    if high < 0:
        return f"That is {-gain:{form}} {unit} worse than {phrase} (gain {interval})" + ("." if not last else ": the sources do harm.")
    end = "so these texts do not show that the sources matter." if last else "so these texts do not decide between them."
    return f"Beside {phrase}, the gain is {gain:{form}} {unit} ({interval}), {end}".replace(" -", " −")


def _told(row: Mapping[str, Any]) -> str:
    if row["score"] is None:
        return ""
    return f"{100 * row['score']:.1f} ({100 * row['low']:.1f}–{100 * row['high']:.1f})"


def _gain(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    if row["gain"] is None:
        return f"{row['saved']:+.3f} ({row['saved_low']:+.3f}…{row['saved_high']:+.3f})"
    return f"{100 * row['gain']:+.1f} ({100 * row['low']:+.1f}…{100 * row['high']:+.1f})"
