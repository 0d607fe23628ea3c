"""The tasks of the experiment, and the texts that its backbones are trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random

from asterism.core.corpus import GENERAL, placed_rows, read_texts
from asterism.core.errors import DataError, UnknownName
from asterism.core.storage import digest_of
from asterism.demo.corpus import build_corpus
from asterism.demo.slots import ASKED, other_kinds, slot_examples
from asterism.models.examples import Example, read_examples
from experiments.constellation.rung import Scratch
from experiments.fuse.recipe import Recipe

SLOTS = "slots-"
"""How the generator's tasks begin: `slots-medical`."""
INSTRUCT = ("codealpaca", "gsm8k", "nl2bash")
GLUE = {
    "agnews": "What is the topic: World, Sports, Business or Sci/Tech?",
    "sst2": "Is the opinion negative or positive?",
    "cola": "Is the sentence acceptable or unacceptable?",
}
"""Set of single sentences -> what is asked below them."""
UIE = {
    "mit-movie": "mit-movie_sample300", "findvehicle": "FindVehicle_sample300", "multinerd": "MultiNERD_sample300",
    "conll04": "RE_conll04_sample300", "tweetner7": "TweetNER7_sample_15000_sample300", "fabner": "FabNER_sample300",
}  # fmt: skip
"""Extraction set -> its file. It has no held-out split: a third of it is held out here."""
COMMON, COPIED = 5, 14
"""How often a word occurs that copies are made of, and how many words an example of copying has at least."""
TASKS = (*(f"{SLOTS}{domain}" for domain in ASKED), *UIE, *GLUE, *INSTRUCT)


@dataclass(frozen=True)
class TaskData:
    """The examples of one task. `chosen` choose and are trained on by nobody; `tested` were held out by the data."""

    name: str
    train: list[Example]
    chosen: list[Example]
    tested: list[Example]


@dataclass(frozen=True)
class Data:
    """Every task, and the backbones' texts."""

    tasks: dict[str, TaskData]
    texts: list[str]
    copies: list[Example]
    """What the backbones learn to copy from after the texts."""
    instructed: list[Example]
    """What they are tuned on in the end."""

    def digest(self) -> str:
        """Of everything."""
        rows = {name: [[row.prompt, row.response] for row in (*own.train, *own.chosen, *own.tested)] for name, own in self.tasks.items()}
        return digest_of(rows, self.backbones())

    def backbones(self) -> str:
        """Digest of what the backbones learn."""
        return digest_of(self.texts, *([[row.prompt, row.response] for row in rows] for rows in (self.copies, self.instructed)))


def read_data(recipe: Recipe, folders: Sequence[Path]) -> Data:
    """All tasks of the recipe and the backbones' texts. UnknownName for a task that there is none of, DataError for what folders lack."""
    tasks = {name: task(name, recipe, folders) for name in recipe.all_tasks}
    if not any(isinstance(family.start, Scratch) for family in recipe.families.values()):
        return Data(tasks, [], [], [])  # pretrained backbones are taken as they are
    apart = {row for own in tasks.values() for row in (*own.chosen, *own.tested)}
    texts = backbone_texts(recipe, folders, apart)
    copied = copies(texts, recipe.texts.copies)
    return Data(tasks, texts, copied, instructions(recipe, folders, copied))


def task(name: str, recipe: Recipe, folders: Sequence[Path]) -> TaskData:
    """One task; the draws are the same for every seed. DataError where it has too few examples."""
    if name.startswith(SLOTS):
        domain, count = name.removeprefix(SLOTS), recipe.trained + recipe.validation
        train = read_examples(slot_examples(domain, count))
        tested = read_examples(slot_examples(domain, recipe.tested, heldout=True))
    elif name in UIE:
        rows = [Example(row.prompt, row.response.strip()) for row in read_examples(_file(folders, f"uie/{UIE[name]}"))]
        rows = _fitting(rows, recipe)
        cut = len(rows) // 3
        train, tested = rows[cut:], rows[: min(cut, recipe.tested)]
    elif name in GLUE or name in INSTRUCT:
        train, held_out = (_fitting(_split(name, split, folders), recipe) for split in ("train", "heldout"))
        tested = Random(f"tested:{name}").sample(held_out, min(recipe.tested, len(held_out)))
    else:
        raise UnknownName("task", name, TASKS)
    train = [row for row in dict.fromkeys(train) if row not in set(tested)]
    Random(f"chosen:{name}").shuffle(train)
    if len(train) < 2 * recipe.validation or not tested:
        met = f"{name}: {len(train)} examples to train on, {len(tested)} held out; {recipe.validation} are to choose"
        raise DataError("A task has too few examples.", met=met, mend="give more; lower `validation` or raise `characters`")
    return TaskData(name, train[recipe.validation :][: recipe.trained], train[: recipe.validation], tested)


def backbone_texts(recipe: Recipe, folders: Sequence[Path], apart: set[Example]) -> list[str]:
    """General text, the generator's prose, instruction sets, and GLUE sentences; shuffled.

    Nothing of `apart`; of a GLUE set the sentences alone.
    """
    sizes = recipe.texts
    texts = _sample(read_texts(_file(folders, f"{GENERAL}.train")), sizes.general, "general")
    for own in build_corpus(seed=1, train=sizes.prose, heldout=0, cross=0).train.values():
        texts += own
    for name in (*INSTRUCT, *GLUE) if sizes.instruct else ():
        rows = [row for row in _split(name, "train", folders) if row not in apart and len(row.prompt + row.response) <= recipe.characters]
        told = [row.prompt.split("\n")[0] if name in GLUE else f"{row.prompt}\n{row.response}" for row in rows]
        texts += _sample(told, sizes.instruct, name)
    Random(0).shuffle(texts)
    return texts


def copies(texts: Sequence[str], count: int) -> list[Example]:
    """Words of the texts in random order, to be said again: `count` examples of 2 to 11 words, few words repeated often.

    Small models trained on text alone do not come to copy words that stand before them, which extraction asks for. Few words are learnt
    first, and then more.
    """
    counts = Counter(re.findall(r"[a-z]+", " ".join(texts).lower()))
    words = [word for word, times in sorted(counts.items()) if times >= COMMON]
    random, found = Random(0), []
    for _ in range(count):
        several = random.sample(words, min(len(words), int(2 * 6 ** random.random())))
        again = islice(cycle(several), max(len(several), COPIED - len(several)))
        found.append(Example(" ".join(several), " " + " ".join(again)))
    return found


def instructions(recipe: Recipe, folders: Sequence[Path], copied: Sequence[Example]) -> list[Example]:
    """Slot-filling of every domain by kinds that no expert is asked for, the recipe's further tasks, some of `copied` again; shuffled."""
    rows = list(copied[: recipe.texts.recalled])
    for domain in ASKED:
        known = f"{SLOTS}{domain}" in recipe.all_tasks
        kinds = other_kinds(domain) if known else [*ASKED[domain], *other_kinds(domain)]
        rows += read_examples(slot_examples(domain, recipe.texts.slots, kinds=kinds))
    for name, count in recipe.texts.instructed.items():
        own = task(name, recipe, folders)
        rows += [*own.train, *own.chosen][:count]
    Random(0).shuffle(rows)
    return rows


def replayed(data: Data, recipe: Recipe, tasks: Sequence[str], seed: int, share: float = 1.0) -> list[Example]:
    """The replay examples of these tasks: a draw of each by the seed, the same whoever else is replayed, or a share of it; shuffled."""
    rows = []
    for name in tasks:
        own = data.tasks[name].train
        drawn = Random(f"replay:{name}:{seed}").sample(own, min(recipe.replay, len(own)))
        rows += drawn[: max(1, round(share * len(drawn)))]
    Random(seed).shuffle(rows)
    return rows


def chosen(data: Data, tasks: Sequence[str]) -> list[Example]:
    """The validation examples of these tasks."""
    return [row for name in tasks for row in data.tasks[name].chosen]


def _split(name: str, split: str, folders: Sequence[Path]) -> list[Example]:
    if name in INSTRUCT:
        return read_examples(_file(folders, f"instruct.{name}.{split}"))
    rows = (row for _, row in placed_rows(_file(folders, f"glue/{name}.{split}")))
    return [Example(f"{row['sentence1'].strip()}\n{GLUE[name]}", row["label_text"]) for row in rows]


def _fitting(rows: Sequence[Example], recipe: Recipe) -> list[Example]:
    return [row for row in rows if len(row.prompt) + len(row.response) <= recipe.characters]


def _sample(texts: Sequence[str], count: int, key: str) -> list[str]:
    return Random(f"texts:{key}").sample(list(texts), min(count, len(texts)))


def _file(folders: Sequence[Path], stem: str) -> Path:
    """The file of a stem in one of the folders. DataError where none has it."""
    for folder in folders:
        for end in ("", ".gz"):
            if (path := folder / f"{stem}.jsonl{end}").is_file():
                return path
    raise DataError("The data lack a file.", met=f"{stem}.jsonl.gz", mend="give its folder with --data; README.md here says what it holds")
