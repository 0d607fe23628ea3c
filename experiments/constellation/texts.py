"""Where a rung's text comes from, folders or data sets of the Hub; and, before anything is fetched, what a rung will take.

Cross-domain probes always come from folders or files given by hand: the paper's own 150 were crafted by its author and are not public.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from asterism.core.corpus import GENERAL, Corpus, Probe, read_corpus
from asterism.core.errors import DataError
from asterism.models.anatomy import skeleton
from asterism.models.datasets import dataset_texts
from asterism.models.scratch import new_config
from asterism.models.settings import TrainingSettings
from experiments.constellation.rung import DOMAINS, Rung, Scratch, Text

SHORTEST, LONGEST = 51, 20_000
"""Characters: shorter rows are headings and captions (the author's earlier public code drops those of 50 or fewer); longer ones are cut,
since one row may be a whole book of statutes."""
HELDOUT, SHARE = 400, 0.1
"""Texts of a data set that are held out, at most, and the share of it that may be."""
ADAM, LOGITS, STATES = 16, 12, 34
"""Bytes a parameter in full training (weight, gradient and two moments in float32), a logit (float32, its softmax and gradient), and
a hidden value of a block kept for the backward pass (Korthikanti et al. 2022, in bfloat16, without the attention scores)."""


def corpus_of(rung: Rung, folders: Sequence[str | Path]) -> Corpus:
    """The rung's training texts and held-out probes, from its data sets or else from `folders`; cross-domain probes from `folders`.

    A data set's texts are read in its own order, exact doubles are dropped, and its end is held out: neighbours, often parts of one
    document, stay on one side. Raises DataError for text that is not there, or a domain that no data set is named for.
    """
    if not rung.texts:
        if not folders:
            raise DataError("The rung reads its text from folders.", met=f"{rung.name} without one", mend="give each with --data")
        return read_corpus(*folders)
    missing = [name for name in (GENERAL, *DOMAINS) if not rung.texts.get(name)]
    if missing:
        raise DataError("The recipe names no text for a domain.", met=f"{rung.name}: {', '.join(missing)}", mend="add it to its `texts`")
    given = read_corpus(*folders).only(DOMAINS).cross if folders else []
    corpus, met = Corpus(cross=[probe for probe in given if GENERAL not in probe.domains]), set()
    for domain in (GENERAL, *DOMAINS):
        for number, text in enumerate(rung.texts[domain]):
            found = _read(text, met)
            kept = min(HELDOUT // len(rung.texts[domain]), int(SHARE * len(found)))
            if not 0 < kept < len(found):
                mend = "raise its limit, or name another set"
                raise DataError("A data set has too little text.", met=f"{text.dataset}: {len(found)} different texts", mend=mend)
            corpus.train.setdefault(domain, []).extend(found[:-kept])
            probes = [Probe(f"{domain}-ho-{number}-{n}", own, (domain,)) for n, own in enumerate(found[-kept:])]
            corpus.heldout.setdefault(domain, []).extend(probes)
    return corpus


def plan(rung: Rung) -> dict[str, Any]:
    """What a rung takes, as JSON; nothing is fetched or trained, and no weight is made.

    Sizes come from the config: the rung's shape, the Hub's where it lies in the cache, or the one that the recipe gives; they are null
    where there is none. Tokens are those read in training, repeats counted. Memory is a rough lower bound in GiB: training in full
    (one device), and an evaluation that holds generalist, composition and all specialists in bfloat16.
    """
    config = config_of(rung)
    shapes = [] if config is None else list(skeleton(config).parameters())
    parameters = sum(shape.numel() for shape in shapes) if shapes else None
    who = {"generalist": rung.generalist, **dict.fromkeys(DOMAINS, rung.specialist)}
    needed = None
    if config is not None and parameters:
        training = max(_training_bytes(parameters, config, settings) for settings in who.values() if settings)
        needed = {"training": _gib(training), "evaluation": _gib(2 * parameters * (2 + len(DOMAINS)))}
    return {
        "name": rung.name,
        "family": rung.family,
        "start": rung.start if isinstance(rung.start, str) else rung.start.model_dump(mode="json"),
        "parameters": parameters,
        "hidden": config and config.hidden_size,
        "blocks": config and config.num_hidden_layers,
        "steps": {name: settings.steps if settings else 0 for name, settings in who.items()},
        "tokens": {name: _tokens(settings) if settings else 0 for name, settings in who.items()},
        "data": {domain: [f"{text.dataset} ({text.column})" for text in texts] for domain, texts in rung.texts.items()},
        "index_probes": rung.probes * (len(DOMAINS) + 1),
        "gpu_memory_gib": needed,
    }


def config_of(rung: Rung) -> PreTrainedConfig | None:
    """The config of a rung's models, without the network; None where it cannot be had so."""
    if isinstance(rung.start, Scratch):
        start = rung.start
        shape: Any = {"vocabulary": start.vocabulary, "hidden": start.hidden, "blocks": start.blocks, "positions": start.positions}
        return new_config(start.shape, **shape)
    try:
        return AutoConfig.from_pretrained(rung.start, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        given: dict[str, Any] = rung.config or {}
        return AutoConfig.for_model(**given) if given else None


def _read(text: Text, met: set[str]) -> list[str]:
    """The usable texts of one data set that were not `met` in another; they are added to it."""
    found = []
    for own in dataset_texts(text.dataset, column=text.column, limit=text.limit):
        cut = own.strip()[:LONGEST]
        if len(cut) >= SHORTEST and cut not in met:
            met.add(cut)
            found.append(cut)
    return found


def _tokens(settings: TrainingSettings) -> int:
    return settings.steps * settings.batch_size * settings.max_length


def _training_bytes(parameters: int, config: PreTrainedConfig, settings: TrainingSettings) -> int:
    """Weights, gradients and moments; and the logits and hidden states of one batch."""
    tokens, width = settings.batch_size * settings.max_length, config.num_hidden_layers * config.hidden_size
    return ADAM * parameters + tokens * (LOGITS * config.vocab_size + STATES * width)


def _gib(size: float) -> float:
    return float(f"{size / 2**30:.3g}")
