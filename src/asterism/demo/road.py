"""The whole road, offline and in front of the user: text, models, index, diagnosis, evaluation, report, answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asterism.compose.answering import Answer, answer
from asterism.constellation.diagnosis import Diagnosis, diagnose
from asterism.constellation.index import Constellation
from asterism.constellation.probes import draw_index_probes
from asterism.core.corpus import GENERAL, Corpus, read_corpus
from asterism.core.errors import DataError
from asterism.core.storage import digest_of, read_json, write_json
from asterism.demo.corpus import build_corpus
from asterism.evaluate.probes import draw
from asterism.evaluate.run import evaluate
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.library import Library
from asterism.models.settings import TrainingSettings
from asterism.report.html import write_report

SHAPE = {"hidden": 96, "blocks": 5, "vocabulary": 4096}
GENERALIST = TrainingSettings(steps=450, batch_size=16, max_length=96, learning_rate=3e-3, schedule="cosine", warmup=0.05)
SPECIALIST = TrainingSettings(steps=100, batch_size=16, max_length=96, learning_rate=6e-4, warmup=0.05)
SHARE = 0.15
"""Share of each domain's training text that the generalist sees."""
PROBES = 40
"""Index probes a domain, taken from its training text."""


@dataclass
class DemoResult:
    """What the demo leaves behind."""

    library: Path
    report: Path
    results: dict[str, Any]
    diagnosis: Diagnosis
    answers: list[dict[str, Any]] = field(default_factory=list)


def run_demo(
    out: str | Path,
    data: Sequence[str | Path] = (),
    *,
    seed: int = 42,
    device: str = "cpu",
    dtype: Any = None,
    say: Callable[[str], None] = lambda line: None,
) -> DemoResult:
    """From nothing (or from one's own text in `data`) to a report in `out`; what is finished there already is reused."""
    out = Path(out)
    corpus = read_corpus(*data) if data else build_corpus(seed)
    domains = _domains(corpus)
    say(f"Text: {sum(map(len, corpus.train.values())):,} passages of {', '.join(domains)} and general")
    corpus = corpus.only(domains)  # the demo makes a specialist of every domain with training text: probes of others have none
    library = _library(corpus, domains, out / "library", seed, device, dtype, say)
    probes = draw_index_probes(corpus, domains, PROBES, seed)
    say("Index: the generalist reads the probes of every domain")
    constellation = _constellation(library, probes)
    say("Diagnosis: can the domains be told apart?")
    diagnosis = diagnose(constellation)
    say("Evaluation: every candidate on held-out and cross-domain probes, both protocols")
    results = _results(library, constellation, corpus, probes, out, seed)
    report = out / "report.html"
    write_report(results, report)
    say("Answers: each query with its own model")
    answers = [_plain(found) for found in answer(library, constellation, _queries(corpus, seed), max_new_tokens=32)]
    return DemoResult(library.root, report, results, diagnosis, answers)


def _domains(corpus: Corpus) -> list[str]:
    domains = [name for name in corpus.domains if name in corpus.train]
    known = [name for name in ("medical", "legal", "code", "science") if name in domains]
    ordered = known + [name for name in domains if name not in known]
    if len(ordered) < 2 or GENERAL not in corpus.train:
        mend = "give general.train.jsonl and at least two <domain>.train.jsonl files"
        raise DataError(
            "The demo needs general text and two domains or more.", met=", ".join(corpus.train) or "no training text", mend=mend
        )
    return ordered


def _library(corpus: Corpus, domains: Sequence[str], root: Path, seed: int, device: str, dtype: Any, say: Callable[[str], None]) -> Library:
    from asterism.models.scratch import new_model
    from asterism.models.tokenizers import train_tokenizer
    from asterism.models.training import train

    mixed = list(corpus.train[GENERAL])
    for name in domains:
        mixed += corpus.train[name][: max(1, round(SHARE * len(corpus.train[name])))]
    random.Random(seed).shuffle(mixed)
    tokenizer = train_tokenizer((text for texts in corpus.train.values() for text in texts), SHAPE["vocabulary"])
    say(f"Generalist: a GPT-2 shape from nothing, {GENERALIST.steps} steps on general text and {SHARE:.0%} of each domain")
    model = new_model("gpt2", tokenizer, hidden=SHAPE["hidden"], blocks=SHAPE["blocks"], positions=256, seed=seed)
    train(model, tokenizer, mixed, root / "generalist", GENERALIST.changed(seed=seed), device=device)
    if not (root / "library.json").exists():
        Library.create(root, "generalist", {})
    library = Library.open(root, device=device, dtype=dtype)
    for name in domains:
        say(f"Specialist: {name}, {SPECIALIST.steps} steps from the generalist")
        train(library.fresh_model(), tokenizer, corpus.train[name], root / name, SPECIALIST.changed(seed=seed), device=device)
        if name not in library.names:
            library.add(name, name)
    return library


def _constellation(library: Library, probes: Mapping[str, Sequence[str]]) -> Constellation:
    constellation = Constellation.build(library, probes)
    constellation.save(library.root / "constellation")
    return constellation


def _results(
    library: Library, constellation: Constellation, corpus: Corpus, probes: Mapping[str, Sequence[str]], out: Path, seed: int
) -> dict[str, Any]:
    settings = EvaluationSettings(seed=seed, max_length=192, scale="demo")
    chosen = draw(corpus, library.names, settings)
    mark = digest_of(constellation.origin, settings.digest(), [probe.text for probe in chosen])
    if (out / "made-from.json").exists() and read_json(out / "made-from.json") == mark:
        return read_json(out / "results.json")
    results = evaluate(library, constellation, chosen, settings, out=out, index_probes=probes)
    write_json(out / "made-from.json", mark)
    return results


def _queries(corpus: Corpus, seed: int) -> list[str]:
    """The first words of a few unseen probes: cross-domain ones first."""
    pool = corpus.cross or [probe for probes in corpus.heldout.values() for probe in probes]
    chosen = random.Random(f"{seed}:answers").sample(pool, min(3, len(pool)))
    return [" ".join(probe.text.split()[:14]) for probe in chosen]


def _plain(found: Answer) -> dict[str, Any]:
    return {
        "query": found.query,
        "answer": found.text,
        "specialists": list(found.mixture.specialists),
        "shares": found.mixture.shares,
        "generalist": found.mixture.generalist,
        "entropy": found.mixture.entropy,
    }
