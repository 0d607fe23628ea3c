"""Made-up text for the experiment on routing, in the form of its data: problems, code, commands, and what needs two of them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn")
THINGS = ("apples", "books", "coins", "pens", "stamps", "cups")


def write_data(folder: Path, train: int = 60, heldout: int = 12) -> None:
    """Every file that the experiment reads, under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, make in MAKERS.items():
        random = Random(stem)
        for split, count in (("train", train), ("heldout", heldout)):
            rows = [make(random, number) for number in range(count)]
            (folder / f"{stem}.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def _numbers(random: Random) -> tuple[str, str, int, int]:
    return random.choice(NAMES), random.choice(THINGS), random.randint(2, 90), random.randint(2, 90)


def _general(random: Random, number: int) -> dict:
    name, thing, first, second = _numbers(random)
    return {
        "text": f"{name} is a town of {first} hundred people in the north. It trades in {thing} and has {second} old houses ({number})."
    }


def _math(random: Random, number: int) -> dict:
    name, thing, first, second = _numbers(random)
    asked = f"{name} has {first} {thing} and buys {second} more. How many {thing} does {name} have?"
    return {"id": number, "prompt": asked, "response": f"{name} has {first} + {second} = {first + second} {thing}.\n#### {first + second}"}


def _code(random: Random, number: int) -> dict:
    _, thing, first, _ = _numbers(random)
    return {
        "prompt": f"Write a function that counts {thing}, at most {first}.",
        "response": f"def count(items):\n    return min(len(items), {first})",
    }


def _bash(random: Random, number: int) -> dict:
    _, thing, first, _ = _numbers(random)
    return {
        "prompt": f"Find all files named {thing} in folder {first}.",
        "response": f'find ./{first} -type f -name "{thing}*" | xargs grep -l {thing}',
    }


def _cross(random: Random, number: int) -> dict:
    row = _math(random, number)
    numbers = [word for word in row["prompt"].split() if word.isdigit()]
    return row | {"response": f"def solution():\n    have = {numbers[0]}\n    more = {numbers[1]}\n    return have + more"}


def _python(random: Random, number: int) -> dict:
    _, thing, first, second = _numbers(random)
    read = f"    return open(path).read().split()[: limit + {second}]"
    return {"text": f'def take_{thing}(path: str, limit: int = {first}) -> list:\n    """The first {thing} of a file."""\n{read}'}


MAKERS = {
    "general": _general, "instruct.gsm8k": _math, "instruct.codealpaca": _code, "instruct.nl2bash": _bash,
    "instruct.gsmhard": _cross, "instruct.mbpp": _code, "code": _python,
}  # fmt: skip
