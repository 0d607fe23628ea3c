"""Climb one rung: train it, look whether training went well, then index, calibrate, evaluate and sweep every seed. Everything resumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, log
from pathlib import Path

from asterism.constellation.diagnosis import diagnose
from asterism.constellation.index import FOLDER, Constellation
from asterism.constellation.probes import draw_index_probes
from asterism.constellation.settings import IndexSettings
from asterism.core.corpus import GENERAL, Corpus, read_corpus
from asterism.core.errors import DataError, StaleError
from asterism.core.storage import digest_of, read_json, write_json
from asterism.evaluate.calibrate import calibrate
from asterism.evaluate.candidates import PAPER
from asterism.evaluate.passes import collinearity
from asterism.evaluate.probes import draw, validation_probes
from asterism.evaluate.run import evaluate
from asterism.evaluate.settings import EvaluationSettings
from asterism.models.library import Library
from experiments.constellation import models
from experiments.constellation.bench import Bench
from experiments.constellation.changes import change_shares
from experiments.constellation.general import general_losses
from experiments.constellation.rung import DOMAINS, Rung
from experiments.constellation.sweeps import Case, due, sweep

TESTED = EvaluationSettings(seed=42)
"""The draw of test probes: the same 160 single-domain and 150 cross-domain ones for every seed and rung."""
FEW = EvaluationSettings(seed=42, single_per_domain=2, cross_per_pair=1)
"""The pocket ladder's."""
HELD_OUT = 6
"""Validation probes a domain and pair, of those that the test draw leaves over; the pocket ladder has 1."""
PAPER_SCALES = (0.3, 0.5, 1.0)
"""Scales of task arithmetic as the paper has them; `experiments.merge` tries smaller ones too."""
EXAMPLE = "Is a surgeon liable for a nerve injury when the consent form did not name the risk?"
BUILD = "give every folder with --data; build the code domain from installed packages with the corpus tool (README.md here)"
MARK, FACTS, EVALUATION, SWEPT, MADE_FROM = "diverged.json", "index.json", "evaluation", "sweeps", "made-from.json"


def climb(rung: Rung, corpus: Corpus, folder: Path, seeds: Sequence[int], scale: str) -> str | None:
    """Everything that `gather` reads of one rung, left in `folder`; or, where training diverged, the reason."""
    if reason := divergence(rung, folder):
        return reason
    test = draw(corpus, DOMAINS, drawing(scale))
    validation = validation_probes(corpus, DOMAINS, drawing(scale), per_group=1 if scale == "pocket" else HELD_OUT)
    cases = []
    try:
        first = models.generalist(rung, corpus, folder)
        for seed in seeds:
            library = models.specialists(rung, corpus, first, place(folder, seed), seed)
            settings = settings_of(rung, seed)
            bench = Bench(library, test, settings, library.root / SWEPT / "test")
            if reason := trouble(bench):
                return _mark(rung, folder, f"seed {seed}: {reason}")
            cases.append((bench, Bench(library, validation, settings, library.root / SWEPT / "validation")))
    except DataError as error:
        if error.wrong != "Training diverged.":
            raise
        return _mark(rung, folder, f"training stopped: {error.met}")
    for bench, held in cases:
        one_seed(rung, corpus, bench, held, seeds)
    return None


def one_seed(rung: Rung, corpus: Corpus, test: Bench, validation: Bench, seeds: Sequence[int]) -> None:
    """Index, calibration, evaluation and sweeps of one seed's library; the seed draws the index probes."""
    library, settings = test.library, test.settings
    index = draw_index_probes(corpus, DOMAINS, rung.probes, settings.seed)
    constellation = indexed(library, index, validation)
    write_json(library.root / FACTS, facts(test, constellation))
    out = library.root / EVALUATION
    mark = _made_from(test, constellation, index)
    if not (out / MADE_FROM).exists() or read_json(out / MADE_FROM) != mark:
        evaluate(library, constellation, test.probes, settings, out=out, index_probes=index)
        write_json(out / MADE_FROM, mark)
    case = Case(rung, settings.seed, corpus, constellation, test, validation)
    for name in due(settings.seed, seeds):
        sweep(name, case, library.root / SWEPT)
    # the same texts for every seed, as the other probes
    general_losses(library, constellation, corpus, settings.changed(seed=TESTED.seed), library.root / SWEPT / GENERAL)


def indexed(library: Library, probes: Mapping[str, Sequence[str]], validation: Bench) -> Constellation:
    """The library's constellation, calibrated on the validation probes; the stored one unless it is stale."""
    folder, settings = library.root / FOLDER, IndexSettings(max_length=validation.settings.max_length)
    if folder.exists():
        try:
            kept = Constellation.load(folder, library, probes, settings)
            if set(kept.calibration.probes) == {digest_of(probe.text) for probe in validation.probes}:
                return kept
        except StaleError:
            pass
    built = Constellation.build(library, probes, settings)
    built = calibrate(library, built, validation.probes, validation.settings, state=library.root / ".calibration")
    built.save(folder)
    return built


def facts(bench: Bench, constellation: Constellation) -> dict:
    """What is measured of an index without an evaluation: collinearity before and after, diagnosis, calibration."""
    paper = bench.candidates(constellation)[PAPER].index
    assert paper is not None
    here, theirs = collinearity(constellation), collinearity(paper)
    calibration = constellation.calibration.model_dump(mode="json", exclude={"probes", "specialists"})
    return {
        "collinearity": {
            "raw": here["raw"],
            "mean": here["mean"],
            "post_mean": here["post_mean"],
            "paper_post_mean": theirs["post_mean"],
        },
        "diagnosis": diagnose(constellation).to_dict(),
        "changes": change_shares(bench.library),
        "calibration": {"delta_scale": calibration.pop("scale"), **calibration},  # `scale` names the rung in every row
    }


def trouble(bench: Bench) -> str | None:
    """Why a library's training counts as diverged, by its models' own losses on held-out text; None where it went well."""
    reading, vocabulary = bench.reading, bench.library.anatomy.vocabulary
    generalist = reading.generalist.loss["whole"]
    mean = float(generalist[bench.rows("single")].mean())
    if not mean < log(vocabulary):  # also true of NaN
        return f"the generalist's loss on held-out text is {mean:.3f}, no better than guessing among {vocabulary} tokens"
    for name, scores in reading.specialists.items():
        rows = [row for row, probe in enumerate(bench.probes) if probe.domains == (name,)]
        own, before = float(scores.loss["whole"][rows].mean()), float(generalist[rows].mean())
        if not isfinite(own) or own > before:
            return f"the {name} specialist's loss on its own held-out text is {own:.3f}, the generalist's {before:.3f}"
    return None


def divergence(rung: Rung, folder: Path) -> str | None:
    """Why this rung was given up by an earlier run of the same recipe; None where it was not."""
    mark = folder / MARK
    kept = read_json(mark) if mark.exists() else {}
    return kept["reason"] if kept.get("recipe") == _recipe(rung) else None


def drawing(scale: str) -> EvaluationSettings:
    """How test probes are drawn on a ladder; validation probes are what this draw leaves over."""
    return FEW if scale == "pocket" else TESTED


def settings_of(rung: Rung, seed: int) -> EvaluationSettings:
    """How one seed of a rung is evaluated."""
    own = {"scale": rung.name, "max_length": rung.length, "paper_layers": rung.last, "task_arithmetic": PAPER_SCALES}
    return EvaluationSettings(seed=seed, example=EXAMPLE, refine=1, **own)


def place(folder: Path, seed: int) -> Path:
    """Where one seed of a rung lies."""
    return folder / f"seed-{seed}"


def steps_done(rung: Rung, folder: Path, seeds: Sequence[int]) -> dict[str, bool]:
    """Part of a rung -> whether it lies finished in `folder`."""
    done = {"generalist": (folder / models.GENERALIST / "config.json").exists()}
    for seed in seeds:
        own = place(folder, seed)
        files = {"specialists": "library.json", "index": FACTS, "evaluation": f"{EVALUATION}/{MADE_FROM}"}
        files |= {name: f"{SWEPT}/{name}.json" for name in due(seed, seeds)} | {GENERAL: f"{SWEPT}/{GENERAL}/losses.json"}
        done |= {f"seed {seed}: {part}": (own / file).exists() for part, file in files.items()}
    return done


def _mark(rung: Rung, folder: Path, reason: str) -> str:
    write_json(folder / MARK, {"recipe": _recipe(rung), "reason": reason})
    return reason


def _recipe(rung: Rung) -> str:
    return digest_of(rung.model_dump(mode="json", include={"start", "generalist", "specialist", "share", "texts"}))


def _made_from(bench: Bench, constellation: Constellation, index: Mapping[str, Sequence[str]]) -> str:
    made = [dict(constellation.origin), constellation.settings.digest(), constellation.calibration.digest()]
    return digest_of(bench.origin, bench.settings.digest(), made, {name: list(texts) for name, texts in index.items()})


def read_text(folders: Sequence[Path]) -> Corpus:
    """The text of the folders; DataError naming what they lack, and what to run, before anything is trained."""
    absent = [str(folder) for folder in folders if not folder.exists()]
    if absent or not folders:
        raise DataError("The text to train on is not there.", met=", ".join(absent) or "no --data", mend=BUILD)
    return checked(read_corpus(*folders))


def checked(corpus: Corpus) -> Corpus:
    """The same text; DataError where a domain's training or held-out text or all cross-domain probes are missing."""
    lacking = [f"{name}.train" for name in (GENERAL, *DOMAINS) if not corpus.train.get(name)]
    lacking += [f"{name}.heldout" for name in DOMAINS if not corpus.heldout.get(name)]
    lacking += [] if corpus.cross else ["cross.<a>-<b>"]
    if lacking:
        raise DataError("The data lack text.", met="no " + ", ".join(lacking), mend=BUILD)
    return corpus
