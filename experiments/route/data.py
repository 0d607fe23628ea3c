"""The texts of the experiment: what the generalist, the experts and the targets are made of, from folders or from the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from asterism.core.corpus import GENERAL, read_texts
from asterism.core.errors import DataError
from asterism.core.storage import digest_of
from asterism.models.datasets import dataset_texts
from experiments.route.recipe import Recipe

FILES = {
    GENERAL: "general", "math": "instruct.gsm8k", "code": "instruct.codealpaca", "code2": "instruct.nl2bash",
    "cross": "instruct.gsmhard", "domain1": "instruct.mbpp", "domain2": "code",
}  # fmt: skip
"""What is read -> the stem of its files, `<stem>.train.jsonl.gz` and `<stem>.heldout.jsonl.gz`."""
EXPERTS = ("math", "code", "code2")
TARGETS = {"cross": ("math", "code"), "domain1": ("code", "code2"), "domain2": ("code", "code2")}
"""Target -> the two experts that are combined for it: one that needs both domains, and two inside one."""
HELDOUT = 0.1
"""Share of a data set of the Hub that is held out, its end."""
SHORTEST = 32
"""Characters of a text that is used: a shorter one may have too few tokens to be scored by halves."""


@dataclass(frozen=True)
class Data:
    """Training and held-out texts of `general`, each expert and each target."""

    train: dict[str, list[str]]
    heldout: dict[str, list[str]]

    def digest(self) -> str:
        """Of all texts."""
        return digest_of(self.train, self.heldout)


@dataclass(frozen=True)
class Target:
    """A task that two experts are combined for. Its adaptation set is `adapt` and `chosen`; `tested` was held out by the data."""

    name: str
    pair: tuple[str, str]
    adapt: list[str]
    """What routers and fine-tuning are trained on."""
    chosen: list[str]
    """What chooses: shares, rates, settings of merges."""
    tested: list[str]
    """What is reported."""


def read_data(recipe: Recipe, folders: Sequence[Path]) -> Data:
    """The texts of the recipe's data sets, or else of the folders. DataError naming what they lack."""
    if recipe.texts:
        return _from_hub(recipe)
    data, missing = Data({}, {}), []
    for name, stem in FILES.items():
        for split, into in (("train", data.train), ("heldout", data.heldout)):
            found = [path for folder in folders for end in ("", ".gz") if (path := folder / f"{stem}.{split}.jsonl{end}").is_file()]
            into[name] = [text for path in found for text in read_texts(path) if len(text) >= SHORTEST]
            missing += [] if into[name] else [f"{stem}.{split}.jsonl.gz"]
    if missing:
        mend = "give every folder with --data; README.md here says where the text comes from"
        raise DataError("The data lack text.", met=f"no {', '.join(missing)}", mend=mend)
    return data


def target(data: Data, recipe: Recipe, name: str) -> Target:
    """A target's texts; the draws are the same for every seed. DataError where its adaptation set is too small to be split."""
    order = list(data.train[name])
    Random(f"chosen:{name}").shuffle(order)
    if len(order) < 2 * recipe.chosen:
        met = f"{len(order)} texts of {name}, {recipe.chosen} of them to choose by"
        raise DataError("An adaptation set is too small to be split.", met=met, mend="give more texts, or lower `chosen` in the recipe")
    tested = Random(f"tested:{name}").sample(data.heldout[name], min(recipe.tested, len(data.heldout[name])))
    return Target(name, TARGETS[name], order[recipe.chosen :], order[: recipe.chosen], tested)


def generalist_texts(data: Data, share: float) -> list[str]:
    """General text and a share of each expert's, shuffled; none of any target's."""
    texts = list(data.train[GENERAL])
    for name in EXPERTS if share else ():
        texts += data.train[name][: max(1, round(share * len(data.train[name])))]
    Random(0).shuffle(texts)
    return texts


def mixed_texts(data: Data, name: str, seed: int) -> list[str]:
    """An expert's training text and about as many characters of general text, shuffled: the data mix."""
    own, general = list(data.train[name]), list(data.train[GENERAL])
    Random(seed).shuffle(general)
    wanted = sum(map(len, own))
    while general and wanted > 0:
        own.append(general.pop())
        wanted -= len(own[-1])
    Random(seed).shuffle(own)
    return own


def _from_hub(recipe: Recipe) -> Data:
    """Every data set in its own order, exact doubles dropped, its end held out."""
    missing = [name for name in FILES if not recipe.texts.get(name)]
    if missing:
        raise DataError("The recipe names no text.", met=", ".join(missing), mend="add it to its `texts`")
    data = Data({}, {})
    for name in FILES:
        read = [text for own in recipe.texts[name] for text in dataset_texts(own.dataset, column=own.columns, limit=own.limit)]
        texts = list(dict.fromkeys(text for text in read if len(text) >= SHORTEST))
        cut = len(texts) - int(HELDOUT * len(texts))
        if cut in (0, len(texts)):
            raise DataError("A data set has too little text.", met=f"{name}: {len(texts)} texts", mend="name another, or raise its limit")
        data.train[name], data.heldout[name] = texts[:cut], texts[cut:]
    return data
