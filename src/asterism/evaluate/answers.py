"""The evaluation of answers: every candidate on every example, by the loss of the response and the mark of the answer it writes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asterism.core.errors import SettingsError, StorageError
from asterism.core.parts import Parts
from asterism.core.statistics import bootstrap_mean, bootstrap_ratio, ratio_gain
from asterism.core.storage import digest_of
from asterism.evaluate.answerers import Answerer, Task
from asterism.evaluate.marking import Marked, marked
from asterism.evaluate.results import FORMAT, read_results, write_results
from asterism.evaluate.settings import AnswerSettings
from asterism.evaluate.tables import tables

RIVALS = ("target", "control")
"""Whom every candidate is compared with, where they were scored."""
ALL = "all"
"""All tasks together, each of equal weight in the score."""
SHOWN = 3
"""Answers of each task that the results show whole."""


def evaluate_answers(
    candidates: Sequence[Answerer],
    tasks: Sequence[Task],
    settings: AnswerSettings | None = None,
    *,
    out: str | Path,
    rivals: Sequence[str] = RIVALS,
) -> dict[str, Any]:
    """Score every candidate on every example; leave `rows.parquet` and `results.json` in `out` and return the results.

    What a candidate has done of a task is kept until the results are written, so a killed run goes on where it stopped; it is used again
    as long as the candidate is `told` to be the same. An evaluation that lies finished in `out` is not repeated. Raises SettingsError for
    no candidates or tasks, or two of one name.
    """
    settings, out = settings or AnswerSettings(), Path(out)
    _check("candidate", [each.name for each in candidates])
    _check("task", [each.name for each in tasks])
    texts = {task.name: digest_of([[example.prompt, example.response] for example in task.examples], task.mark) for task in tasks}
    origin = {"candidates": {each.name: each.told for each in candidates}, "tasks": texts, "rivals": list(rivals)}
    if (lying := _finished(out, origin, settings)) is not None:
        return lying
    parts = Parts(out / ".parts", settings.digest())
    rows: list[dict[str, Any]] = []
    for candidate in candidates:
        for task in tasks:
            name = digest_of(candidate.name, candidate.told, task.name, texts[task.name])
            found = parts.tensors(name, lambda candidate=candidate, task=task: _done(candidate, task, settings))
            rows += _rows(candidate, task, found, settings)
        candidate.close()
    results = {
        "format_version": FORMAT,
        "scale": settings.scale,
        "seeds": [settings.seed],
        "settings": settings.model_dump(mode="json"),
        "origin": origin,
        "tasks": [{"name": task.name, "mark": task.mark, "about": task.about, "n": len(task.examples)} for task in tasks],
        "candidates": {each.name: each.about for each in candidates},
        **summary(rows, settings.scale, rivals),
        "answers": _answers(tasks, rows) if settings.write else [],
    }
    write_results(out, results, rows)
    parts.remove()
    return results


def summary(rows: Sequence[Mapping[str, Any]], scale: str, rivals: Sequence[str] = RIVALS) -> dict[str, list[dict[str, Any]]]:
    """What rows of one seed or of several say: `table` and `losses` as of `evaluate`, `scores` and `gains` of every candidate and task.

    table, losses: protocol `response` compares losses of the response, `answer` what an answer lacks of the full mark; group = task.
    scores: mark of a task's whole set (accuracy, micro F1) and mean loss, with intervals over texts. gains: what a candidate's score is
    above a rival's on the same texts, and its loss below. Task "all" weighs tasks alike in the score. Seed "all": each text once.
    """
    written = [row for row in rows if row["possible"] is not None]
    plain = [_compared(row, "response", row["loss"]) for row in rows]
    plain += [_compared(row, "answer", 1.0 - Marked(row["gained"], row["possible"]).share) for row in written]
    table, losses = tables(plain, scale, rivals)
    seeds: list[Any] = sorted({row["seed"] for row in rows})
    scores, gains = [], []
    for seed in [*seeds, ALL] if len(seeds) > 1 else seeds:
        chosen = [row for row in rows if seed in (ALL, row["seed"])]
        cells = _cells(chosen)
        names = list(dict.fromkeys(row["task"] for row in chosen))
        for task in [ALL, *names] if len(names) > 1 else names:
            for candidate in cells:
                own = [cells[candidate][name] for name in (names if task == ALL else [task])]
                where = {"scale": scale, "seed": seed, "task": task, "candidate": candidate}
                scores.append(where | _score(own))
                gains += [
                    where | {"rival": rival} | _gain(own, [cells[rival][name] for name in (names if task == ALL else [task])])
                    for rival in rivals
                    if rival in cells and rival != candidate
                ]
    return {"table": table, "losses": losses, "scores": scores, "gains": gains}


class _Cell:
    """One candidate's figures on the texts of one task, each text's averaged over seeds: columns [n]."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        of: dict[Any, list[Mapping[str, Any]]] = {}
        for row in rows:
            of.setdefault(row["probe"], []).append(row)
        self.mark = rows[0]["mark"]
        self.losses = np.array([np.mean([row["loss"] for row in own]) for own in of.values()])
        self.nats, self.characters = sum(row["nats"] for row in rows), sum(row["characters"] for row in rows)
        self.marks = None
        if rows[0]["possible"] is not None:
            self.marks = tuple(np.array([np.mean([row[name] for row in own]) for own in of.values()]) for name in ("gained", "possible"))


def _cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, _Cell]]:
    """candidate -> task -> its figures."""
    of: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        of.setdefault((row["candidate"], row["task"]), []).append(row)
    found: dict[str, dict[str, _Cell]] = {}
    for (candidate, task), own in of.items():
        found.setdefault(candidate, {})[task] = _Cell(own)
    return found


def _score(cells: Sequence[_Cell]) -> dict[str, Any]:
    losses = np.concatenate([cell.losses for cell in cells])
    loss, low, high = bootstrap_mean(losses)
    found: dict[str, Any] = {"n": len(losses), "mark": cells[0].mark if len({cell.mark for cell in cells}) == 1 else "mean"}
    score = bootstrap_ratio([cell.marks for cell in cells]) if all(cell.marks for cell in cells) else (None, None, None)  # pyright: ignore
    found |= dict(zip(("score", "low", "high"), score, strict=True))
    per_character = sum(cell.nats for cell in cells) / max(1, sum(cell.characters for cell in cells))
    return found | {"loss": loss, "loss_low": low, "loss_high": high, "nats_per_character": per_character}


def _gain(own: Sequence[_Cell], rival: Sequence[_Cell]) -> dict[str, Any]:
    saved, low, high = bootstrap_mean(np.concatenate([b.losses - a.losses for a, b in zip(own, rival, strict=True)]))
    found: dict[str, Any] = {"n": sum(len(cell.losses) for cell in own)}
    both = all(cell.marks for cell in (*own, *rival))
    gain = ratio_gain([cell.marks for cell in own], [cell.marks for cell in rival]) if both else (None, None, None)  # pyright: ignore
    return found | dict(zip(("gain", "low", "high"), gain, strict=True)) | {"saved": saved, "saved_low": low, "saved_high": high}


def _compared(row: Mapping[str, Any], protocol: str, loss: float) -> dict[str, Any]:
    """A row as `tables` reads it."""
    kept = {name: row[name] for name in ("seed", "probe", "candidate")}
    return kept | {"protocol": protocol, "task": "answers", "group": row["task"], "loss": loss}


def _done(candidate: Answerer, task: Task, settings: AnswerSettings) -> dict[str, torch.Tensor]:
    """What a candidate makes of a task, as tensors: nats and tokens [n] of every response, and its answers' bytes one behind another."""
    losses = candidate.losses(task, settings)
    found = {
        "nats": torch.stack([own.double().sum() for own in losses]),
        "tokens": torch.tensor([len(own) for own in losses]),
    }
    if settings.write:
        texts = [text.encode() for text in candidate.write(task, settings)]
        found |= {"sizes": torch.tensor([len(text) for text in texts]), "bytes": torch.tensor(list(b"".join(texts)), dtype=torch.uint8)}
    return found


def _rows(candidate: Answerer, task: Task, found: Mapping[str, torch.Tensor], settings: AnswerSettings) -> list[dict[str, Any]]:
    rows = []
    texts = _texts(found) if settings.write else [None] * len(task.examples)
    for place, (example, answer) in enumerate(zip(task.examples, texts, strict=True)):
        nats, tokens = float(found["nats"][place]), int(found["tokens"][place])
        gained, possible = marked(task.mark, answer, example.response) if answer is not None else (None, None)
        rows.append(
            {
                "scale": settings.scale, "seed": settings.seed, "task": task.name, "mark": task.mark, "probe": f"{task.name}-{place}",
                "candidate": candidate.name, "nats": nats, "tokens": tokens, "characters": len(example.response),
                "loss": nats / max(1, tokens), "answer": answer, "gained": gained, "possible": possible,
            }
        )  # fmt: skip
    return rows


def _texts(found: Mapping[str, torch.Tensor]) -> list[str]:
    whole, ends = bytes(found["bytes"].tolist()), torch.cumsum(found["sizes"], dim=0).tolist()
    return [whole[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]


def _finished(out: Path, origin: Mapping[str, Any], settings: AnswerSettings) -> dict[str, Any] | None:
    """The results that lie in `out`, if they are whole and of this very evaluation."""
    try:
        lying, _ = read_results(out)
    except (StorageError, OSError):
        return None
    same = digest_of(lying.get("origin"), lying.get("settings")) == digest_of(origin, settings.model_dump(mode="json"))
    return lying if same else None


def _answers(tasks: Sequence[Task], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The first texts of each task, with what was wanted and what each candidate wrote."""
    shown = []
    for task in tasks:
        for place, example in enumerate(task.examples[:SHOWN]):
            own = {row["candidate"]: row["answer"] for row in rows if row["probe"] == f"{task.name}-{place}"}
            shown.append({"task": task.name, "prompt": example.prompt, "wanted": example.response, "answers": own})
    return shown


def _check(kind: str, names: Sequence[str]) -> None:
    if not names or len(set(names)) != len(names):
        twice = next((name for name in names if list(names).count(name) > 1), "none")
        raise SettingsError(f"An evaluation has one {kind} or more, each of its own name.", met=twice, mend=f"give each {kind} once")
