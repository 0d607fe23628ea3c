"""Made-up data for the experiment on fusion, in the form of its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

from tests.route_sample import MAKERS, NAMES, THINGS

LABELS = {"agnews": ("World", "Sports", "Business"), "sst2": ("negative", "positive"), "cola": ("acceptable", "unacceptable")}


def write_data(folder: Path, train: int = 24, heldout: int = 8) -> None:
    """Every file that the experiment reads, under `folder`."""
    for stem in ("general", "instruct.gsm8k", "instruct.codealpaca", "instruct.nl2bash"):
        random = Random(stem)
        for split, count in (("train", train), ("heldout", heldout)):
            _write(folder / f"{stem}.{split}.jsonl", (MAKERS[stem](random, number) for number in range(count)))
    for name, labels in LABELS.items():
        random = Random(name)
        for split, count in (("train", train), ("heldout", heldout)):
            _write(folder / "glue" / f"{name}.{split}.jsonl", (_labelled(random, labels, f"{split} {number}") for number in range(count)))
    random = Random("movie")
    _write(folder / "uie" / "mit-movie_sample300.jsonl", (_movie(random, number) for number in range(train)))


def _labelled(random: Random, labels: tuple[str, ...], where: str) -> dict:
    return {"sentence1": f"{random.choice(NAMES)} has {where} {random.choice(THINGS)} .", "label_text": random.choice(labels)}


def _movie(random: Random, number: int) -> dict:
    who, what = random.choice(NAMES), random.choice(THINGS)
    text = f"show me movie {number} about {what} with {who}"
    asked = f'List all entity words.Output format is "type1: word1; type2: word2". \nText: {text} \nAnswer:'
    return {"instruction": asked, "input": text, "output": f" actor: {who}; plot: {what}"}


def _write(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
