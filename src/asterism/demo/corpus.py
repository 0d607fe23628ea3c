"""A built-in corpus of five domains, generated from a seed: training texts, held-out probes, and probes that need two domains.

The words were written for this project. The texts are grammatical and mean little; they exist so that tiny models
trained on them specialise visibly within minutes, offline.
"""

from __future__ import annotations

import ast
import gzip
import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from pathlib import Path

from asterism.core.corpus import GENERAL, Corpus, Probe
from asterism.core.errors import SettingsError
from asterism.core.storage import replacing
from asterism.demo import programs
from asterism.demo.lexicon import Lexicon, joined, renamed
from asterism.demo.patterns import write_passage
from asterism.demo.prose import Passage
from asterism.demo.words import bridges, code, general, legal, medical, science

LEXICONS: dict[str, Lexicon] = dict(
    medical=medical.LEXICON, legal=legal.LEXICON, code=code.LEXICON, science=science.LEXICON, general=general.LEXICON
)
DOMAINS = ("medical", "legal", "code", "science")
"""The paper's order: Gram-Schmidt depends on it."""
SHORTEST, LONGEST = 40, 90
"""Words of a text."""


def build_corpus(seed: int = 0, train: int = 600, heldout: int = 40, cross: int = 25) -> Corpus:
    """Generate the corpus: `train` texts and `heldout` probes a domain (general too), `cross` probes a pair of domains.

    Equal arguments give equal texts; a larger number extends the same sequence of held-out probes first, then training
    texts, so the two never share a text. SettingsError for a negative number.
    """
    for name, number in dict(train=train, heldout=heldout, cross=cross).items():
        if number < 0:
            raise SettingsError(f"corpus.{name} is a number of texts.", met=number, mend="0 or more")
    corpus = Corpus()
    for domain in (*DOMAINS, GENERAL):
        texts = _different(_writer(domain), random.Random(f"{seed}:{domain}"), heldout + train)
        corpus.heldout[domain] = [Probe(f"{domain}-{n:04}", text, (domain,)) for n, text in enumerate(texts[:heldout])]
        corpus.train[domain] = texts[heldout:]
    for pair in combinations(DOMAINS, 2):
        texts = _different(_cross_writer(*pair), random.Random(f"{seed}:{'-'.join(pair)}"), cross)
        corpus.cross.extend(Probe(f"{'-'.join(pair)}-{n:04}", text, pair) for n, text in enumerate(texts))
    return corpus


def write_corpus(folder: str | Path, seed: int = 0, train: int = 600, heldout: int = 40, cross: int = 25) -> Corpus:
    """Generate the corpus and write it as the files that `asterism.core.corpus.read_corpus` reads; return it."""
    corpus = build_corpus(seed, train, heldout, cross)
    folder = Path(folder)
    for domain, texts in corpus.train.items():
        if texts:
            _write(folder / f"{domain}.train.jsonl.gz", ({"text": text} for text in texts))
    for domain, probes in corpus.heldout.items():
        if probes:
            _write(folder / f"{domain}.heldout.jsonl.gz", map(_row, probes))
    for pair in combinations(DOMAINS, 2):
        if rows := [_row(probe) for probe in corpus.cross if probe.domains == pair]:
            _write(folder / f"cross.{'-'.join(pair)}.jsonl.gz", rows)
    return corpus


Writer = Callable[[random.Random], str]


def _different(write: Writer, rng: random.Random, number: int) -> list[str]:
    """`number` texts of fitting length, all different."""
    texts: dict[str, None] = {}
    for _ in range(100 * number + 100):
        if len(texts) == number:
            return list(texts)
        text = write(rng)
        if SHORTEST <= len(text.split()) <= LONGEST:
            texts[text] = None
    raise AssertionError(f"the generator repeats itself: {len(texts)} of {number} texts")


def _writer(domain: str) -> Writer:
    if domain != "code":
        return lambda rng: write_passage(Passage(rng, LEXICONS[domain]))
    return lambda rng: _program(rng, "code", Passage(rng, code.LEXICON, tense="present"), talk=0.35)


def _cross_writer(first: str, second: str) -> Writer:
    parts = {name: LEXICONS[name] for name in (first, second)}
    both = joined(parts, bridges.BRIDGES[first, second])
    own = {name: [renamed(frame, name) for frame in lexicon.frames] for name, lexicon in parts.items()}
    pools = [own[first], both.frames, own[second], both.frames]

    def write(rng: random.Random) -> str:
        if "code" in parts and rng.random() < 0.5:
            subject = first if second == "code" else second
            return _program(rng, subject, Passage(rng, LEXICONS[subject], tense="present"), talk=0.9)
        return write_passage(Passage(rng, both, pools, tense=rng.choice(["past", "present"])))

    return write


def _program(rng: random.Random, subject: str, passage: Passage, talk: float) -> str:
    """Functions about `subject`, with comments from `passage`, until there are enough words; the whole parses."""
    goal = rng.randint(SHORTEST, LONGEST - 25)
    shapes = rng.sample(programs.SHAPES, len(programs.SHAPES))
    text = ""
    while len(text.split()) < goal:
        part = programs.write_function(rng, code.NAMES[subject], passage, shapes.pop(), talk)
        text = f"{text}\n\n\n{part}" if text else part
    ast.parse(text)
    return text


def _row(probe: Probe) -> dict:
    return {"id": probe.id, "text": probe.text, "domains": list(probe.domains)}


def _write(path: Path, rows: Iterable[dict]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as raw:
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:  # no name and no time: equal texts, equal bytes
            packed.writelines(_lines(rows))


def _lines(rows: Iterable[dict]) -> Iterator[bytes]:
    return ((json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows)
