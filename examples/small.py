"""The library that an example works on: the folder given on the command line, or a tiny one made here in seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import mkdtemp

from asterism import Constellation, Library, TrainingSettings, train
from asterism.constellation.probes import draw_index_probes
from asterism.core.corpus import GENERAL, Corpus
from asterism.demo.corpus import build_corpus
from asterism.models.starts import from_nothing

DOMAINS = ("medical", "legal", "code")


def opened() -> tuple[Library, Constellation]:
    """`python example.py LIBRARY` opens a library with its constellation; without a path, a tiny one is made."""
    if len(sys.argv) > 1:
        library = Library.open(sys.argv[1])
        return library, Constellation.load(library.root / "constellation", library)
    return make(Path(mkdtemp(prefix="asterism-example-")))


def texts() -> Corpus:
    """A small made-up corpus."""
    return build_corpus(train=24, heldout=4, cross=2)


def make(root: Path) -> tuple[Library, Constellation]:
    """A generalist and three specialists, barely trained: enough to show how things work."""
    corpus = texts()
    few = TrainingSettings(steps=20, batch_size=4, max_length=48, learning_rate=3e-3)
    everything = [text for own in corpus.train.values() for text in own]
    model, tokenizer = from_nothing(everything, "gpt2", hidden=32, blocks=4, vocabulary=512, positions=256)
    train(model, tokenizer, corpus.train[GENERAL], root / "generalist", few, device="cpu")
    library = Library.create(root, "generalist", {})
    for name in DOMAINS:
        train(library.fresh_model(), tokenizer, corpus.train[name], root / name, few, device="cpu")
        library.add(name, name)
    constellation = Constellation.build(library, draw_index_probes(corpus, DOMAINS, 20))
    constellation.save()
    return library, constellation
